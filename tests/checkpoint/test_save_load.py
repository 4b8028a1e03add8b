"""A saved model is the same model again, or it is refused: whatever was pruned, whatever happened to the folder."""

from __future__ import annotations

import errno
import json
import pickletools

import pytest
import torch
from byte_tokens import byte_tokenizer
from conftest import LAYERS, TINY, tiny
from tiny_methods import SPECS, calibration, logits, pruned
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import methods
from methods.checkpoint import save_load, transformers_compat, weight_files
from methods.decisions import prune
from methods.errors import CheckpointError
from methods.files import hash_file
from methods.model.decoder import Decoder
from methods.model.inserted import factor_matrix
from methods.model.sizes import active_parameters, parameters
from methods.model.structures import Sublayer, keep_channels, keep_kv_groups, remove_sublayers

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def saved(model, tmp_path, **options):
    """(folder, manifest) of a model."""
    folder = tmp_path / "model"
    return folder, save_load.save(model, folder, **options)


@pytest.fixture(autouse=True)
def _nothing_is_unpickled(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)


@pytest.mark.parametrize("family", TINY)
def test_removed_sub_blocks_and_added_biases_come_back(family, ids, tmp_path):
    model = Decoder(tiny(family))
    layers = model.layers
    layers[1].remove_attention()
    layers[4].remove_mlp()
    model.set_layers(layers)
    for matrix in (layers[2].out, layers[3].down):
        matrix.bias = nn.Parameter(torch.randn(matrix.out_features))
    folder, manifest = saved(model, tmp_path)
    assert torch.equal(logits(save_load.load(folder), ids), logits(model, ids))
    assert [facts.get("skip", []) for facts in manifest["structure"]["layers"]] == [
        [],
        ["attention"],
        [],
        [],
        ["mlp"],
        [],
    ]
    assert manifest["reason"] == "layer 1 has no attention"


def test_a_scale_that_follows_from_the_layers_number_is_kept(ids, tmp_path):
    """GPT-2 may scale the attention of layer i by 1 / (i + 1), where i is the number before layers went."""
    model = Decoder(tiny("gpt2", scale_attn_by_inverse_layer_idx=True))
    methods.make("drop", {"layers": "0"}).prune(model, calibration(), 0.0)
    folder, manifest = saved(model, tmp_path)
    assert "follows from a layer's number" in manifest["reason"]
    assert torch.equal(logits(save_load.load(folder), ids), logits(model, ids))
    whole = Decoder(tiny("gpt2", scale_attn_by_inverse_layer_idx=True))
    methods.make("drop", {"layers": "5"}).prune(whole, calibration(), 0.0)
    assert saved(whole, tmp_path / "tail")[1]["loads_with"] == "transformers"


