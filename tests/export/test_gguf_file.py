"""Pruned models as GGUF files, and read again."""

from __future__ import annotations

import weakref

import gguf
import pytest
import torch
from conftest import tiny
from tiny_methods import calibration, logits, pruned
from tokenizers import pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoTokenizer
from uneven_models import bpe, droped, uneven, with_a_map

import methods
from bench.data import pretrained as named
from bench.data.gguf import architecture_of_file, read
from bench.export import engine_form, gguf_file
from methods.errors import CheckpointError, Unwritable, UserError
from methods.model.decoder import Decoder

FILES = {
    "llama, tied": ("llama", {}),
    "llama": ("llama", {"tie_word_embeddings": False}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", {"head_dim": 128}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", FILES)
def test_a_gguf_file_is_the_model_again(kind, dtype, ids, tmp_path):
    model, tokenizer = droped(FILES[kind][0], **FILES[kind][1]), bpe()
    gguf_file.write_gguf(model, tokenizer, tmp_path / "model.gguf", dtype, "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    again = Decoder(AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32))
    rounded = {name: gguf_file.round_tensor(name, tensor, dtype) for name, tensor in model.model.state_dict().items()}
    model.model.load_state_dict(rounded)
    assert len(again.layers) == 4
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-6)
    words = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert words("the end, 12 of them")["input_ids"] == tokenizer("the end, 12 of them")["input_ids"]


def test_numbers_that_a_dtype_does_not_hold_are_refused(tmp_path):
    model = droped("llama")
    model.layers[0].down.weight.data[0, 0] = 1e5
    with pytest.raises(CheckpointError, match=r"mlp.down_proj.weight has numbers that float16 does not hold; store it"):
        gguf_file.write_gguf(model, bpe(), tmp_path / "model.gguf", torch.float16, "tiny")
    with pytest.raises(CheckpointError, match=r"mlp.down_proj.weight has numbers that float16 does not hold; store it"):
        engine_form.write_nemotron(model, bpe(), tmp_path / "nas", torch.float16, shard_bytes=10**9)
    assert list(tmp_path.iterdir()) == []


def test_the_channels_of_zeros_for_a_removed_mlp_are_a_multiple_too():
    model = uneven("llama", heads=(), gone="mlp 1")
    form = engine_form.form_of_model(model, "GGUF", multiple=64, heads=(2, 1), channels=32)
    assert {layer.I % 64 for layer in form.layers} == {0}
    assert form.layers[1].I == 64


def test_a_gguf_file_of_uniform_widths(ids, tmp_path):
    model = Decoder(tiny("llama", vocab_size=260))
    methods.make("minitron-width", {}).prune(model, calibration(), 0.2)
    gguf_file.write_gguf(model, bpe(), tmp_path / "model.gguf", torch.float32, "tiny")
    again = Decoder(AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32))
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-6)


def test_rows_are_interleaved_as_rotary_halves():
    rows = torch.arange(8)[:, None] * torch.ones(1, 3)
    assert gguf_file.reorder_interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


class Float32Alive(TorchDispatchMode):
    """Counts the bytes of the float32 tensors that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor) and one.dtype == torch.float32 and one.device.type == "cpu":
                self.count(one.untyped_storage())
        return made

    def count(self, storage) -> None:
        if (key := storage._cdata) not in self.known:
            self.known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.gone, key, storage.nbytes())

    def gone(self, key: int, size: int) -> None:
        self.known.remove(key)
        self.now -= size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_gguf_file_takes_a_few_matrices_in_float32_and_never_the_model(dtype, tmp_path, monkeypatch):
    """Of twelve layers, none of whose matrices is as much as the logits of the probe and a forward's states."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # threads are not counted
    model = Decoder(tiny("llama", layers=12, hidden_size=64, intermediate_size=176, vocab_size=260).to(dtype))
    largest = 4 * max(parameter.numel() for parameter in model.model.parameters())
    whole = 4 * sum(parameter.numel() for parameter in model.model.parameters())
    tokenizer = bpe()
    with Float32Alive() as alive:
        gguf_file.write_gguf(model, tokenizer, tmp_path / "model.gguf", dtype, "tiny")
    assert largest <= alive.peak <= 6 * largest < whole / 4, (alive.peak / largest, whole / largest)


