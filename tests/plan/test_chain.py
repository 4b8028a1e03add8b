"""A run heals its cells and goes on from them: what is refused, what is kept, what a kill costs, what records say."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import torch
from made_cells import made_cell, made_inputs
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import methods
from bench.cli.main import main
from bench.data import pretrained
from bench.data import texts as text_data
from bench.healing.training import Training, draw_text, heal
from bench.plan.cell import Stage
from bench.plan.kinds import to_plain
from bench.plan.protocol import Protocol, Recipe, protocol_of_profile
from bench.records.measured import Measured
from bench.records.record import Record
from bench.records.run_folder import load_run
from bench.regression.results import results_of_run
from bench.runs import inputs as fingerprint
from bench.runs import measure, reproduce, runner, searches
from methods.checkpoint import save_load
from methods.errors import UserError
from methods.model.decoder import Decoder
from reports import groups
from reports.figures.catalogue import figures_of_report
from reports.figures.figure import save_figure
from reports.removed import join_decisions, remaining_of, removals_of
from reports.tables.views import build_view

SMALL = ("--heal-tokens", "256", "--heal-length", "16", "--heal-batch", "4", "--heal-learning-rate", "0.003")


@pytest.fixture(scope="module")
def options(model_folder, text_file):
    """A run without tasks and timing; methods and ratio are to be named."""
    return [
        *("run", "--model", str(model_folder), "--texts", str(text_file), "--calibration", str(text_file)),
        *("--tasks", "none", "--window", "32", "--windows", "4", "--calibration-sequences", "4"),
        *("--calibration-length", "24", "--profile", "smoke", "--device", "cpu", "--speed-rounds", "0"),
        *("--threads", "1"),
    ]


@pytest.fixture(scope="module")
def healing(options, text_file):
    """The same with healing by LoRA."""
    return [*options, "--heal", "lora", *SMALL, "--heal-text", str(text_file)]


def by_label(folder: Path) -> dict:
    return {record.cell.label: record for record in load_run(folder)}


def refused(capsys, *arguments: str) -> str:
    """The one line of a mistake, before any work."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