@pytest.mark.parametrize("method", ["slicegpt", "llm-pruner", "laco"])
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_the_auto_classes_load_it_too(method, family, ids, tmp_path):
    model, _ = pruned(method, family, 0.3)
    folder, manifest = saved(model, tmp_path)
    loaded = Decoder(AutoModelForCausalLM.from_pretrained(folder))
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert sum(p.numel() for p in shell.parameters()) == parameters(model)
    if manifest["loads_with"] == "prunebench":
        layer = AutoConfig.from_pretrained(folder).per_layer_config[LAYERS // 2]
        assert layer.num_key_value_heads == model.layers[LAYERS // 2].kv_heads
        assert layer.intermediate_size == model.layers[LAYERS // 2].down.in_features


STEPS = [
    ("svd-llm", "drop-tail"),
    ("blockpruner", "svd-llm"),
    ("modegpt", "drop-tail"),
    ("blockpruner", "modegpt"),
    ("llm-pruner", "drop-tail"),
    ("drop", "slicegpt"),
    ("llm-pruner", "slicegpt"),
    ("blockpruner", "drop-random"),
]


FUSED = [("blockpruner", "svd-llm"), ("llm-pruner", "slicegpt")]  # tried where matrices are fused or transposed too
FURTHER = [
    pytest.param(*pair, family, marks=[] if family == "llama" or pair in FUSED else [pytest.mark.nightly])
    for pair in (*STEPS, ("minitron-width", "laco"), ("flap", "llm-pruner"))
    for family in ("llama", "phi3", "gpt2")
]


@pytest.mark.parametrize(("first", "second", "family"), FURTHER)
def test_a_loaded_model_can_be_pruned_further(first, second, family, ids, tmp_path):
    """As the model in memory would be, and saved once more."""
    model, _ = pruned(first, family, 0.2)
    again = save_load.load(saved(model, tmp_path / "first")[0])
    decided = [prune(methods.make(second, SPECS[second]), one, calibration(), 0.2) for one in (model, again)]
    assert decided[0] == decided[1]
    assert torch.equal(logits(again, ids), logits(model, ids))
    twice = save_load.load(saved(again, tmp_path / "second")[0])
    assert torch.equal(logits(twice, ids), logits(model, ids))


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("method", ["llm-pruner", "blockpruner", "flap"])
def test_padding_with_zeros_changes_nothing_but_the_widths(method, family, ids, tmp_path):
    model, _ = pruned(method, family, 0.3)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    try:
        folder, manifest = saved(model, tmp_path, pad=True)
    except CheckpointError as error:
        assert method == "flap"  # adds a bias, which not every family has a place for
        assert "no place for" in str(error)
        return
    wide = save_load.load(folder)
    assert manifest["loads_with"] == "transformers"
    assert manifest["parameters"] == parameters(wide) >= parameters(model) == manifest["padding"]["parameters"]
    scale = float(logits(model, ids).abs().max())
    torch.testing.assert_close(logits(wide, ids), logits(model, ids), rtol=0, atol=1e-5 * scale)
    assert manifest["padding"]["logit_difference"] <= 1e-5 * scale
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    assert len({json.dumps(layer) for layer in manifest["structure"]["layers"]}) == 1


@pytest.mark.parametrize(("family", "heads", "expected"), [("qwen3", 1, 1), ("qwen3", 3, 3), ("llama", 3, 4)])
def test_padding_goes_to_the_widest_layer_and_no_further(family, heads, expected, ids, tmp_path):
    """Unless transformers takes no such number: for a Llama of width 32 three heads are one too few."""
    model = Decoder(tiny(family, num_key_value_heads=4))
    for number, layer in enumerate(model.layers):
        keep_channels(layer, range(number + 10))
        keep_kv_groups(layer, range(heads))
    folder, manifest = saved(model, tmp_path, pad=True)
    layers = manifest["structure"]["layers"]
    assert {facts["intermediate_size"] for facts in layers} == {LAYERS + 9}
    assert {facts["num_key_value_heads"] for facts in layers} == {expected}
    torch.testing.assert_close(logits(save_load.load(folder), ids), logits(model, ids), rtol=0, atol=1e-5)


def test_what_zeros_do_not_undo_is_not_padded(tmp_path):
    model, _ = pruned("slicegpt", "llama", 0.3)
    with pytest.raises(CheckpointError, match="padding does not make this model uniform: the residual stream"):
        saved(model, tmp_path, pad=True)
    model, _ = pruned("modegpt", "llama", 0.2)
    with pytest.raises(CheckpointError, match=r"of layer 0 has lost some of its rows or columns, which zeros do not"):
        saved(model, tmp_path, pad=True)
    model, _ = pruned("svd-llm", "llama", 0.3)
    with pytest.raises(
        CheckpointError, match=r"uniform: self_attn.q_\w+ of layer 0 is two factors of low rank, which ze"
    ):
        saved(model, tmp_path, pad=True)
    model = Decoder(tiny("gpt2", scale_attn_by_inverse_layer_idx=True))
    methods.make("drop", {"layers": "0"}).prune(model, calibration(), 0.0)
    with pytest.raises(CheckpointError, match="padding does not make this model uniform: the attention's scale"):
        saved(model, tmp_path, pad=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("method", "family"), [("drop", "llama"), ("slicegpt", "gpt2"), ("llm-pruner", "phi3")])
def test_what_rounding_costs_is_measured(method, family, dtype, ids, tmp_path):
    model, _ = pruned(method, family, 0.3)
    folder, manifest = saved(model, tmp_path, dtype=HALVES[dtype], probe=ids)
    half = save_load.load(folder)
    assert {parameter.dtype for parameter in half.model.parameters()} == {HALVES[dtype]}
    off, full = logits(half, ids).float(), logits(model, ids)
    cost = manifest["rounding"]
    assert cost["dtype"] == manifest["dtype"] == dtype
    assert cost["tokens"] == ids.numel()
    assert cost["logit_difference"] == pytest.approx(float((off - full).abs().max()))
    p, q = full.log_softmax(-1), off.log_softmax(-1)
    assert cost["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=1e-9)
    assert 0 < cost["kl"] < 1e-2
    assert f"KL {cost['kl']:.2g} nats per token" in (folder / "README.md").read_text()
    wide = save_load.load(folder, dtype=torch.float32)
    expected = {name: tensor.to(HALVES[dtype]).float() for name, tensor in model.model.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in wide.model.state_dict().items())


@pytest.mark.parametrize(
    ("of_down", "of_up", "said"),
    [
        (1e6, 1.0, "mlp.down_proj.weight has numbers that float16 does not hold"),
        (1e3, 1e5, "in float16 the model's logits overflow"),  # whose weights float16 holds
    ],
)
def test_a_dtype_that_overflows_is_refused(of_down, of_up, said, tmp_path):
    model = Decoder(tiny("llama"))
    model.layers[0].down.weight.data *= of_down
    model.layers[0].up[-1].weight.data *= of_up
    with pytest.raises(CheckpointError, match=said):
        saved(model, tmp_path, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["drop", "slicegpt"])
def test_weights_in_several_files(method, ids, tmp_path):
    model, _ = pruned(method, "llama", 0.3)
    folder, manifest = saved(model, tmp_path, shard_bytes=20_000)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == sorted(manifest["weights"])
    assert len(files) > 2
    assert all(entry["bytes"] < 22_000 for entry in manifest["weights"].values())  # with the header
    assert torch.equal(logits(save_load.load(folder), ids), logits(model, ids))
    assert torch.equal(logits(Decoder(AutoModelForCausalLM.from_pretrained(folder)), ids), logits(model, ids))
    (folder / files[1]).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {files[1]}"):
        save_load.load(folder)


def test_the_tokenizer_and_the_generation_config_come_along(tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    model, _ = pruned("slicegpt", "llama", 0.3)
    model.model.generation_config.max_new_tokens = 7
    folder, _ = saved(model, tmp_path, tokenizer=byte_tokenizer(bos=True))
    text = "A text, isn't it?"
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == byte_tokenizer(bos=True)(text)["input_ids"]
    assert GenerationConfig.from_pretrained(folder).max_new_tokens == 7
    assert save_load.load(folder).model.generation_config.max_new_tokens == 7


@pytest.fixture(params=["drop", "llm-pruner"])
def folder(request, tmp_path):
    """A saved model, of a stock and of a described one."""
    return saved(pruned(request.param, "llama", 0.3)[0], tmp_path)[0]


def refused(folder, *words):
    """Loading says in one line what is wrong."""
    with pytest.raises(CheckpointError) as caught:
        save_load.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_changed_byte_is_noticed(folder):
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    refused(folder, "model.safetensors is not the file that was saved: its sha256 differs")


def test_a_truncated_file_is_noticed(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(folder, "model.safetensors has", "bytes and should have")


def test_a_file_that_is_none_is_noticed_even_if_the_manifest_agrees(folder):
    weights, manifest = folder / "model.safetensors", folder / "prunebench.json"
    weights.write_bytes(b"nothing of the kind")
    change(manifest, weights={weights.name: {"bytes": weights.stat().st_size, "sha256": hash_file(weights)}})
    refused(folder, "model.safetensors is no whole safetensors file")


def test_a_missing_and_a_foreign_file_are_noticed(folder):
    foreign = folder / "more.safetensors"
    foreign.write_bytes((folder / "model.safetensors").read_bytes())
    refused(folder, "more.safetensors does not belong to the model")
    foreign.unlink()
    (folder / "model.safetensors").unlink()
    refused(folder, "lacks model.safetensors")


def test_a_configuration_that_lies_about_a_width_is_noticed(folder):
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "prunebench":
        config["per_layer_config"]["0"]["intermediate_size"] -= 1
    else:
        config["intermediate_size"] -= 1
    change(folder / "config.json", **config)
    refused(folder, "config.json and the weights disagree", "is (48, 32) and should be (47, 32)")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"num_key_value_heads": 9}, "num_key_value_heads of layer 0 lies between 1 and 2; config.json says 9"),
        ({"num_attention_heads": 3}, "has 2 query heads for each key/value head"),
        ({"intermediate_size": 0}, "intermediate_size of layer 0 lies between 1 and 48"),
        ({"skip": ["mlp"]}, "there is no place for"),
        ({"attention_output_bias": True}, "is missing"),
    ],
)
def test_a_description_that_fits_no_model_is_noticed(facts, words, tmp_path):
    folder, _ = saved(pruned("llm-pruner", "llama", 0.3)[0], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["per_layer_config"]["0"] |= facts
    change(folder / "config.json", **config)
    refused(folder, words)


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ({"mlp.up_proj": 33}, "the rank of mlp.up_proj of layer 0 lies between 1 and 32; config.json says 33"),
        ({"mlp.side_proj": 4}, "mlp.down_proj; config.json has one of mlp.side_proj in layer 0"),
        ({"mlp.up_proj": "4"}, "describes no model"),
        ({"mlp.up_proj": 4}, "and the weights disagree"),
        ([4], "describes no model"),
    ],
)
def test_ranks_that_fit_no_model_are_noticed(ranks, words, tmp_path):
    folder, _ = saved(pruned("svd-llm", "llama", 0.3)[0], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["per_layer_config"]["0"]["ranks"] = ranks
    change(folder / "config.json", **config)
    refused(folder, words)


@pytest.mark.parametrize(
    ("name", "matrix", "places", "words"),
    [
        ("rows", "self_attn.q_proj", "0-32", "rows of self_attn.q_proj in layer 0 rise from 0 to 31; config.json says"),
        ("rows", "self_attn.q_proj", "0-99999999999+5", "rise from 0 to 31; config.json says '0-99999999999"),
        (
            "columns",
            "self_attn.o_proj",
            "",
            "columns of self_attn.o_proj in layer 0 rise from 0 to 31; config.json says",
        ),
        ("rows", "self_attn.q_proj", "0-3+2-7", "rise from 0 to 31"),
        ("rows", "self_attn.side", "0-3", "config.json has some of self_attn.side in layer 0"),
        ("rows", "self_attn.q_proj", "0-3", "and the weights disagree"),
        ("rows", "self_attn.q_proj", 7, "describes no model"),
        ("columns", "self_attn.o_proj", "0-x", "numbers and ranges are joined by"),
    ],
)
def test_rows_and_columns_that_fit_no_model_are_noticed(name, matrix, places, words, tmp_path):
    folder, _ = saved(pruned("modegpt", "llama", 0.2)[0], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["per_layer_config"]["0"][name] = {matrix: places}
    change(folder / "config.json", **config)
    refused(folder, words)


def test_some_matrices_of_some_layers_may_be_factors(ids, tmp_path):
    model = Decoder(tiny("qwen2"))
    layers = model.layers
    layers[1].remove_mlp()
    for number, name, k in ((2, "qkv", 5), (4, "up", 7)):
        path = getattr(model.family, name)[1]
        matrix = layers[number].named_matrices()[path]
        m, n = matrix.weight.shape
        layers[number].put(path, factor_matrix(matrix, torch.randn(k, n) / n, torch.randn(m, k)))
    model.set_layers(layers)
    folder, manifest = saved(model, tmp_path)
    assert [sorted(facts["ranks"].values()) for facts in manifest["structure"]["layers"]] == [[], [], [5], [], [7], []]
    assert torch.equal(logits(save_load.load(folder), ids), logits(model, ids))


def test_a_manifest_that_describes_other_layers_is_noticed(folder):
    structure = json.loads((folder / "prunebench.json").read_text())["structure"]
    structure["layers"][0]["intermediate_size"] -= 1
    change(folder / "prunebench.json", structure=structure)
    refused(folder, "config.json and prunebench.json describe different layers")


def test_a_manifest_of_another_layout_is_noticed(folder):
    change(folder / "prunebench.json", layout=2)
    refused(folder, "has layout 2; this version reads 1")
    (folder / "prunebench.json").write_text("{")
    refused(folder, "prunebench.json cannot be read")
    (folder / "prunebench.json").write_text('{"layout": 1}')
    refused(folder, "says nothing of", "weights")
    (folder / "prunebench.json").unlink()
    refused(folder, "prunebench.json cannot be read: No such file")


def test_a_broken_configuration_is_noticed(folder):
    (folder / "config.json").write_text("{")
    refused(folder, "config.json is not JSON", "copy or download it again")
    (folder / "config.json").write_text('{"model_type": "nothing"}')
    refused(folder, "config.json describes no model")


def test_a_folder_that_is_taken_is_left_as_it_is(tmp_path):
    model = Decoder(tiny("llama"))
    (tmp_path / "model").mkdir()
    saved(model, tmp_path)  # an empty folder will do
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with pytest.raises(CheckpointError, match="exists and is not empty; name a new folder"):
        saved(model, tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        save_load.save(model, tmp_path / "file")


@pytest.mark.parametrize("place", ["weights", "card"])
def test_a_full_disk_leaves_nothing_behind(place, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if place == "weights":
        whole = weight_files.save_file
        calls = []

        def second(*args, **kwargs):
            calls.append(1)
            return whole(*args, **kwargs) if len(calls) == 1 else full()

        monkeypatch.setattr(weight_files, "save_file", second)
    else:
        monkeypatch.setattr(save_load.model_card, "render", full)
    with pytest.raises(CheckpointError, match=r"model cannot be written: No space left on device$"):
        saved(Decoder(tiny("llama")), tmp_path, shard_bytes=20_000)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_no_description_fits_is_refused(tmp_path):
    model = Decoder(tiny("llama"))
    model.layers[1].down.weight = nn.Parameter(torch.zeros(31, 48))
    model.layers[1].down.out_features = 31
    for layer in model.layers[1:]:
        layer.module.forward = lambda x, **kwargs: x  # so that it runs at all
    with pytest.raises(CheckpointError, match=r"this model cannot be stored: .* is \(31, 48\) and should be"):
        saved(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_computes_something_else_is_refused(tmp_path):
    """Shapes and names agree, but the forward does not follow from them."""
    model = Decoder(tiny("llama"))
    model.layers[0].attn.scaling = 0.5
    folder, manifest = saved(model, tmp_path)  # a scale of its own is described
    assert manifest["structure"]["layers"][0]["scaling"] == 0.5
    model.layers[0].module.register_forward_hook(lambda module, args, out: out * 1.5)
    with pytest.raises(CheckpointError, match="computes something else: logits differ by up to"):
        saved(model, tmp_path / "hooked")
    assert folder.is_dir()
    assert not (tmp_path / "hooked" / "model").exists()


@pytest.mark.parametrize("family", ["llama", "glm4_moe"])
def test_a_model_in_bfloat16_that_computes_something_else_by_little_is_refused(family, tmp_path):
    model = Decoder(tiny(family))
    model.cast(torch.bfloat16)
    saved(model, tmp_path / "whole")
    hook = model.layers[0].module.register_forward_hook(lambda module, args, out: out * 1.03)
    with pytest.raises(CheckpointError, match="computes something else: logits differ by up to"):
        saved(model, tmp_path / "hooked")
    hook.remove()
    for name, buffer in model.model.named_buffers():
        if name.endswith("inv_freq"):
            buffer.data = buffer.bfloat16().float()
    with pytest.raises(CheckpointError, match="computes something else: logits differ by up to"):
        saved(model, tmp_path / "rounded")


def test_transposed_matrices_in_bfloat16_may_sum_in_another_order(tmp_path, monkeypatch):
    model, logits_of = Decoder(tiny("gpt2")), transformers_compat.compute_logits
    model.cast(torch.bfloat16)
    monkeypatch.setattr(
        transformers_compat, "compute_logits", lambda one, ids: logits_of(one, ids) * (1 if one is model else 1.01)
    )
    assert saved(model, tmp_path)[1]["loads_with"] == "transformers"


def test_a_model_in_float64_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "write_weights", lambda *_: pytest.fail("weights were written"))
    with pytest.raises(CheckpointError, match="a model is stored in float32, bfloat16, float16; got float64; give one"):
        saved(Decoder(tiny("llama").double()), tmp_path)
    with pytest.raises(CheckpointError, match="got float64"):
        saved(Decoder(tiny("llama")), tmp_path, dtype=torch.float64)
    assert list(tmp_path.iterdir()) == []


def test_without_any_mlp_there_is_no_width_to_pad_to(tmp_path):
    model = Decoder(tiny("llama"))
    remove_sublayers(model, [Sublayer("mlp", number) for number in range(len(model.layers))])
    with pytest.raises(CheckpointError, match="padding does not make this model uniform: no layer has an MLP"):
        saved(model, tmp_path, pad=True)


@pytest.mark.parametrize("method", ["drop", "slicegpt"])
def test_nothing_written_is_a_pickle(method, tmp_path):
    model, _ = pruned(method, "llama", 0.3)
    folder, _ = saved(model, tmp_path, tokenizer=byte_tokenizer(), dtype=torch.float16)
    for path in folder.iterdir():
        assert path.suffix in (".json", ".safetensors", ".md", ".jinja"), path
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK\x03\x04", b"\x93NUMPY"))
        with pytest.raises(
            ValueError, match=r"opcode|pickle exhausted|not enough|expected|could not|no newline|escape"
        ):
            list(pickletools.genops(content))


def test_the_card_says_what_is_known_and_nothing_else(tmp_path):
    model, _ = pruned("llm-pruner", "llama", 0.3)
    facts = {
        "base": {"name": "Tiny", "licence": "MIT", "parameters": 1234567, "hub": "nobody/tiny"},
        "pruning": {"method": "llm-pruner", "label": "llm-pruner:r=0.3", "parameters": {"r": 0.3}, "achieved": 0.25},
    }
    folder, manifest = saved(model, tmp_path, facts=facts)
    card = (folder / "README.md").read_text()
    for words in (
        "license: mit",
        "| Licence of the base | MIT |",
        "base_model: nobody/tiny",
        "1,234,567",
        "`r=0.3`",
        "0.2500",
        manifest["reason"],
    ):
        assert words in card
    for words in ("Calibration", "Measured", "Cost of rounding", "Padding", "None", "null"):
        assert words not in card
    entry = {"perplexity": 21.5, "tokens": 1020, "window": 256}
    task = {"main": "acc", "metrics": {"acc": {"value": 0.5, "stderr": None}}, "documents": 8, "available": 80}
    save_load.complete(folder, {"measured": {"perplexity": {"wiki": entry}, "tasks": {"piqa": task}}})
    card = (folder / "README.md").read_text()
    assert "| perplexity of wiki | 21.500 | 1,020 tokens, windows of 256 |" in card
    assert "| piqa, acc | 0.5000 | 8 of 80 documents |" in card
    assert "license: mit" in card
    save_load.load(folder)


def test_the_card_counts_experts_and_what_a_token_is_computed_with(tmp_path):
    model = Decoder(tiny("mixtral", layers=3))
    model.set_layers(list(model.layers)[:2])
    whole = active_parameters(model)
    methods.make("expert-random").prune(model, calibration(), 0.3)
    folder, manifest = saved(model, tmp_path)
    experts = manifest["experts"]
    assert 2 <= experts["count"] < 8 and (experts["layers"], experts["taken"]) == (2, 2)
    one = sum(matrix.numel() for matrix in model.layers[0].experts.matrices["experts"])
    assert experts["active_parameters"] == parameters(model) - 2 * (experts["count"] - 2) * one < whole
    card = (folder / "README.md").read_text()
    assert f"| Experts | {experts['count']} in each of 2 layers; a token takes 2 |" in card
    assert f"| Parameters for one token | {experts['active_parameters']:,} |" in card
    assert "Experts" not in (saved(Decoder(tiny("llama")), tmp_path / "dense")[0] / "README.md").read_text()


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("method", ["flap", "wanda-sp", "minitron-width", "llm-pruner"])
def test_uniform_widths_load_in_stock_transformers(method, family, ids, tmp_path):
    model = Decoder(tiny(family))
    dense = parameters(model)
    pruner = methods.make(method, {"uniform": True})
    decisions = pruner.prune(model, calibration(), 0.25)
    folder, manifest = saved(model, tmp_path)
    assert manifest["loads_with"] == "transformers", manifest["reason"]
    layers = manifest["structure"]["layers"]
    assert all(layer == layers[0] for layer in layers)
    assert layers[0] != save_load.structure_of(Decoder(tiny(family)))["layers"][0]
    assert parameters(model) == decisions["parameters"]
    assert 1 - parameters(model) / dense == pytest.approx(0.25, abs=0.01)
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert torch.allclose(stock(ids).logits, logits(model, ids), atol=1e-5)


def test_whoever_may_read_the_configuration_may_read_the_weights(tmp_path):
    folder, _ = saved(Decoder(tiny("llama")), tmp_path, shard_bytes=50_000)
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


@pytest.mark.parametrize(
    ("family", "dtype", "wide"),
    [
        ("glm4_moe", torch.bfloat16, ("e_score_correction_bias", "gate.weight")),
        ("glm4_moe", torch.float16, ("e_score_correction_bias", "gate.weight")),
        ("gpt_oss", torch.float16, ("layernorm", "norm")),
        ("gpt_oss", torch.bfloat16, ()),
    ],
)
@pytest.mark.parametrize("method", ["drop-tail", "llm-drop"])  # stored as transformers does, and as it does not
def test_what_a_class_keeps_in_float32_is_stored_and_cast_so(family, dtype, wide, method, tmp_path):
    """A bias near 3 in bfloat16 is a multiple of 1/64, and the order of experts another."""
    given = tiny(family)
    for name, tensor in given.state_dict().items():
        if any(part in name for part in wide):
            tensor.copy_(3 + 0.01 * torch.rand_like(tensor))
    given.save_pretrained(tmp_path / "dense")

    def loaded(as_: torch.dtype) -> Decoder:
        return Decoder(AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=as_).eval())

    model, made = loaded(dtype), loaded(torch.float32)
    held = {name: tensor.dtype for name, tensor in model.model.state_dict().items()}
    kept = {name for name, of in held.items() if of == torch.float32}
    assert bool(kept) == bool(wide) and all(any(part in name for part in wide) for name in kept)
    made.cast(dtype)
    for name, tensor in made.model.state_dict().items():
        assert tensor.dtype == held[name] and torch.equal(tensor, model.model.state_dict()[name]), name
    for one, written in ((model, None), (loaded(torch.float32), dtype)):
        methods.make(method).prune(one, calibration(), 0.2)
        folder = tmp_path / f"{written}"
        manifest = save_load.save(one, folder, dtype=written)
        assert ("rounding" in manifest) == (written is not None)
        again = save_load.load(folder).model.state_dict()
        for name, tensor in one.model.state_dict().items():
            assert again[name].dtype == (torch.float32 if any(part in name for part in wide) else dtype), name
            assert torch.equal(again[name], tensor.to(again[name].dtype)), name
