"""Models out of runs, as a user asks for them: saved, exported, verified, pruned further, written as GGUF."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import names_of, tiny, trusting_all
from made_records import with_measured
from transformers import AutoModelForCausalLM
from uneven_models import bpe

from bench.cli.main import main
from bench.data import pretrained as named
from bench.export import engine_check
from bench.export import write as export
from bench.inference import llama_cpp
from bench.plan.trust import Trust
from bench.records.run_folder import is_run, load_run
from bench.runs.saving import RELOADED, dtype_to_save
from methods.checkpoint import save_load
from methods.compensation.ghost import Ghost
from methods.depth.layer_drop import DropTail
from methods.files import hash_file


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
    return {record.cell.label.partition(":")[0]: record for record in load_run(folder)}


def refused(capsys, *arguments: str) -> str:
    """The one line of a mistake."""
    if arguments[0] == "export" and is_run(arguments[1]):
        arguments = (*arguments, *trusting_all(arguments[1]))
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_run_saves_its_pruned_models_and_says_so(saving, plain):
    records, unsaved = by_label(saving), by_label(plain)
    assert not (plain / "models").exists()
    assert records["dense"].measured.saved is None
    for name in ("drop-tail", "slicegpt", "llm-pruner"):
        kept = records[name].measured.saved
        folder = saving / kept.folder
        manifest = save_load.read_manifest(folder)
        assert kept.loads_with == manifest["loads_with"] == ("transformers" if name == "drop-tail" else "prunebench")
        assert kept.bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        assert manifest["pruning"]["requested"] == 0.3
        assert manifest["pruning"]["achieved"] == records[name].measured.ratio
        assert manifest["pruning"]["parameters"] == records[name].cell.parameters
        assert manifest["pruning"]["calibration"]["sha256"] == records[name].decisions["calibration"]["sha256"]
        assert manifest["base"]["name"] == "tiny-llama"
        assert manifest["base"]["weights_sha256"] == records[name].measured.weights_sha256
        # the words of the text stand for a path, which the card does not tell
        assert manifest["pruning"]["calibration"]["source"] == "words.txt"
        (figures,) = manifest["measured"]["perplexity"].values()
        assert figures["perplexity"] == unsaved[name].measured.text_scores.popitem()[1].perplexity
        assert manifest["measured"]["model"] == RELOADED
        assert f"{figures['perplexity']:.3f}" in (folder / "README.md").read_text()


def test_an_export_has_the_dtype_of_the_run_unless_it_is_told_otherwise(run_with, tmp_path, capsys):
    """The base's weights are in float32."""
    run = run_with("--methods", "drop-tail", "--ratio", "0.3", "--dtype", "bfloat16")
    for more, dtype, line in (
        ((), "bfloat16", " MB, bfloat16, "),
        (("--save-dtype", "auto"), "float32", " MB, float32 (measured in bfloat16), "),
    ):
        capsys.readouterr()
        asked = ["export", str(run), *trusting_all(run), "drop-tail", "--to", str(tmp_path / dtype), *more]
        assert main(asked) == 0
        assert line in capsys.readouterr().out
        assert save_load.read_manifest(tmp_path / dtype)["dtype"] == dtype


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
    assert measured.text_scores.popitem()[1].perplexity != expected.text_scores.popitem()[1].perplexity
    assert measured.parameters == expected.parameters


def test_a_saved_dtype_is_in_the_record_the_card_and_the_key(run_with, plain):
    folder = run_with("--methods", "drop-tail", "--ratio", "0.3", "--save-dtype", "bfloat16")
    record = by_label(folder)["drop-tail"]
    assert record.measured.saved.dtype == "bfloat16"
    assert record.measured.saved.rounding["kl"] > 0
    assert {path.stem for path in (folder / "cells").iterdir()}.isdisjoint(
        {path.stem for path in (plain / "cells").iterdir()}
    )
    kept = save_load.load(folder / record.measured.saved.folder)
    assert {parameter.dtype for parameter in kept.model.parameters()} == {torch.bfloat16}


