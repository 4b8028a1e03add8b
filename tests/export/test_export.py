"""Models out of runs, as a user asks for them: saved, exported, verified, pruned further, written as GGUF."""

from __future__ import annotations

import json
import shutil
import weakref

import pytest
import torch
from conftest import tiny
from tiny_methods import calibration, logits, pruned
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as kinds
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import methods
from bench.cli.main import main
from bench.data import pretrained as named
from bench.export import deci, gguf_file
from bench.export import write as export
from bench.records.run_folder import load_run
from bench.run.saving import IN_MEMORY, RELOADED, wanted_dtype
from methods.checkpoint import save_load
from methods.errors import UserError
from methods.files import sha256
from methods.model.decoder import Decoder
from methods.model.residual_map import put_map
from methods.model.structures import keep_channels, keep_kv_groups


@pytest.fixture(scope="module")
def run_with(model_folder, text_file, tmp_path_factory):
    """Run methods on a tiny Llama; returns the run's folder."""

    def run(*more: str, model=model_folder, out=None):
        folder = out or tmp_path_factory.mktemp("runs") / "run"
        text = str(text_file)
        code = main(
            [
                *("run", "--model", str(model), "--texts", text, "--calibration", text, "--tasks", "none"),
                *("--window", "32", "--windows", "4", "--calibration-sequences", "4", "--calibration-length", "24"),
                *("--profile", "smoke", "--device", "cpu", "--speed-rounds", "0", "--no-checks", "--out", str(folder)),
                *more,
            ]
        )
        assert code == 0
        return folder

    return run


ASKED = ["--methods", "drop-tail,slicegpt,llm-pruner:sequences=4,tokens=16", "--ratio", "0.3"]


@pytest.fixture(scope="module")
def plain(run_with):
    """A run that saved no model."""
    return run_with(*ASKED)


@pytest.fixture(scope="module")
def saving(run_with):
    return run_with(*ASKED, "--save-models")


def by_label(folder) -> dict:
    return {record.cell["label"].partition(":")[0]: record for record in load_run(folder)}