DECI = {
    "qwen2": lambda: uneven("qwen2", use_sliding_window=False, gone="attention 0"),
    "widths and heads": lambda: uneven("llama"),
    "untied": lambda: uneven("llama", tie_word_embeddings=False),
    "mistral": lambda: uneven("mistral", sliding_window=None),
    "biases": lambda: uneven("llama", biases=True),
    "biases everywhere": lambda: droped("llama", attention_bias=True, mlp_bias=True),
    "attention gone": lambda: uneven("llama", gone="attention 1, attention 5"),
    "first attention gone": lambda: uneven("llama", gone="attention 0"),
    "mlp gone": lambda: uneven("llama", gone="mlp 1, mlp 5", biases=True),
    "layers gone": lambda: uneven("llama", gone="attention 0, mlp 0, attention 3, mlp 3, attention 5, mlp 5"),
}


@pytest.mark.parametrize("kind", DECI)
def test_a_gguf_file_of_uneven_layers_is_the_model_again(kind, ids, tmp_path):
    model = DECI[kind]()
    contents = gguf_file.write_gguf(model, bpe(), tmp_path / "model.gguf", torch.float32, "tiny")
    assert architecture_of_file(tmp_path / "model.gguf") == "deci"
    again = read(tmp_path / "model.gguf", torch.float32)
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-6)
    put = sum(parameter.numel() for parameter in again.model.parameters())
    put -= sum(parameter.numel() for parameter in model.model.parameters())
    assert contents.form.zeros == put


@pytest.mark.parametrize("kind", ["qwen2", "attention gone"])
def test_a_gguf_file_of_uneven_layers_is_a_base_model(kind, ids, tmp_path):
    """As --model takes it: its shape without weights, its weights in a dtype, and its tokenizer."""
    model, file = DECI[kind](), tmp_path / "model.gguf"
    gguf_file.write_gguf(model, bpe(), file, torch.float32, "tiny")
    base, tokenizer = named.load(str(file), torch.device("cpu"), torch.float32)
    torch.testing.assert_close(logits(Decoder(base), ids), logits(model, ids), rtol=0, atol=1e-6)
    shell = named.make_shell(str(file))
    assert {name: one.shape for name, one in shell.state_dict().items()} == {
        name: one.shape for name, one in base.state_dict().items()
    }
    assert {one.device.type for one in shell.parameters()} == {"meta"}
    assert tokenizer("a 12 of them")["input_ids"] == bpe()("a 12 of them")["input_ids"]
    assert named.load_tokenizer(str(file)).eos_token == tokenizer.eos_token


def test_what_llama_cpp_cannot_do_without_is_zeros():
    """One group of heads where the first attention is gone, 32 channels where an MLP is; an empty layer goes whole."""
    gone = "attention 0, attention 1, mlp 2, attention 3, mlp 3"
    sizes = gguf_file.contents_of(uneven("llama", gone=gone)).form.layers
    assert [(one.H, one.G, one.I) for one in sizes] == [(2, 1, 48), (0, 0, 43), (2, 1, 32), (4, 2, 43), (4, 2, 38)]


def test_channels_are_filled_up_to_a_multiple(ids, tmp_path):
    model = uneven("llama", gone="mlp 1")
    contents = gguf_file.write_gguf(model, bpe(), tmp_path / "model.gguf", torch.float32, "tiny", multiple=16)
    assert [one.I for one in contents.form.layers] == [48, 32, 48, 48, 48, 48]
    again = read(tmp_path / "model.gguf", torch.float32)
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-6)