def test_a_model_is_made_anew_from_its_record(plain, saving, tmp_path, capsys):
    """Bit for bit the model that another run saved."""
    for name in ("drop-tail", "slicegpt", "llm-pruner"):
        kept = saving / by_label(saving)[name].measured.saved.folder
        assert main(["export", str(plain), *trusting_all(plain), name, "--to", str(tmp_path / name)]) == 0
        made = save_load.read_manifest(tmp_path / name)
        assert made["weights"] == save_load.read_manifest(kept)["weights"]
        assert made["measured"]["model"] == export.BEFORE
        assert f"{made['parameters']:,} parameters" in capsys.readouterr().out


def test_a_saved_model_is_copied(saving, tmp_path):
    kept = saving / by_label(saving)["slicegpt"].measured.saved.folder
    assert main(["export", str(saving), *trusting_all(saving), "slicegpt", "--to", str(tmp_path / "copy")]) == 0
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (kept, tmp_path / "copy")]
    added = {name for name in contents[1] if contents[1][name] != contents[0].get(name)}
    assert added == {"README.md", "quality-by-size.png"}  # see tests/export/test_card_picture.py
    assert contents[0].keys() < contents[1].keys()


def test_a_saved_model_is_taken_unless_it_was_rounded(saving, monkeypatch):
    """A cell in bfloat16 that is saved in bfloat16 loses nothing, and one that was healed is not made again at all."""
    monkeypatch.setattr(export, "prune_again", lambda *_: "made again")
    record, trust = by_label(saving)["drop-tail"], Trust(saving, names=names_of(saving))
    exact = replace(record.measured.saved, dtype="bfloat16")
    rounded = replace(exact, rounding={"kl": 0.1})
    for saved, asked, taken in (
        (exact, "auto", True),
        (exact, "float32", True),
        (rounded, "bfloat16", True),
        (rounded, "float32", False),
        (rounded, "auto", False),
    ):
        one = with_measured(record, saved=saved)
        assert (export.model_of(one, trust, "cpu", asked) != "made again") == taken
    monkeypatch.setattr(named, "dtype_of_weights", lambda model: "bfloat16")  # which "auto" then means
    one = with_measured(record, saved=rounded)
    assert export.model_of(one, trust, "cpu", "auto") != "made again"


@pytest.mark.parametrize("why", ["gone.txt: no text 'gone.txt'", "short.txt: short.txt has"])
def test_a_file_is_checked_without_the_base_and_the_text_of_its_run(why, saving, tmp_path, monkeypatch, capsys):
    text, _, why = why.partition(": ")
    (tmp_path / "short.txt").write_text("the cat sat\n\nwith them")
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(engine_check, "check_gguf", lambda *given, **how: asked.append(given) or iter(()))
    record = by_label(saving)["drop-tail"]
    protocol = replace(record.cell.protocol, texts=(text,))
    one = replace(record, cell=replace(record.cell, model=str(tmp_path / "moved"), protocol=protocol))
    assert (
        list(
            export.check_engine(one, Trust(saving, names=(text,)), export.Wish(tmp_path / "model.gguf", format="gguf"))
        )
        == []
    )
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("perplexities are not compared: ") and why in said
    assert asked[0][2] is None