def refused(capsys, *arguments: str) -> str:
    """The one line of a mistake."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_run_saves_its_pruned_models_and_says_so(saving, plain):
    records, unsaved = by_label(saving), by_label(plain)
    assert not (plain / "models").exists()
    assert "saved" not in records["dense"].measured
    for name in ("drop-tail", "slicegpt", "llm-pruner"):
        kept = records[name].measured["saved"]
        folder = saving / kept["folder"]
        manifest = save_load.read_manifest(folder)
        assert kept["loads_with"] == manifest["loads_with"] == ("transformers" if name == "drop-tail" else "prunebench")
        assert kept["bytes"] == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        assert manifest["pruning"]["requested"] == 0.3
        assert manifest["pruning"]["achieved"] == records[name].measured["ratio"]
        assert manifest["pruning"]["parameters"] == records[name].cell["parameters"]
        assert manifest["pruning"]["calibration"]["sha256"] == records[name].decisions["calibration"]["sha256"]
        assert manifest["base"]["name"] == "tiny-llama"
        assert manifest["base"]["weights_sha256"] == records[name].measured["weights_sha256"]
        # the words of the text stand for a path, which the card does not tell
        assert manifest["pruning"]["calibration"]["source"] == "words.txt"
        (figures,) = manifest["measured"]["perplexity"].values()
        assert figures["perplexity"] == unsaved[name].measured["perplexity"].popitem()[1]["perplexity"]
        assert manifest["measured"]["model"] == RELOADED
        assert f"{figures['perplexity']:.3f}" in (folder / "README.md").read_text()


def test_a_saved_model_is_measured_as_it_loads_again(run_with, plain, monkeypatch):
    """What is measured is what comes back from the disk: here a model with another head comes back."""
    load = save_load.load

    def other(*args, **options):
        model = load(*args, **options)
        model.embed.weight.data *= 0.5
        return model

    monkeypatch.setattr(export.save_load, "load", other)
    folder = run_with("--methods", "drop-tail", "--ratio", "0.3", "--save-models")
    measured, expected = by_label(folder)["drop-tail"].measured, by_label(plain)["drop-tail"].measured
    assert measured["perplexity"].popitem()[1]["perplexity"] != expected["perplexity"].popitem()[1]["perplexity"]
    assert measured["parameters"] == expected["parameters"]


def test_a_saved_dtype_is_in_the_record_the_card_and_the_key(run_with, plain):
    folder = run_with("--methods", "drop-tail", "--ratio", "0.3", "--save-dtype", "bfloat16")
    record = by_label(folder)["drop-tail"]
    assert record.measured["saved"]["dtype"] == "bfloat16"
    assert record.measured["saved"]["rounding"]["kl"] > 0
    assert {path.stem for path in (folder / "cells").iterdir()}.isdisjoint(
        {path.stem for path in (plain / "cells").iterdir()}
    )
    kept = save_load.load(folder / record.measured["saved"]["folder"])
    assert {parameter.dtype for parameter in kept.model.parameters()} == {torch.bfloat16}


def test_a_model_is_made_anew_from_its_record(plain, saving, tmp_path, capsys):
    """Bit for bit the model that another run saved."""
    for name in ("drop-tail", "slicegpt", "llm-pruner"):
        kept = saving / by_label(saving)[name].measured["saved"]["folder"]
        assert main(["export", str(plain), name, "--to", str(tmp_path / name)]) == 0
        made = save_load.read_manifest(tmp_path / name)
        assert made["weights"] == save_load.read_manifest(kept)["weights"]
        assert made["measured"]["model"] == IN_MEMORY
        assert f"{made['parameters']:,} parameters" in capsys.readouterr().out


def test_a_saved_model_is_copied(saving, tmp_path):
    kept = saving / by_label(saving)["slicegpt"].measured["saved"]["folder"]
    assert main(["export", str(saving), "slicegpt", "--to", str(tmp_path / "copy")]) == 0
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (kept, tmp_path / "copy")]
    assert contents[0] == contents[1]


def test_a_copy_is_checked(saving, tmp_path, capsys):
    run = shutil.copytree(saving, tmp_path / "run")
    kept = run / by_label(run)["slicegpt"].measured["saved"]["folder"]
    weights = kept / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "bytes and should have" in refused(capsys, "export", run, "slicegpt", "--to", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_export_pads_rounds_and_shards(plain, tmp_path, ids):
    target = tmp_path / "padded"
    options = ["--pad-to-uniform", "--save-dtype", "float16", "--shard-mb", "1"]
    assert main(["export", str(plain), "llm-pruner", "--to", str(target), *options]) == 0
    manifest = save_load.read_manifest(target)
    assert (manifest["loads_with"], manifest["dtype"]) == ("transformers", "float16")
    assert manifest["rounding"]["tokens"] == 24
    assert manifest["padding"]["parameters"] == by_label(plain)["llm-pruner"].measured["parameters"]
    assert AutoModelForCausalLM.from_pretrained(target)(ids).logits.isfinite().all()


def test_a_record_that_no_longer_holds_is_refused(run_with, model_folder, text_file, tmp_path, capsys):
    model = shutil.copytree(model_folder, tmp_path / "tiny-llama")
    text = tmp_path / "words.txt"
    shutil.copy(text_file, text)
    run = run_with(*("--methods", "drop-tail,drop:layers=1", "--ratio", "0.3", "--calibration", str(text)), model=model)
    text.write_text("\n\n".join(reversed(text.read_text().split("\n\n"))))
    assert "calibration tokens are not those of the record" in refused(
        capsys, "export", run, "drop-tail", "--to", tmp_path / "new"
    )
    shutil.copy(text_file, text)
    path = next((run / "cells").glob("drop-tail*"))
    record = json.loads(path.read_text())
    record["decisions"]["removed_layers"][0] -= 1
    path.write_text(json.dumps(record))
    assert "does not remove here what it removed for the record" in refused(
        capsys, "export", run, "drop-tail", "--to", tmp_path / "new"
    )
    tiny("llama", seed=1).save_pretrained(model)
    assert "is not the model of the record" in refused(capsys, "export", run, "drop:layers=1", "--to", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_mistakes_of_export_are_one_line(plain, tmp_path, capsys):
    assert "say where the model goes" in refused(capsys, "export", plain, "drop-tail")
    assert "'nothing' is no cell" in refused(capsys, "export", plain, "nothing", "--to", tmp_path / "x")
    assert "'d' names 2 cells" in refused(capsys, "export", plain, "d", "--to", tmp_path / "x")
    assert "it has no cells/*.json" in refused(capsys, "export", tmp_path, "drop-tail", "--to", tmp_path / "x")
    assert "save-dtype is auto, float32" in refused(
        capsys, "export", plain, "drop-tail", "--to", tmp_path / "x", "--save-dtype", "int8"
    )
    assert "shard-mb is" in refused(capsys, "export", plain, "drop-tail", "--to", tmp_path / "x", "--shard-mb", "0")
    assert "padding does not make this model uniform" in refused(
        capsys, "export", plain, "slicegpt", "--to", tmp_path / "x", "--pad-to-uniform"
    )
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    assert "exists and is not empty" in refused(capsys, "export", plain, "drop-tail", "--to", tmp_path / "taken")
    assert "exists; name a new one" in refused(
        capsys, "export", plain, "drop-tail", "--gguf", tmp_path / "taken" / "file"
    )
    assert not (tmp_path / "x").exists()


def test_a_cell_without_a_model_says_why(plain, tmp_path, capsys):
    run = shutil.copytree(plain, tmp_path / "run")
    path = next((run / "cells").glob("slicegpt*"))
    record = json.loads(path.read_text()) | {"status": "unsupported", "error": "no rotation survives"}
    path.write_text(json.dumps(record))
    message = refused(capsys, "export", run, "slicegpt", "--to", tmp_path / "x")
    assert "has no model: unsupported, no rotation survives" in message


def test_verify_prints_a_line_for_each_check(saving, tmp_path, capsys):
    for name in ("drop-tail", "slicegpt", "llm-pruner"):
        capsys.readouterr()
        assert main(["verify", str(saving / by_label(saving)[name].measured["saved"]["folder"])]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1] for line in lines] == [
            "files:",
            "shapes:",
            "loads:",
            "parameters:",
            "logits:",
            "cache:",
        ]
        assert all(line.startswith("ok ") for line in lines)
    assert "prunebench.json cannot be read" in refused(capsys, "verify", tmp_path)


def spoil_weights(folder):
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))


def spoil_config(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 48', '"intermediate_size": 47'))


def spoil_count(folder):
    path = folder / "prunebench.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parameters": 1}))


def spoil_claim(folder):
    path = folder / "prunebench.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"loads_with": "prunebench"}))


def spoil_numbers(folder):
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values()))[0] = float("nan")
    save_file(tensors, weights, {"format": "pt"})
    path = folder / "prunebench.json"
    entry = {"bytes": weights.stat().st_size, "sha256": sha256(weights)}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": {weights.name: entry}}))


SPOILT = {
    spoil_weights: ("files", "its sha256 differs"),
    spoil_config: ("shapes", "config.json and the weights disagree"),
    spoil_count: ("parameters", "and the card says 1"),
    spoil_claim: ("loads", "with transformers, and the card says prunebench"),
    spoil_numbers: ("logits", "not finite"),
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_verify_finds_what_is_wrong(spoil, saving, tmp_path, capsys):
    source = saving / by_label(saving)["drop-tail"].measured["saved"]["folder"]
    folder = shutil.copytree(source, tmp_path / "model")
    spoil(folder)
    capsys.readouterr()
    assert main(["verify", str(folder)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1
    name, words = SPOILT[spoil]
    assert failed[0].startswith(f"FAILED {name}: ")
    assert words in failed[0]


def test_a_saved_model_is_a_model_of_the_command_line(run_with, saving, text_file, capsys, tmp_path):
    """Pruned once more, saved once more; the card tells both steps."""
    first = saving / by_label(saving)["llm-pruner"].measured["saved"]["folder"]
    run = run_with("--methods", "drop-tail", "--ratio", "0.2", "--save-models", model=first)
    records = by_label(run)
    assert records["dense"].measured["parameters"] == by_label(saving)["llm-pruner"].measured["parameters"]
    (before,) = records["dense"].measured["perplexity"].values()
    (after,) = by_label(saving)["llm-pruner"].measured["perplexity"].values()
    assert before["perplexity"] == after["perplexity"]
    second = run / records["drop-tail"].measured["saved"]["folder"]
    steps = save_load.read_manifest(second)["base"]["pruning"]
    assert [step["method"] for step in steps] == ["llm-pruner"]
    assert "The base had itself been pruned" in (second / "README.md").read_text()
    spoilt = shutil.copytree(first, tmp_path / "spoilt")
    spoil_config(spoilt)
    arguments = ("run", "--methods", "drop-tail", "--ratio", "0.2", "--out", tmp_path / "never")
    assert "config.json and the weights disagree" in refused(capsys, *arguments, "--model", spoilt)
    assert not (tmp_path / "never").exists()
    changed = shutil.copytree(first, tmp_path / "changed")
    spoil_weights(changed)
    small = ("--texts", "none", "--tasks", "none", "--no-checks", "--speed-rounds", "0", "--calibration", text_file)
    small = (*small, "--calibration-sequences", "2", "--calibration-length", "8")
    assert main([str(argument) for argument in (*arguments, *small, "--model", changed)]) == 2
    assert "is not the file that was saved" in capsys.readouterr().err.splitlines()[-1]


def test_what_a_model_folder_says_of_itself(tmp_path, model_folder):
    assert named.licence("smollm2-135m") == "Apache-2.0"
    assert named.licence(str(model_folder)) is None
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: 'mit'\n---\n# A model\nlicense: none\n")
    assert named.licence(str(folder)) == "mit"
    assert named.stored_dtype(str(folder)) == "float32"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert wanted_dtype("auto", str(folder), "float32") == torch.bfloat16
    assert wanted_dtype("float16", str(folder), "float32") == torch.float16


def bpe(bos: bool = True, *, fallback: bool = False, regex: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 260 tokens with two merges."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1} | {byte: number for number, byte in enumerate(bytes_, start=2)}
    vocabulary |= {"th": 258, "the": 259}
    tokenizer = Tokenizer(kinds.BPE(vocabulary, merges=[("t", "h"), ("th", "e")], byte_fallback=fallback))
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if regex:
        from tokenizers import Regex

        pieces = [pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        split = pre_tokenizers.Sequence(pieces)
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>")


def droped(family: str, **options: object) -> Decoder:
    model = Decoder(tiny(family, vocab_size=260, **options))
    methods.make("drop", {"layers": "1+3"}).prune(model, calibration(), 0.0)
    return model


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
    gguf_file.write(model, tokenizer, tmp_path / "model.gguf", dtype, "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    again = Decoder(AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32))
    rounded = {name: gguf_file.rounded(tensor, dtype) for name, tensor in model.model.state_dict().items()}
    model.model.load_state_dict(rounded)
    assert len(again.layers) == 4
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-6)
    words = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert words("the end, 12 of them")["input_ids"] == tokenizer("the end, 12 of them")["input_ids"]


def test_a_gguf_file_of_uniform_widths(ids, tmp_path):
    model = Decoder(tiny("llama", vocab_size=260))
    methods.make("minitron-width", {}).prune(model, calibration(), 0.2)
    gguf_file.write(model, bpe(), tmp_path / "model.gguf", torch.float32, "tiny")
    again = Decoder(AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32))
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-6)


def test_rows_are_interleaved_as_rotary_halves():
    rows = torch.arange(8)[:, None] * torch.ones(1, 3)
    assert gguf_file.interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


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
        gguf_file.write(model, tokenizer, tmp_path / "model.gguf", dtype, "tiny")
    assert largest <= alive.peak <= 6 * largest < whole / 4, (alive.peak / largest, whole / largest)


def uneven(family: str, *, gone: str = "", biases: bool = False, **options: object) -> Decoder:
    """A model of which each layer has other sizes; `gone` names removed parts, as in "attention 0, mlp 2"."""
    model = Decoder(tiny(family, vocab_size=260, **options))
    layers = model.layers
    for number, layer in enumerate(layers):
        keep_channels(layer, range(48 - 5 * number))
    keep_kv_groups(layers[2], [1])
    if biases:
        for matrix in (layers[1].down, layers[2].out):
            matrix.bias = torch.nn.Parameter(torch.linspace(-1, 1, 32))
    for part, number in (name.split() for name in filter(None, gone.split(", "))):
        getattr(layers[int(number)], f"remove_{part}")()
    model.set_layers(layers)
    return model


def with_a_map() -> Decoder:
    model = Decoder(tiny("llama", vocab_size=260))
    put_map(model, 1, torch.eye(32))
    return model


DECI = {
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
    contents = gguf_file.write(model, bpe(), tmp_path / "model.gguf", torch.float32, "tiny")
    assert deci.architecture(tmp_path / "model.gguf") == "deci"
    again = deci.read(tmp_path / "model.gguf", torch.float32)
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-6)
    put = sum(parameter.numel() for parameter in again.model.parameters())
    put -= sum(parameter.numel() for parameter in model.model.parameters())
    assert contents.form.zeros == put


def test_what_llama_cpp_cannot_do_without_is_zeros():
    """One group of heads where the first attention is gone, 32 channels where an MLP is; an empty layer goes whole."""
    gone = "attention 0, attention 1, mlp 2, attention 3, mlp 3"
    sizes = gguf_file.contents_of(uneven("llama", gone=gone)).form.layers
    assert [(one.H, one.G, one.I) for one in sizes] == [(2, 1, 48), (0, 0, 43), (2, 1, 32), (4, 2, 28), (4, 2, 23)]


def test_channels_are_filled_up_to_a_multiple(ids, tmp_path):
    model = uneven("llama", gone="mlp 1")
    contents = gguf_file.write(model, bpe(), tmp_path / "model.gguf", torch.float32, "tiny", multiple=16)
    assert [one.I for one in contents.form.layers] == [48, 32, 48, 48, 32, 32]
    again = deci.read(tmp_path / "model.gguf", torch.float32)
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-6)


def test_a_file_that_is_cut_short_is_no_model(tmp_path):
    path = tmp_path / "model.gguf"
    gguf_file.write(uneven("llama"), bpe(), path, torch.float32, "tiny")
    whole = path.read_bytes()
    for size in (10, 2000, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"\w"):
            deci.read(path, torch.float32)


NO_GGUF = {
    "gemma": (lambda: droped("gemma"), "GGUF is written for llama, mistral, qwen2, qwen3; this model is a gemma"),
    "norms of heads": (lambda: uneven("qwen3"), "GGUF's deci has no place for model.layers.0.self_attn.q_norm"),
    "query biases": (lambda: uneven("qwen2", use_sliding_window=False), "no query bias of 16 numbers in layer 2 of"),
    "map": (with_a_map, "GGUF holds no such layers: a linear map of the residual stands behind layer 1"),
    "sliced": (lambda: pruned("slicegpt", "llama", 0.3)[0], "the residual stream has been cut"),
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
        gguf_file.write(make(), bpe(), tmp_path / "model.gguf", torch.float32, "tiny")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_gguf_has_no_word_for_is_refused(tmp_path, model_folder):
    words = AutoTokenizer.from_pretrained(model_folder)
    with pytest.raises(UserError, match="written for BPE tokenizers with merges; this one is a WordLevel"):
        gguf_file.write(droped("llama"), words, tmp_path / "model.gguf", torch.float32, "tiny")
    with pytest.raises(UserError, match="no word for how this tokenizer splits text: Split, ByteLevel"):
        gguf_file.write(droped("llama"), bpe(regex="[a-z]"), tmp_path / "model.gguf", torch.float32, "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_split_that_gguf_has_a_word_for(tmp_path):
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    tokenizer = bpe(regex=GGUF_PRE_TOKENIZER_SPLITS["qwen2"])
    gguf_file.write(droped("llama"), tokenizer, tmp_path / "model.gguf", torch.float32, "tiny")
    assert (
        AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")("a 12")["input_ids"]
        == tokenizer("a 12")["input_ids"]
    )


@pytest.mark.default_model
def test_the_default_model_goes_to_gguf_and_back(tmp_path):
    loaded, tokenizer = named.load("smollm2-135m", torch.device("cpu"), torch.float32)
    model = Decoder(loaded)
    methods.make("drop", {"layers": "3-25"}).prune(model, calibration(), 0.0)
    gguf_file.write(model, tokenizer, tmp_path / "model.gguf", torch.float32, "SmolLM2-135M-Instruct")
    again = Decoder(AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32))
    prompt = tokenizer("The Eiffel Tower is located in", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(logits(again, prompt), logits(model, prompt), rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf").chat_template == tokenizer.chat_template


def test_uniform_cuts_widths_alike_and_says_so_in_the_label(run_with, capsys):
    asked = ["--methods", "llm-pruner:sequences=4,tokens=16,flap,drop-tail", "--ratio", "0.3", "--uniform"]
    folder = run_with(*asked, "--save-models")
    labels = {record.cell["label"]: record.measured.get("saved") for record in load_run(folder)}
    uniform = {"llm-pruner:sequences=4,tokens=16,uniform=True", "flap:uniform=True", "drop-tail"}
    assert set(labels) == uniform | {"dense"}
    assert {labels[label]["loads_with"] for label in uniform} == {"transformers"}


def test_uniform_is_refused_where_there_is_no_such_variant(model_folder, text_file, capsys, tmp_path):
    base = ["run", "--model", model_folder, "--calibration", text_file, "--tasks", "none", "--texts", "none"]
    for method in ("2ssp", "slicegpt", "blockpruner", "finercut", "llm-drop"):
        line = refused(capsys, *base, "--methods", method, "--ratio", "0.3", "--uniform", "--out", tmp_path / "x")
        assert f"--uniform: {method} has no variant that stock transformers loads, since it" in line
    line = refused(capsys, *base, "--methods", "llm-pruner:r=0.2", "--uniform", "--out", tmp_path / "x")
    assert "uniform cuts every layer alike" in line


def test_a_compensation_is_part_of_the_label_and_of_the_ratio(run_with):
    asked = ["--methods", "drop-tail,shortgpt+scale", "--ratio", "0.3", "--compensate", "ghost"]
    folder = run_with(*asked, "--set", "drop-tail+ghost.ghost.ridge=0.5", "--save-models")
    records = {record.cell["method"]: record for record in load_run(folder)}
    assert set(records) == {"dense", "drop-tail+ghost", "shortgpt+scale"}
    patched = records["drop-tail+ghost"]
    assert patched.cell["parameters"]["ghost.ridge"] == 0.5
    assert patched.measured["parameters"] > 0
    assert patched.measured["saved"]["loads_with"] == "prunebench"
    assert records["shortgpt+scale"].measured["saved"]["loads_with"] == "transformers"
    assert patched.cell["inputs"]["method_sha256"] != records["shortgpt+scale"].cell["inputs"]["method_sha256"]