def test_a_file_that_is_cut_short_is_no_model(tmp_path):
    path = tmp_path / "model.gguf"
    gguf_file.write_gguf(uneven("llama"), bpe(), path, torch.float32, "tiny")
    whole = path.read_bytes()
    for size in (10, 2000, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"\w"):
            read(path, torch.float32)


READINGS = [
    lambda file: read(file, torch.float32),
    lambda file: named.load(str(file), torch.device("cpu"), torch.float32),
]


@pytest.mark.parametrize("model", [droped, uneven], ids=["through transformers", "by what it says"])
@pytest.mark.parametrize("lacks", ["blk.1.ffn_down.weight", "output_norm.weight"])
def test_a_file_that_lacks_weights_is_no_model(model, lacks, tmp_path):
    path = tmp_path / "model.gguf"
    gguf_file.write_gguf(model("llama"), bpe(), path, torch.float32, "tiny")
    written = path.read_bytes()
    assert written.count(lacks.encode()) == 1
    path.write_bytes(written.replace(lacks.encode(), lacks.replace("_", "-").encode()))
    for reading in READINGS:
        with pytest.raises(CheckpointError, match=r"cannot be read as GGUF: .*missing.*; copy or convert it again"):
            reading(path)


@pytest.mark.parametrize("model", [droped, uneven], ids=["through transformers", "by what it says"])
def test_a_part_of_a_split_file_is_refused_by_name(model, tmp_path, monkeypatch):
    path = tmp_path / "model-00001-of-00002.gguf"
    monkeypatch.setattr(gguf.GGUFWriter, "add_name", lambda writer, _: writer.add_uint16("split.count", 2))
    monkeypatch.setattr(gguf_file, "_read_back", lambda *_: None)  # which would refuse it too
    gguf_file.write_gguf(model("llama"), bpe(), path, torch.float32, "tiny")
    for reading in (*READINGS, lambda file: named.make_shell(str(file))):
        with pytest.raises(CheckpointError, match=rf"^{path} is one of 2 parts of a model; `llama-gguf-split --merge"):
            reading(path)


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), "positions are scaled by linear"),
        (lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.NONE), None),
        (lambda writer: writer.add_rope_scaling_factor(2.0), "positions are scaled in a way of its own"),
        (lambda writer: writer.add_uint32("deci.rope.dimension_count", 4), "it turns 4 of 8 dimensions of a head"),
    ],
)
def test_other_rotary_positions_of_a_foreign_file_are_refused(says, reason, tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    monkeypatch.setattr(gguf.GGUFWriter, "add_rope_dimension_count", lambda writer, _: says(writer))
    monkeypatch.setattr(gguf_file, "_read_back", lambda *_: None)  # which would refuse it too
    gguf_file.write_gguf(uneven("llama"), bpe(), path, torch.float32, "tiny")
    if reason is None:
        assert len(read(path, torch.float32).layers) == 6
    else:
        with pytest.raises(CheckpointError, match=reason):
            read(path, torch.float32)


@pytest.mark.parametrize(
    ("name", "other"),
    [("smollm", "gpt-2"), ("gpt-2", "smollm")],
)
def test_a_split_is_read_again(name, other, tmp_path):
    """The merges cross what a split keeps apart, digits, words and line ends, so that another split has other ids."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    splits = {"smollm": digits, "gpt-2": words}
    pairs = [("1", "2"), ("Ġ", "1"), ("a", "1"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("Ġ", "Ċ"), ("Ċ", "a"), ("Ġ", "a")]
    tokenizer = bpe(merges=pairs)
    tokenizer.backend_tokenizer.pre_tokenizer = splits[name]
    text = "a 12 a12 12\n\n  a \n\na   12, a\n"
    path = tmp_path / "model.gguf"
    gguf_file.write_gguf(Decoder(tiny("llama", vocab_size=266)), tokenizer, path, torch.float32, "tiny")
    found = gguf_file.read_tokenizer(path)
    assert gguf.GGUFReader(path).get_field("tokenizer.ggml.pre").contents() == name
    assert found(text)["input_ids"] == tokenizer(text)["input_ids"]
    found.backend_tokenizer.pre_tokenizer = splits[other]
    assert found(text)["input_ids"] != tokenizer(text)["input_ids"]


NO_GGUF = {
    "gemma": (lambda: droped("gemma"), "GGUF is written for llama, mistral, qwen2, qwen3; this model is a gemma"),
    "norms of heads": (lambda: uneven("qwen3"), "GGUF's deci has no place for model.layers.0.self_attn.q_norm"),
    "map": (with_a_map, "GGUF holds no such layers: a linear map of the residual stands behind layer 1"),
    "sliced": (lambda: pruned("slicegpt", "llama", 0.3)[0], "the residual stream has been cut"),
    "factors": (lambda: pruned("svd-llm", "llama", 0.3)[0], "of layer 0 is two factors of low rank"),
    "windows": (lambda: droped("mistral"), "has a sliding window"),
    "rotary": (
        lambda: droped("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
        "written for plain rotary positions",
    ),
    "activation, uneven": (lambda: uneven("llama", hidden_act="gelu"), "has no place for all of this model's; logits"),
    "activation": (lambda: droped("llama", hidden_act="gelu"), "has no place for all of this model's; logits differ"),
    "head width": (lambda: droped("qwen3"), "does not give this model back: .* and should be"),
}


@pytest.mark.parametrize("reason", NO_GGUF)
def test_what_gguf_cannot_hold_is_refused_with_the_reason(reason, tmp_path):
    make, words = NO_GGUF[reason]
    with pytest.raises(UserError, match=words) as caught:
        gguf_file.write_gguf(make(), bpe(), tmp_path / "model.gguf", torch.float32, "tiny")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_no_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match=r"model\.gguf cannot be written: File exists"):
        gguf_file.write_gguf(droped("llama"), bpe(), tmp_path / "file" / "model.gguf", torch.float32, "tiny")


def test_a_tokenizer_that_gguf_has_no_word_for_is_refused(tmp_path, model_folder):
    words = AutoTokenizer.from_pretrained(model_folder)
    with pytest.raises(UserError, match="written for BPE tokenizers with merges; this one is a WordLevel"):
        gguf_file.write_gguf(droped("llama"), words, tmp_path / "model.gguf", torch.float32, "tiny")
    with pytest.raises(UserError, match="no word for how this tokenizer splits text: Split, ByteLevel"):
        gguf_file.write_gguf(droped("llama"), bpe(regex="[a-z]"), tmp_path / "model.gguf", torch.float32, "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_split_that_gguf_has_a_word_for(tmp_path):
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    tokenizer = bpe(regex=GGUF_PRE_TOKENIZER_SPLITS["qwen2"])
    gguf_file.write_gguf(droped("llama"), tokenizer, tmp_path / "model.gguf", torch.float32, "tiny")
    assert (
        AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")("a 12")["input_ids"]
        == tokenizer("a 12")["input_ids"]
    )


@pytest.mark.nightly
@pytest.mark.default_model
def test_the_default_model_goes_to_gguf_and_back(tmp_path):
    loaded, tokenizer = named.load("smollm2-135m", torch.device("cpu"), torch.float32)
    model = Decoder(loaded)
    methods.make("drop", {"layers": "3-25"}).prune(model, calibration(), 0.0)
    gguf_file.write_gguf(model, tokenizer, tmp_path / "model.gguf", torch.float32, "SmolLM2-135M-Instruct")
    again = Decoder(AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32))
    prompt = tokenizer("The Eiffel Tower is located in", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(logits(again, prompt), logits(model, prompt), rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf").chat_template == tokenizer.chat_template