def test_a_copy_is_checked(saving, tmp_path, capsys):
    run = shutil.copytree(saving, tmp_path / "run")
    kept = run / by_label(run)["slicegpt"].measured.saved.folder
    weights = kept / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "bytes and should have" in refused(capsys, "export", run, "slicegpt", "--to", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_export_pads_rounds_and_shards(plain, tmp_path, ids):
    target = tmp_path / "padded"
    options = ["--pad-to-uniform", "--save-dtype", "float16", "--shard-mb", "1"]
    assert main(["export", str(plain), *trusting_all(plain), "llm-pruner", "--to", str(target), *options]) == 0
    manifest = save_load.read_manifest(target)
    assert (manifest["loads_with"], manifest["dtype"]) == ("transformers", "float16")
    assert manifest["rounding"]["tokens"] == 24
    assert manifest["padding"]["parameters"] == by_label(plain)["llm-pruner"].measured.parameters
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


def test_mistakes_of_export_are_one_line(plain, tmp_path, capsys, monkeypatch):
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
    file = tmp_path / "taken" / "file"
    assert "exists; name a new one" in refused(capsys, "export", plain, "drop-tail", "--format", "gguf", "--to", file)
    (tmp_path / "empty").mkdir()
    as_gguf = ("export", plain, "drop-tail", "--format", "gguf", "--to")
    monkeypatch.setattr(export, "model_of", lambda *_: pytest.fail("a model was made before the mistake was found"))
    assert "empty exists; name a new one" in refused(capsys, *as_gguf, tmp_path / "empty")
    assert "GGUF is written for BPE tokenizers" in refused(capsys, *as_gguf, tmp_path / "x")
    monkeypatch.chdir(tmp_path / "empty")
    assert "is the folder in which the command runs" in refused(capsys, "export", plain, "drop-tail", "--to", ".")
    small = ("--to", tmp_path / "x", "--save-dtype", "q8_0")
    assert "save-dtype q8_0 is for --format gguf" in refused(capsys, "export", plain, "drop-tail", *small)
    many = ("--to", tmp_path / "x", "--multiple", "64")
    assert "--multiple is for --format gguf and nemotron-nas" in refused(capsys, "export", plain, "drop-tail", *many)
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def byte_run(run_with, tmp_path_factory):
    """A run of a Llama with a tokenizer that GGUF has a word for."""
    folder = tmp_path_factory.mktemp("models") / "bytes"
    tiny("llama", vocab_size=260).save_pretrained(folder)
    bpe().save_pretrained(folder)
    return run_with("--methods", "drop-tail,llm-pruner:sequences=4,tokens=16", "--ratio", "0.3", model=folder)


def test_export_ends_with_what_llama_cpp_makes_of_a_file(byte_run, text_file, tmp_path, capsys, monkeypatch):
    file = tmp_path / "model.gguf"
    capsys.readouterr()
    assert (
        main(["export", str(byte_run), *trusting_all(byte_run), "llm-pruner", "--format", "gguf", "--to", str(file)])
        == 0
    )
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{file}: {file.stat().st_size / 1e6:.1f} MB, matrices in float32"
    assert lines[:2] == ["ok     loads: deci, 6 layers", "ok     logits: finite on 24 tokens"]
    if llama_cpp.is_installed():
        assert [line.partition(":")[0] for line in lines[2:]] == [
            *("ok     llama.cpp tokens", "ok     llama.cpp logits", "ok     llama.cpp perplexity")
        ]
    else:
        assert lines[2:] == [f"ok     llama.cpp: not asked, for it is not installed: {llama_cpp.INSTALL}"]
    assert main(["verify", str(file), "--text", str(text_file), "--windows", "2"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: True)
    monkeypatch.setattr(llama_cpp, "compute", lambda *args, **how: llama_cpp.Failure("crashed", "killed by SIGSEGV"))
    assert main(["verify", str(file), "--text", str(text_file)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "FAILED llama.cpp: crashed, killed by SIGSEGV"
    whole = file.read_bytes()
    for damaged in (
        whole[:-100],
        whole[:100],
        whole[:4],
        b"",
        b"GGUF" + bytes(100),
        whole.replace(b"gpt2", b"\xff\xff\xff\xff"),
    ):
        file.write_bytes(damaged)
        assert main(["verify", str(file), "--text", str(text_file)]) == 1
        assert capsys.readouterr().out.startswith("FAILED loads: ")
    file.write_bytes(whole)
    assert "there is no file" in refused(capsys, "verify", tmp_path / "none.gguf")
    assert "windows is a number of windows, at least 1" in refused(capsys, "verify", file, "--windows", "0")
    assert "'none.txt'" in refused(capsys, "verify", file, "--text", "none.txt")


def test_export_writes_nemotron_nas(byte_run, tmp_path, capsys):
    target = tmp_path / "nas"
    options = ["--format", "nemotron-nas", "--multiple", "256", "--save-dtype", "bfloat16"]
    assert main(["export", str(byte_run), *trusting_all(byte_run), "drop-tail", "--to", str(target), *options]) == 0
    size = (target / "model.safetensors").stat().st_size / 1e6
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"{target}: {size:.1f} MB, matrices in bfloat16 (measured in float32), ")
    assert line.endswith(" zeros where something is gone")
    assert json.loads((target / "config.json").read_text())["architectures"] == ["DeciLMForCausalLM"]


def test_export_writes_layers_into_a_stock_configuration(byte_run, tmp_path, capsys):
    target = tmp_path / "own"
    words = [*trusting_all(byte_run), "drop-tail", "--to", str(target), "--format", "heterogeneous"]
    assert "--multiple is for --format gguf" in refused(capsys, "export", byte_run, *words, "--multiple", "8")
    assert main(["export", str(byte_run), *words, "--save-dtype", "bfloat16"]) == 0
    size = (target / "model.safetensors").stat().st_size / 1e6
    assert capsys.readouterr().out == f"{target}: {size:.1f} MB, matrices in bfloat16 (measured in float32)\n"
    assert json.loads((target / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


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
        assert main(["verify", str(saving / by_label(saving)[name].measured.saved.folder)]) == 0
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
    entry = {"bytes": weights.stat().st_size, "sha256": hash_file(weights)}
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
    source = saving / by_label(saving)["drop-tail"].measured.saved.folder
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
    first = saving / by_label(saving)["llm-pruner"].measured.saved.folder
    run = run_with("--methods", "drop-tail", "--ratio", "0.2", "--save-models", model=first)
    records = by_label(run)
    assert records["dense"].measured.parameters == by_label(saving)["llm-pruner"].measured.parameters
    (before,) = records["dense"].measured.text_scores.values()
    (after,) = by_label(saving)["llm-pruner"].measured.text_scores.values()
    assert before.perplexity == after.perplexity
    second = run / records["drop-tail"].measured.saved.folder
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
    assert named.licence_of_model("smollm2-135m") == "Apache-2.0"
    assert named.licence_of_model(str(model_folder)) is None
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: 'mit'\n---\n# A model\nlicense: none\n")
    assert named.licence_of_model(str(folder)) == "mit"
    assert named.dtype_of_weights(str(folder)) == "float32"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert dtype_to_save("auto", str(folder), "float32") == torch.bfloat16
    assert dtype_to_save("float16", str(folder), "float32") == torch.float16


def test_uniform_cuts_widths_alike_and_says_so_in_the_label(run_with, capsys):
    asked = ["--methods", "llm-pruner:sequences=4,tokens=16,flap,drop-tail", "--ratio", "0.3", "--uniform"]
    folder = run_with(*asked, "--save-models")
    labels = {record.cell.label: record.measured.saved for record in load_run(folder)}
    uniform = {"llm-pruner:sequences=4,tokens=16,uniform=True", "flap:uniform=True", "drop-tail"}
    assert set(labels) == uniform | {"dense"}
    assert {labels[label].loads_with for label in uniform} == {"transformers"}


def test_uniform_is_refused_where_there_is_no_such_variant(model_folder, text_file, capsys, tmp_path):
    base = ["run", "--model", model_folder, "--calibration", text_file, "--tasks", "none", "--texts", "none"]
    for method in ("2ssp", "slicegpt", "blockpruner", "finercut", "llm-drop", "svd-llm"):
        line = refused(capsys, *base, "--methods", method, "--ratio", "0.3", "--uniform", "--out", tmp_path / "x")
        assert f"--uniform: {method} has no variant that stock transformers loads, since it" in line
    line = refused(capsys, *base, "--methods", "llm-pruner:r=0.2", "--uniform", "--out", tmp_path / "x")
    assert "uniform cuts every layer alike" in line


def test_a_compensation_is_part_of_the_label_and_of_the_ratio(run_with):
    asked = ["--methods", "drop-tail,shortgpt+scale", "--ratio", "0.3", "--compensate", "ghost"]
    folder = run_with(*asked, "--set", "drop-tail+ghost.ghost.ridge=0.5", "--save-models")
    records = {record.cell.method: record for record in load_run(folder)}
    assert set(records) == {"dense", "drop-tail+ghost", "shortgpt+scale"}
    patched = records["drop-tail+ghost"]
    assert patched.cell.parameters["ghost.ridge"] == 0.5
    assert patched.measured.parameters > 0
    assert patched.measured.saved.loads_with == "prunebench"
    assert records["shortgpt+scale"].measured.saved.loads_with == "transformers"
    assert patched.cell.inputs.revision == f"{DropTail.revision}+{Ghost.revision}"