@pytest.fixture(scope="module")
def chained(healing, tmp_path_factory):
    """(folder, table, what was said) of two methods, healed and pruned further."""
    folder = tmp_path_factory.mktemp("runs") / "chained"
    arguments = [*healing, "--methods", "drop-tail,flap", "--ratio", "0.2"]
    arguments += ["--then", "drop-tail:ratio=0.5", "--out", str(folder)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(arguments) == 0
    return folder, " ".join(out.getvalue().split()), err.getvalue()


LABELS = [
    "dense",
    "drop-tail",
    "drop-tail at 0.2, then drop-tail",
    "drop-tail, healed",
    "drop-tail at 0.2, healed, then drop-tail",
    "drop-tail at 0.2, healed, then drop-tail, healed",
    "flap",
    "flap at 0.2, then drop-tail",
    "flap, healed",
    "flap at 0.2, healed, then drop-tail",
    "flap at 0.2, healed, then drop-tail, healed",
]


# --- keys and cells


CELL = made_cell(
    "laco",
    0.3,
    protocol_of_profile("quick", windows_drawn=False, calibration_sequences=16),
    model="smollm2-135m",
    parameters={"C": 4, "T": None},
    given=("C",),
    inputs=made_inputs("f" * 64, texts={"wiki": "a" * 64}),
)


def test_a_key_is_the_same_from_version_to_version_and_has_nothing_of_what_a_cell_has_none_of():
    assert CELL.key == "laco-C-4--0.3--6fde07a1"
    assert "healing" not in CELL.plain()
    always = {"model", "method", "parameters", "ratio", "match", "seed", "device", "dtype", "protocol"}
    assert json.loads(CELL.question).keys() == always | {"given"}


def test_every_field_of_a_recipe_and_of_an_earlier_stage_is_in_the_key():
    recipe, stage = Recipe(), replace(CELL, ratio=0.1).stage
    others = [replace(CELL, healing=recipe), replace(CELL, earlier=(stage,))]
    for name, value in (("kind", "full"), ("text", "c4"), ("tokens", 999), ("loss", "kl"), ("passes", 2), ("seed", 1)):
        others.append(replace(CELL, healing=replace(recipe, **{name: value})))
    for name, value in (("method", "flap"), ("parameters", {"C": 3}), ("ratio", 0.2), ("healing", recipe)):
        others.append(replace(CELL, earlier=(replace(stage, **{name: value}),)))
    assert len({cell.key for cell in (CELL, *others)}) == len(others) + 1
    assert len({cell.question for cell in (CELL, *others)}) == len(others) + 1


def test_labels_say_what_was_done_in_order():
    recipe = Recipe()
    healed = replace(CELL, healing=recipe)
    first = Stage("laco", {"C": 4}, 0.25, (), recipe)
    second = Stage("drop", {"layers": "3"}, None, ("layers",))
    assert healed.label == "laco:C=4, healed"
    assert replace(CELL, earlier=(first,), given=()).label == "laco at 0.25, healed, then laco"
    assert replace(healed, earlier=(first, second)).label == (
        "laco at 0.25, healed, then drop:layers=3, then laco:C=4, healed"
    )
    assert replace(healed, earlier=(first,)).key.startswith("laco-at-0.25-healed-then-laco-C-4-healed--0.3--")
    assert replace(healed, earlier=(first, second)).ancestors == [
        replace(CELL, method="laco", parameters={"C": 4}, ratio=0.25, given=(), healing=recipe, inputs=None),
        replace(
            CELL,
            method="drop",
            parameters={"layers": "3"},
            ratio=None,
            given=("layers",),
            earlier=(first,),
            inputs=None,
        ),
    ]


# --- what is refused before any work


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--heal-tokens", "64"], "--heal-tokens says how to heal, and nothing is healed; add --heal lora or"),
        (["--heal-learning-rate", "1"], "--heal-learning-rate says how to heal"),
        (["--heal", "full", "--heal-rank", "4"], "--heal-rank is of LoRA's matrices"),
        (["--heal", "lora", "--dtype", "float16"], "healing trains in float32 or bfloat16"),
        (["--heal", "lora", "--heal-loss", "mse"], "invalid choice: 'mse'"),
        (["--heal", "lora", "--heal-tokens", "5"], "healing needs a sequence"),
        (["--heal", "lora", "--heal-text", "nothing.txt"], "no text 'nothing.txt'"),
        (["--heal", "lora", "--heal-length", "4096"], "--heal-length 4096 is more than the 2048 tokens"),
        (["--heal", "lora", "--heal-length", "64"], "tokens for calibration"),
        (
            ["--heal", "lora", "--heal-length", "16", "--methods", "dense"],
            "--heal is for pruned models, and --methods names none",
        ),
        (["--then", "drop-tail:ratio=0.5", "--methods", "dense"], "--then is for pruned models"),
        (["--then", "drop-tail"], "--then is written METHOD:ratio=R"),
        (["--then", "drop-tail:ratio=0.5,flap"], "--then is written METHOD:ratio=R"),
        (["--then", "drop-tail:ratio=1.5"], "in [0, 1)"),
        (["--then", "nothing:ratio=0.5"], "nothing"),
        (["--then", "flap:ratio=0.5,deep=1"], "deep"),
        (["--then", "drop:layers=2,ratio=0.5"], "takes no ratio"),
        (["--then", "drop-tail:ratio=0.99"], "out of reach"),
        (["--then", "drop-tail:ratio=0.2"], "would remove nothing behind drop-tail at 0.3"),
        (["--then", "drop-tail:ratio=0.31"], "and both round to the same layers"),
        (
            ["--then", "laco:ratio=0.5", "--set", "laco.C=2,3"],
            "--set laco.C sweeps, and --then laco takes one value; say which, as in --then laco:ratio=0.5,C=2",
        ),
        (["--then", "laco:ratio=0.5", "--set", "flap.tokens=9"], "which --methods does not name"),
        (["--then", "flap:ratio=0.5", "--then", "flap:ratio=0.4"], "nothing behind drop-tail at 0.3, then flap at 0.5"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(more, message, options, tmp_path, capsys):
    arguments = [*options, "--methods", "drop-tail", "--ratio", "0.3", "--out", str(tmp_path / "run")]
    file = options[options.index("--texts") + 1]
    text = ["--heal-text", file] if "--heal" in more and "--heal-text" not in more else []
    assert message in refused(capsys, *arguments, *more, *text)
    assert not list(tmp_path.rglob("cells/*"))


def test_text_that_is_measured_on_as_a_whole_is_not_trained_on(options, text_file, tmp_path, capsys):
    other = tmp_path / "other.txt"
    shutil.copy(text_file, other)
    arguments = [*options, "--methods", "drop-tail", "--ratio", "0.3", "--heal", "lora", "--out", str(tmp_path / "run")]
    whole = [*arguments, "--texts", str(other), "--heal-text", str(other)]
    assert "would be trained on and measured on" in refused(capsys, *whole)
    assert text_data.is_whole(str(other), str(text_file))


# --- healed cells


@pytest.mark.nightly
def test_every_method_is_measured_as_pruned_and_healed_in_one_table(chained, capsys):
    folder, table, said = chained
    records = load_run(folder)
    assert sorted(record.cell.label for record in records) == sorted(LABELS)
    assert {record.status for record in records} == {"ok"}
    first, second = table.split("ratio 0.5:")
    assert all(f" {label} " in first for label in ("dense", "drop-tail", "drop-tail, healed", "flap", "flap, healed"))
    assert "then" not in first
    assert "drop-tail at 0.2, healed," in second
    recipe = "healed LoRA of rank 8, for the next token, 256 tokens of words.txt, batches of 4 x 16,"
    assert main(["report", str(folder), "--explain"]) == 0
    assert " ".join(capsys.readouterr().out.split()).count(recipe) == 1
    assert "healing by lora on 256 tokens" in said


def test_a_healed_record_holds_the_recipe_the_curve_and_what_it_took(chained, text_file, model_folder):
    folder, _, _ = chained
    records = by_label(folder)
    plain, healed = records["flap"], records["flap, healed"]
    found = healed.measured.healing
    assert found.recipe == to_plain(healed.cell.healing.as_run())
    assert found.recipe["steps"] == 4
    assert found.recipe["learning_rate"] == 0.003
    assert (found.tokens, [point.tokens for point in found.curve]) == (256, [0, 64, 128, 192, 256])
    assert found.curve[-1].heldout_loss < found.curve[0].heldout_loss
    assert found.tokens_per_second == pytest.approx(256 / found.seconds)
    assert 0 < found.seconds < healed.measured.seconds["heal"]
    assert set(healed.measured.peak_memory) == set(healed.measured.seconds) > {"prune", "heal"}
    assert found.start_sha256 == plain.measured.pruned_sha256  # it begins where the row above it is
    assert healed.measured.pruned_sha256 != plain.measured.pruned_sha256
    assert healed.measured.text_scores != plain.measured.text_scores
    assert healed.measured.parameters == plain.measured.parameters
    removed = ("removed_layers", "removed_kv_heads", "removed_channels")
    assert all(healed.decisions.get(name) == plain.decisions.get(name) for name in removed)
    assert plain.cell.healing is None
    assert plain.measured.healing is None
    inputs = healed.cell.inputs.healing
    assert inputs.revision
    assert inputs.peft
    tokenizer = pretrained.load_tokenizer(str(model_folder))
    assert inputs.text_sha256 == draw_text(tokenizer, reproduce.cell_of(healed).healing).sha256


def test_a_changed_recipe_or_trainer_is_another_cell(chained, healing, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(chained[0], folder)
    arguments = [*healing, "--methods", "flap", "--ratio", "0.2", "--out", str(folder)]
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("has a record") == 3
    assert main([*arguments, "--heal-passes", "2"]) == 0
    assert capsys.readouterr().err.count("has a record") == 2
    assert main(["report", str(folder), "--explain"]) == 0
    assert "2 passes" in capsys.readouterr().out
    monkeypatch.setattr(fingerprint, "REVISION", 2)
    assert main(arguments) == 0
    assert "is old, since this has changed: healing; moved to superseded/" in capsys.readouterr().err


def test_rows_of_several_recipes_are_told_apart(chained, healing, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(chained[0], folder)
    arguments = [*healing, "--methods", "drop-tail", "--ratio", "0.2", "--out", str(folder)]
    assert main([*arguments, "--heal-loss", "kl"]) == 0
    table = build_view("main", load_run(folder))[0]
    for loss in ("next-token", "kl"):
        assert f"drop-tail, healed (loss {loss})" in [row.label for row in table.rows]
        assert dict(table.protocol)[f"healed (loss {loss})"].startswith("LoRA of rank 8")


def test_a_healed_and_merged_model_loads_in_stock_transformers_with_the_logits_that_were_measured(
    healing, model_folder, tmp_path
):
    folder = tmp_path / "run"
    arguments = [*healing, "--methods", "drop-tail", "--ratio", "0.3", "--save-models"]
    assert main([*arguments, "--then", "drop-tail:ratio=0.5", "--out", str(folder)]) == 0
    records = by_label(folder)
    healed, plain = records["drop-tail, healed"], records["drop-tail"]
    saved = folder / healed.measured.saved.folder
    assert healed.measured.saved.loads_with == "transformers"
    stock = AutoModelForCausalLM.from_pretrained(saved)
    assert not [name for name, _ in stock.named_parameters() if "lora" in name]
    ids = torch.randint(3, 120, (2, 20), generator=torch.Generator().manual_seed(0))
    found = stock(ids).logits.detach()
    assert torch.equal(found, save_load.load(saved).model(ids).logits)
    assert runner.inputs.sha256_of_state(save_load.load(saved).model) == healed.measured.pruned_sha256
    without = AutoModelForCausalLM.from_pretrained(folder / plain.measured.saved.folder)(ids).logits.detach()
    assert float((found - without).abs().max()) > 1e-3
    # and that is what training in memory comes to
    recipe, tokenizer = reproduce.cell_of(healed).healing, pretrained.load_tokenizer(str(model_folder))
    model = save_load.load(folder / plain.measured.saved.folder)
    heal(model, draw_text(tokenizer, recipe), recipe)
    assert torch.allclose(found, model.model(ids).logits, atol=1e-5)
    card = (saved / "README.md").read_text()
    assert "| Trained after pruning | lora, 256 tokens of words.txt, loss next-token" in card
    # what goes on from it starts with it, and not with a copy of its own
    further = records["drop-tail at 0.3, healed, then drop-tail"]
    cut = save_load.load(saved)
    cut.set_layers(cut.layers[: further.measured.layers])
    assert runner.inputs.sha256_of_state(cut.model) == further.measured.pruned_sha256
    card = (folder / further.measured.saved.folder / "README.md").read_text()
    assert "Before that the model had been pruned, in this order:\n\n- drop-tail, healed, ratio 0." in card
    assert not (folder / "kept").exists()


KILLED = """
import os, signal, sys
from bench.cli.main import main
from bench.healing.training import Training

def save(self, *arguments, write=Training._save):
    write(self, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)

Training._save = save
main(sys.argv[1:])
"""


def test_healing_that_is_killed_goes_on_and_ends_where_an_uninterrupted_one_does(
    options, text_file, tmp_path, monkeypatch
):
    length = ["--heal-text", str(text_file), "--heal-tokens", "2560", "--heal-passes", "5", "--heal-length", "16"]
    arguments = [*options, "--methods", "drop-tail", "--ratio", "0.3", "--heal", "lora", *length, "--heal-batch", "2"]
    arguments += ["--no-checks", "--dtype", "float32", "--out"]
    folder = tmp_path / "killed"
    done = forked.run(KILLED, [*arguments, str(folder)])
    assert done.returncode == -signal.SIGKILL
    (file,) = folder.glob("partial/*/heal-*/heal.safetensors")
    with safe_open(file, "pt") as stored:
        reached = json.loads(stored.metadata()["progress"])["step"]
    assert 0 < reached < 80
    assert not list(folder.glob("cells/*healed*"))
    train, steps = Training._train, []
    monkeypatch.setattr(Training, "_train", lambda self: steps.append(self.step) or train(self))
    assert main([*arguments, str(folder)]) == 0
    assert steps == list(range(reached, 80))
    assert not (folder / "partial").exists()
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    one, other = (by_label(place)["drop-tail, healed"] for place in (folder, tmp_path / "whole"))
    curves = [record.measured.healing.curve for record in (one, other)]
    assert [point.step for point in curves[0]] == [point.step for point in curves[1]]
    assert curves[0][-1].loss == pytest.approx(curves[1][-1].loss, abs=1e-3)
    assert curves[0][-1].heldout_loss == pytest.approx(curves[1][-1].heldout_loss, abs=1e-3)
    assert one.measured.pruned_sha256 == other.measured.pruned_sha256


def test_a_healed_cell_that_fails_later_is_not_trained_again(healing, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    arguments = [*healing, "--methods", "drop-tail", "--ratio", "0.2", "--no-checks", "--out", str(folder)]
    texts = measure._perplexity

    def fails(cell, *rest):
        if cell.healing:
            raise RuntimeError("no such luck")
        return texts(cell, *rest)

    monkeypatch.setattr(measure, "_perplexity", fails)
    assert main(arguments) == 3
    assert by_label(folder)["drop-tail, healed"].status == "error"
    assert [path.name for path in folder.glob("partial/*/heal-*/*")] == ["heal.safetensors"]
    monkeypatch.setattr(measure, "_perplexity", texts)
    monkeypatch.setattr(Training, "_train", lambda self: pytest.fail("it was trained already"))
    assert main([*arguments, "--retry-failed"]) == 0
    record = by_label(folder)["drop-tail, healed"]
    assert (record.status, not (folder / "partial").exists()) == ("ok", True)
    assert record.measured.healing.curve[-1].heldout_loss < record.measured.healing.curve[0].heldout_loss


# --- chained cells


def test_a_chain_of_removals_that_do_not_look_ends_where_one_removal_does(chained, options, tmp_path):
    """The last layers in two steps are the last layers in one, to the last bit; ratios are of the dense model."""
    assert main([*options, "--methods", "drop-tail", "--ratio", "0.5", "--out", str(tmp_path / "run")]) == 0
    one, two = by_label(tmp_path / "run")["drop-tail"], by_label(chained[0])["drop-tail at 0.2, then drop-tail"]
    for name in ("pruned_sha256", "parameters", "ratio", "ratio_budget", "layers", "perplexity", "dense_parameters"):
        assert getattr(one.measured, name) == getattr(two.measured, name), name
    assert one.measured.checks == two.measured.checks  # beside the same dense model
    assert removals_of(one) == removals_of(two) == {"layers": "3-5"}
    assert remaining_of(one) == remaining_of(two)


def test_a_chained_cell_begins_with_the_healed_model_and_its_record_keeps_the_chain(chained, model_folder):
    records = by_label(chained[0])
    healed = records["flap, healed"]
    further, last = (records[f"flap at 0.2, healed, then drop-tail{end}"] for end in ("", ", healed"))
    recipe, tokenizer = reproduce.cell_of(healed).healing, pretrained.load_tokenizer(str(model_folder))
    protocol = healed.cell.protocol
    block = text_data.make_calibration(tokenizer, protocol.calibration, 4, 24, 0)
    model = Decoder(pretrained.load(str(model_folder), torch.device("cpu"), torch.float32)[0])
    methods.make("flap").prune(model, block, healed.measured.ratio_budget)
    heal(model, draw_text(tokenizer, recipe), recipe)
    assert runner.inputs.sha256_of_state(model.model) == healed.measured.pruned_sha256
    model.set_layers(model.layers[: further.measured.layers])
    assert runner.inputs.sha256_of_state(model.model) == further.measured.pruned_sha256
    assert last.measured.healing.start_sha256 == further.measured.pruned_sha256
    for record in (further, last):
        (stage,) = record.decisions["earlier"]
        assert (stage["method"], stage["label"], stage["ratio"]) == ("flap", "flap, healed", 0.2)
        assert stage["healing"] == to_plain(healed.cell.healing)
        assert stage["decisions"]["removed_channels"] == healed.decisions["removed_channels"]
        assert stage["measured"]["pruned_sha256"] == healed.measured.pruned_sha256
        assert stage["measured"]["healing"]["curve"] == healed.plain()["measured"]["healing"]["curve"]
        assert record.cell.inputs.parent == reproduce.cell_of(healed).key.rpartition("--")[0] + "--" + key_hash(healed)
        assert record.measured.ratio == 1 - record.measured.parameters / record.measured.dense_parameters
    assert not (chained[0] / "kept").exists()
    assert not (chained[0] / "partial").exists()


def key_hash(record) -> str:
    return record.cell.key.rpartition("--")[2]


def test_a_record_names_its_cell_whole(chained):
    for record in load_run(chained[0]):
        cell = record.cell
        assert reproduce.cell_of(record) == replace(cell, inputs=None)
        plain = json.loads((chained[0] / "cells" / f"{cell.key}.json").read_text())
        assert plain["cell"]["label"] == cell.label


def test_a_run_that_is_killed_in_a_chain_does_not_heal_the_parent_again(healing, tmp_path, monkeypatch, capsys):
    folder, train, prune = tmp_path / "run", heal, measure._prune
    arguments = [*healing, "--methods", "drop-tail", "--ratio", "0.2", "--no-checks"]
    arguments += ["--then", "drop-tail:ratio=0.5", "--out", str(folder)]
    healed = []

    def interrupted(cell, *rest):
        if cell.earlier and cell.earlier[0].healing:
            raise KeyboardInterrupt
        return prune(cell, *rest)

    monkeypatch.setattr(measure, "heal", lambda *a, **k: healed.append(1) or train(*a, **k))
    monkeypatch.setattr(measure, "_prune", interrupted)
    assert main(arguments) == 130
    (model,) = (folder / "kept").iterdir()  # of the healed cell alone; the pruned one's is not needed any more
    assert model.name.startswith("drop-tail-healed--0.2--")
    monkeypatch.setattr(measure, "_prune", prune)
    assert (len(healed), main(arguments), len(healed)) == (1, 0, 2)
    assert capsys.readouterr().err.count("has a record") == 4
    assert not (folder / "kept").exists()

    # once it is gone, or not whole, the cell in front runs again
    before = by_label(folder)
    for damage in ("gone", "damaged"):
        (path,) = folder.glob("cells/*-healed-then-drop-tail--*")
        path.unlink()
        if damage == "damaged":
            monkeypatch.setattr(measure, "_prune", interrupted)
            assert main(arguments) == 130
            monkeypatch.setattr(measure, "_prune", prune)
            (weights,) = folder.glob("kept/*/model.safetensors")
            weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
        capsys.readouterr()
        assert main(arguments) == 0
        said = capsys.readouterr().err
        assert "drop-tail, healed at 0.2: another cell goes on from its model, which is not kept; it runs again" in said
        after = by_label(folder)
        assert {k: r.measured.pruned_sha256 for k, r in before.items()} == {
            k: r.measured.pruned_sha256 for k, r in after.items()
        }


@pytest.mark.nightly  # tests/engines/test_local.py and tests/runs/test_part.py have chains in processes of their own
def test_a_chain_in_processes_of_its_own_comes_to_the_same(chained, healing, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(chained[0], folder)
    label = "drop-tail at 0.2, healed, then drop-tail, healed"
    expected = by_label(folder)[label].measured
    (path,) = folder.glob("cells/drop-tail*-healed-then-drop-tail-healed--*")
    path.unlink()
    arguments = [*healing, "--methods", "drop-tail", "--ratio", "0.2", "--isolate"]
    assert main([*arguments, "--then", "drop-tail:ratio=0.5", "--out", str(folder)]) == 0
    found = by_label(folder)[label].measured
    for name in ("pruned_sha256", "perplexity", "checks"):
        assert getattr(found, name) == getattr(expected, name)


def test_a_cell_whose_parent_failed_says_so_and_runs_when_that_one_does(healing, tmp_path, monkeypatch):
    arguments = [*healing, "--methods", "drop-tail", "--ratio", "0.2", "--heal", "full", "--no-checks"]
    arguments += ["--then", "drop-tail:ratio=0.5", "--out", str(tmp_path / "run")]
    train = heal

    def fails(*_, **__):
        raise MemoryError("no more")

    monkeypatch.setattr(measure, "heal", fails)
    assert main(arguments) == 3
    records = by_label(tmp_path / "run")
    assert (records["drop-tail"].status, records["drop-tail at 0.2, then drop-tail"].status) == ("ok", "ok")
    assert records["drop-tail, healed"].status == "out_of_memory"
    for label in ("drop-tail at 0.2, healed, then drop-tail", "drop-tail at 0.2, healed, then drop-tail, healed"):
        assert records[label].status == "error"
        assert records[label].error == "there is no model of drop-tail, healed to go on from: out_of_memory, no more"
    monkeypatch.setattr(measure, "heal", train)
    assert main([*arguments, "--retry-failed"]) == 0
    assert {record.status for record in load_run(tmp_path / "run")} == {"ok"}


def test_a_parent_that_has_less_left_already_is_an_outcome(options, tmp_path):
    arguments = [*options, "--methods", "drop:layers=0-3", "--then", "drop-tail:ratio=0.3"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    (found,) = [record for record in load_run(tmp_path / "run") if record.status != "ok"]
    assert (found.cell.label, found.status) == ("drop:layers=0-3, then drop-tail", "unsupported")
    assert re.search(
        r"drop:layers=0-3 has [\d,]+ parameters, and [\d,]+ may stay at 0.\d+ of the dense model", found.error
    )


def test_what_is_out_of_reach_behind_another_method_is_an_outcome(options, tmp_path):
    arguments = [*options, "--methods", "drop:layers=0-1", "--then", "laco:ratio=0.45"]  # four layers hold no window
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    (found,) = [record for record in load_run(tmp_path / "run") if record.status != "ok"]
    assert (found.cell.label, found.status) == ("drop:layers=0-1, then laco", "out_of_reach")
    assert re.match(r"behind drop, ratio 0\.\d+ is out of reach", found.error)


def test_a_parent_that_the_run_does_not_have_is_refused(chained, tmp_path):
    cell = reproduce.cell_of(by_label(chained[0])["flap at 0.2, then drop-tail"])
    with pytest.raises(UserError, match="goes on from flap, which is no cell in front of it"):
        runner.run([cell], tmp_path / "run")
    assert not list(tmp_path.rglob("cells/*"))
    (record,) = [r for r in runner.run([*cell.ancestors, cell], tmp_path / "run") if r.cell.earlier]
    expected = by_label(chained[0])["flap at 0.2, then drop-tail"].measured
    assert record.measured.pruned_sha256 == expected.pruned_sha256


def test_draws_go_on_from_their_own_draw_and_share_a_row(healing, tmp_path, capsys):
    arguments = [*healing, "--methods", "drop-random:draws=2", "--ratio", "0.2"]
    arguments += ["--then", "drop-random:ratio=0.5,draws=2", "--no-checks", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    records = load_run(tmp_path / "run")
    assert len(records) == 1 + 2 * 5
    for record in records:
        seeds = {stage.parameters.get("seed") for stage in record.cell.stages}
        assert len(seeds) == 1
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run"), "--explain"]) == 0  # a run prints eight lines of notes at most
    table = " ".join(capsys.readouterr().out.split())
    first, second = re.findall(r"standard deviation: (.+?) \[2 draws\]\.", table)
    assert sorted(first.split("; ")) == ["drop-random:draws=2", "drop-random:draws=2, healed"]
    assert sorted(second.split("; ")) == [
        "drop-random:draws=2 at 0.2, healed, then drop-random:draws=2",
        "drop-random:draws=2 at 0.2, healed, then drop-random:draws=2, healed",
        "drop-random:draws=2 at 0.2, then drop-random:draws=2",
    ]
    assert len(results_of_run(tmp_path / "run")) == len(records)  # which are told apart


def test_a_greedy_search_serves_the_healed_cell_and_a_chained_one_has_its_own(healing, tmp_path):
    arguments = [*healing, "--methods", "sleb", "--ratio", "0.2", "--no-checks"]
    assert main([*arguments, "--then", "sleb:ratio=0.5", "--out", str(tmp_path / "run")]) == 0
    records = by_label(tmp_path / "run")
    plain, healed = records["sleb"], records["sleb, healed"]
    inherited = healed.measured.prune_seconds - healed.measured.seconds["prune"]
    assert inherited == pytest.approx(plain.measured.search_seconds[-1])  # it is counted, and not repeated
    assert healed.measured.search_seconds == plain.measured.search_seconds
    assert healed.decisions["removal_order"] == plain.decisions["removal_order"]
    found = [
        searches.KnownSearches(records.values()).start_of(r.cell)
        for r in (healed, records["sleb at 0.2, healed, then sleb"], records["sleb at 0.2, then sleb"])
    ]
    own = [records[f"sleb at 0.2{middle}, then sleb"].decisions for middle in (", healed", "")]
    assert found[0][0] == tuple(plain.decisions["removal_order"][: plain.decisions["free_removals"]])
    assert [order for order, _ in found[1:]] == [tuple(one["removal_order"][: one["free_removals"]]) for one in own]


# --- what reports and commands make of it


def test_decisions_behind_decisions_are_in_the_numbers_of_the_dense_model():
    before = {"removed_layers": [0, 2], "removed_mlp": [1]}
    heads = {"removed_kv_heads": [[0], [], [1]], "kv_heads": [1, 2, 1]}
    after = {"removed_layers": [1], "removed_attention": [2], "threshold": 0.5, **heads}
    earlier = [{"decisions": before, "measured": {"layers": 3}}]
    record = Record(
        made_cell("drop", None, Protocol()),
        "ok",
        {},
        after | {"earlier": earlier},
        Measured(parameters=1, dense_layers=5, layers=2),
    )
    assert join_decisions(record) == after | {
        "earlier": earlier,
        "removed_layers": [0, 2, 3],  # the second of 1, 3, 4
        "removed_attention": [4],
        "removed_mlp": [1],
        "removed_kv_heads": [[], [0], [], [], [1]],
        "kv_heads": [0, 1, 0, 2, 1],
    }
    assert remaining_of(record).attention == (0, 0.5, 0, 0, 0)
    assert remaining_of(record).mlp == (0, 0, 0, 0, 1)
    silent = [{"decisions": {}, "measured": {"layers": 3}}]  # two layers went, and the method does not say which
    assert join_decisions(replace(record, decisions=after | {"earlier": silent})) == {}


def test_reports_show_the_curve_the_cost_and_the_recipe(chained, tmp_path, capsys):
    records = load_run(chained[0])
    found = {figure.name: figure for figure in figures_of_report(records)}
    assert {"healing-0.2", "healing-0.5"} <= set(found)
    said = found["healing-0.2"].description
    curve = by_label(chained[0])["flap, healed"].measured.healing.curve
    ends = f"from {curve[0].heldout_loss:.2f} to {curve[-1].heldout_loss:.2f} after 256 tokens"
    assert f"flap, healed {ends}" in said
    save_figure(found["healing-0.2"], tmp_path / "healing.svg")
    (cost, _) = build_view("cost", records)
    columns = [column.name for column in cost.columns]
    rows = {row.label: [cell.text for cell in row.cells] for row in cost.rows}
    at = columns.index("heal_tokens")
    assert (rows["drop-tail"][at], rows["drop-tail, healed"][at]) == ("-", "256")
    assert dict(cost.protocol)["healed"].startswith("LoRA of rank 8")
    without = [record for record in records if not groups.recipe_of_cell(record.cell)]
    assert not [column.name for column in build_view("cost", without)[0].columns if column.name.startswith("heal")]
    assert not [figure for figure in figures_of_report(without) if figure.name.startswith("healing")]
    capsys.readouterr()
    assert main(["show", str(chained[0]), "drop-tail, healed"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("heldout_loss", "learning_rate", "tokens_per_second", "start_sha256"))
    assert main(["report", str(chained[0]), "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "LoRA of rank 8" in page
    assert (tmp_path / "report" / "healing-0.2.svg").is_file() or list((tmp_path / "report").rglob("healing-0.2.svg"))


def test_what_was_healed_is_exported_from_saved_models_alone(chained, tmp_path, capsys):
    for label in ("flap, healed", "flap at 0.2, then drop-tail"):
        said = refused(capsys, "export", chained[0], label, "--to", tmp_path / "model")
        assert "`run --save-models` keeps its model" in said


def test_a_saved_model_that_is_not_there_is_refused_in_one_line(options, tmp_path, capsys):
    arguments = [*options, "--methods", "drop-tail", "--ratio", "0.3", "--out", tmp_path / "run"]
    missing = tmp_path / "other" / "models" / "drop-tail--0.3--0123abcd"
    assert "is no model: give a known model" in refused(capsys, *arguments, "--model", missing)
    missing.mkdir(parents=True)
    assert "has no config.json" in refused(capsys, *arguments, "--model", missing)
