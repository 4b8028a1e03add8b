"""RunSpec: the same by flags and in Python, every field a flag, and cells whose keys are those of shipped records."""

from __future__ import annotations

import argparse
import functools
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from conftest import refused, tiny

from bench import cli
from bench.cli.main import main
from bench.data import pretrained, texts
from bench.plan import run_spec, validate
from bench.plan.cell import Cell
from bench.plan.protocol import PROFILES, Protocol, Recipe, SimilarityProtocol, name_of_text, protocol_of_profile
from bench.plan.run_spec import RunSpec, flags_of_run, spec_from_flags
from bench.records.run_folder import load_run, read_records
from bench.runs import runner
from methods.errors import UserError

RESULTS = Path(__file__).parents[2] / "docs" / "results"

# --- texts


def test_two_parts_of_a_dataset_of_the_hub_are_two_texts():
    """Whose samples have names of their own, which are no paths; a shipped text and a file are called as ever."""
    parts = [f"hub:wikimedia/wikipedia:20231101.{language}:train" for language in ("en", "de")]
    assert Protocol(texts=(*parts, "hub:other/wikipedia", "hub:wikimedia/wikipedia")).texts[:2] == tuple(parts)
    names = [name_of_text(part) for part in parts]
    assert len(set(names)) == 2
    assert all(Path(name).name == name and ":" not in name and "20231101." in name for name in names)
    assert [name_of_text(text) for text in ("wiki", "c4", "some/where/a.b.txt")] == ["wiki", "c4", "a.b"]
    with pytest.raises(UserError, match="share a name"):
        Protocol(texts=("a/b.txt", "c/b.txt"))


# --- one field, one flag


def test_every_field_has_a_flag_but_those_that_are_no_users():
    flagged = {(option.owner, option.field) for option in flags_of_run().values()}
    without = {(owner, field.name) for owner in (RunSpec, Protocol, Recipe) for field in fields(owner)} - flagged
    assert without == {
        *((RunSpec, name) for name in ("healing", "protocol", "name", "record_out_of_reach")),
        *((Protocol, name) for name in ("profile", "task_data", "task_files")),
        *((Recipe, name) for name in ("points", "seed")),
    }
    assert len(flagged) == len(flags_of_run())


@pytest.mark.parametrize("option", flags_of_run().values(), ids=flags_of_run())
def test_the_default_of_a_field_is_a_value_of_it(option):
    if option.field != "methods":
        assert option.convert(option.default) == option.default


def test_what_flags_say_and_what_python_says_is_equal():
    parser = argparse.ArgumentParser()
    cli.add_flags(parser, flags_of_run().values())
    words = "--methods laco:C=3,shortgpt --ratio 0.1,0.3 --set laco.T=0.5,0.6 --profile smoke --window 64 --tasks none"
    words += " --calibration c4,wiki --prefill 8,16 --no-checks --compile --heal lora --heal-tokens 4096 --seed 3,4"
    words += " --then flap:ratio=0.5 --no-isolate --out there --save-models --threads 2 --batch 2"
    by_flags = spec_from_flags(cli.given_flags(parser.parse_args(words.split()), flags_of_run().values()))
    protocol = {"window": 64, "tasks": (), "calibration": ["c4", "wiki"], "prefill": [8, 16], "batches": 2}
    in_python = RunSpec(
        methods=["laco:C=3", "shortgpt"],
        ratios=[0.1, 0.3],
        settings={"laco.T": [0.5, 0.6]},
        profile="smoke",
        protocol=protocol | {"checks": False, "compile": True},
        healing=Recipe("lora", tokens=4096, seed=3),
        seeds=[3, 4],
        then=["flap:ratio=0.5"],
        isolate=False,
        out=Path("there"),
        save_models=True,
        threads=2,
    )
    assert replace(by_flags, protocol={}, methods="dense") == replace(in_python, protocol={}, methods="dense")
    assert by_flags.method_choices() == in_python.method_choices()
    assert by_flags.protocols() == in_python.protocols()
    ((first, seed), *others) = in_python.protocols()
    assert (first.stride, first.save_dtype, first.batches, seed) == (64, "auto", (2,), 3)
    assert len(others) == 3
    assert in_python.healing == Recipe("lora", tokens=4096, seed=3, learning_rate=1e-3)


def test_python_takes_the_names_of_flags_and_single_values():
    named = RunSpec(
        "laco", ratio=0.2, seed=3, windows=4, no_checks=True, first_windows=True, set={"laco.C": 3}, plugin=(), batch=2
    )
    protocol = {"windows": 4, "checks": False, "windows_drawn": False, "batches": 2}
    assert named.ratios == (0.2,)
    assert named == RunSpec("laco", ratios=[0.2], seeds=[3], settings={"laco.C": 3}, protocol=protocol)
    healed = RunSpec("laco", heal="lora", heal_tokens=4096, seed=3)
    assert healed == RunSpec("laco", healing=Recipe("lora", tokens=4096, seed=3), seeds=[3])
    assert replace(healed, ratios=[0.1]).healing == healed.healing


@pytest.mark.parametrize("option", flags_of_run().values(), ids=flags_of_run())
def test_every_flag_is_a_name_that_python_takes(option):
    """A wrong value is refused as that flag's, or taken, and never as one of an unknown name."""
    with pytest.raises(UserError) as refused:
        RunSpec(**{"methods": "laco", option.flag.replace("-", "_"): object()})
    assert "RunSpec takes no" not in str(refused.value)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_what_it_says_and_otherwise_the_defaults(name):
    found = protocol_of_profile(name)
    for field in fields(Protocol):
        assert getattr(found, field.name) == (PROFILES[name] | {"profile": name}).get(field.name, field.default)


WRONG = {
    "a word for a number": (lambda: Protocol(window="wide"), "--window is 2 or more; got 'wide'"),
    "half a token": (lambda: Protocol(window=3.5), "--window is 2 or more; got 3.5"),
    "yes for a number": (lambda: Protocol(windows=True), r"--windows is 0 \(for all\) or positive; got True"),
    "another word": (lambda: Protocol(cache="paged"), "--cache is dynamic or static; got 'paged'"),
    "several words": (
        lambda: Protocol(save_dtype="int8"),
        "--save-dtype is auto, float32, bfloat16 or float16; got 'int8'",
    ),
    "a list with a hole": (lambda: Protocol(prefill=[8, 0]), "--prefill is a list of whole numbers, each 1 or more"),
    "a number for words": (lambda: Protocol(texts=[3]), "--texts is a list of words; got [3]"),
    "healing of nothing": (lambda: Recipe(passes=0), "--heal-passes is a positive number; got 0"),
    "healing without end": (lambda: Recipe(learning_rate=float("inf")), "--heal-learning-rate is a positive number"),
    "healing at no rate": (lambda: Recipe(learning_rate=0), "--heal-learning-rate is a positive number; got 0"),
    "healing unseen": (lambda: Recipe(points=0), "points of healing is a positive number; got 0"),
    "one layer into one": (
        lambda: SimilarityProtocol(merge=(1,)),
        "--merge is a list of whole numbers, each 2 or more",
    ),
    "no ratio": (lambda: RunSpec("laco", ratios="much"), r"a ratio is a number in \[0, 1\)"),
    "all of it": (lambda: RunSpec("laco", ratios=[0.2, 1]), r"in \[0, 1\); got 1"),
    "no method": (lambda: RunSpec([]), "no method was named"),
    "no field": (lambda: RunSpec("laco", protocol={"windo": 3}), "a protocol has no 'windo'; did you mean window?"),
    "no profile": (lambda: RunSpec("laco", profile="swift"), "no profile 'swift'; there are smoke, quick"),
    "in the protocol": (lambda: RunSpec("laco", protocol={"stride": 999}), "--stride lies between 1 and the window"),
    "not a path": (lambda: RunSpec("laco", out=3), "--out is a path; got 3"),
    "no name": (lambda: RunSpec("laco", ratoi=0.2), "RunSpec takes no 'ratoi'; did you mean ratio?"),
    "a name and its field": (lambda: RunSpec("laco", ratio=0.2, ratios=[0.3]), "ratio and ratios say the same"),
    "a name and the protocol": (
        lambda: RunSpec("laco", windows=4, protocol={"windows": 3}),
        "protocol's windows and windows say the same",
    ),
    "no methods": (lambda: RunSpec(ratio=0.2), "arguments are required: --methods"),
    "not a method": (lambda: RunSpec("lacoo"), "no method is called 'lacoo'; did you mean laco?"),
    "not a compensation": (lambda: RunSpec("laco+gost"), "no compensation is called 'gost'; did you mean ghost?"),
    "a parameter twice": (lambda: RunSpec("laco:C=3,C=4"), "laco:C is given twice, as 3 and 4"),
    "no recipe": (lambda: RunSpec("laco", healing="lora"), "healing is a Recipe; got 'lora'"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_cannot_be_is_refused_when_it_is_made(mistake):
    make, message = WRONG[mistake]
    with pytest.raises(UserError, match=message.replace("[3]", r"\[3\]")):
        make()


# --- keys


@pytest.mark.parametrize("run", sorted(path.name for path in RESULTS.iterdir()))
def test_the_keys_of_shipped_records_are_made_of_the_same_fields(run):
    found = read_records(RESULTS / run)
    assert found
    for key, record in found.items():
        assert record.cell.key == key


COUNT = re.compile(r"(\d+) cells")
STUDIES = ("laco-ablation", "laco-calibration", "laco-range", "laco-ls-ablation", "ratio-curves", "seeds")


EARLIER_FIT = ("laco-ls-ablation", "ratio-curves")  # whose fits left the first position out, and had no `sinks`
LATER = ("leave_first", "sinks", "divisions", "exchanges", "close", "finalists", "final_tokens")  # of laco-ls


def but_for_the_fit(cell: Cell, name: str) -> str:
    """What a cell asks for; in a study of the earlier fit without what is asked otherwise since."""
    left_out = LATER if name in EARLIER_FIT else ()
    parameters = {key: value for key, value in cell.parameters.items() if key not in left_out}
    return replace(cell, parameters=parameters).question


@functools.cache
def cells_of_shipped(name: str) -> list[Cell]:
    """The cells of a shipped spec on made texts, and on a made model of as many layers as the default one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "check_text", lambda text, **_: None)
        patch.setattr(pretrained, "check", lambda name, trust: None)
        patch.setattr(validate, "room_for_predictions", lambda: 10**12)
        patch.setattr(
            pretrained, "make_shell", lambda name, trust: tiny("llama", layers=30, max_position_embeddings=2048)
        )
        return validate.cells_of_spec(run_spec.load_spec(name, {"device": "cpu"}))


@pytest.mark.parametrize("name", [*STUDIES, "compensation", "compensation-calibration", "sinks"])
def test_a_spec_asks_for_the_cells_that_its_shipped_run_has(name):
    wanted = {but_for_the_fit(cell, name) for cell in cells_of_shipped(name)}
    shipped = {but_for_the_fit(record.cell, name) for record in read_records(RESULTS / name).values()}
    assert shipped == wanted


@pytest.mark.parametrize("name", [name for name, said in run_spec.shipped_specs().items() if COUNT.search(said)])
def test_a_spec_has_as_many_cells_as_is_said(name):
    """Without the dense model's, which are measured in addition."""
    found = [cell for cell in cells_of_shipped(name) if cell.method != "dense"]
    assert int(COUNT.findall(run_spec.shipped_specs()[name])[0]) == len(found)


SIZES = {  # cells, and dense ones
    "compensation": (87, 3),
    "compensation-calibration": (15, 1),
    "departures": (52, 1),
    "laco-ablation": (33, 1),
    "laco-calibration": (42, 6),
    "laco-ls-ablation": (19, 1),
    "laco-range": (16, 1),
    "ratio-curves": (65, 1),
    "seeds": (110, 10),
    "sinks": (130, 10),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_studies_are_as_large_as_they_say_and_have_no_tasks(name):
    """On a model of 30 layers nothing is out of reach."""
    found = cells_of_shipped(name)
    assert (len(found), sum(cell.method == "dense" for cell in found)) == SIZES[name]
    assert str(len(found) - SIZES[name][1]) in run_spec.shipped_specs()[name]
    assert found[0].protocol.tasks == ()
    assert found[0].protocol.speed_rounds == 0


# --- out of reach


def test_a_ratio_out_of_reach_is_an_outcome_in_a_spec_and_refused_by_hand(base, tmp_path, capsys):
    spec, run = tmp_path / "mine.yaml", tmp_path / "run"
    spec.write_text("methods: [laco, drop-tail]\nratio: 0.6\nthen: laco:ratio=0.7\n")
    assert main([*base, "--spec", str(spec)]) == 0
    out = capsys.readouterr().out
    found = {record.cell.label: record for record in load_run(run)}
    assert {label: record.status for label, record in found.items()} == {
        "dense": "ok",
        "laco": "out_of_reach",
        "laco at 0.6, then laco": "out_of_reach",
        "drop-tail": "ok",
        "drop-tail at 0.6, then laco": "out_of_reach",
    }
    assert "windows of C=4 with I=2 remove at most" in found["laco"].error
    assert "there is no model of laco to go on from: out_of_reach" in found["laco at 0.6, then laco"].error
    assert "laco [out of reach: ratio 0.612271 is out of reach" in " ".join(out.split())
    assert main([*base, "--spec", str(spec), "--retry-failed"]) == 0
    assert capsys.readouterr().err.count("has a record") == 5
    assert "remove at most" in refused(capsys, [*base, "--spec", str(spec), "--methods", "laco"])


def test_all_goes_on_where_one_method_cannot_and_a_name_does_not(base, model_folder, text_file):
    here = {"model": str(model_folder), "profile": "smoke", "device": "cpu", "tasks": "none", "ratio": 0.6}
    here |= {"texts": str(text_file), "calibration": str(text_file)}
    cells = validate.cells_of_spec(spec_from_flags(here | {"methods": "all"}))
    assert "laco" in {cell.method for cell in cells}
    for methods in ("laco", "all,laco", "all,laco:C=4"):
        with pytest.raises(UserError, match=r"laco.*remove at most"):
            validate.cells_of_spec(spec_from_flags(here | {"methods": methods}))


def test_a_ratio_out_of_reach_is_no_reason_against_a_chain(base, model_folder, text_file, tmp_path):
    """Neither of what --then goes on from, nor, in a spec, of what it asks for."""
    here = {"model": str(model_folder), "profile": "smoke", "device": "cpu", "tasks": "none"}
    here |= {"texts": str(text_file), "calibration": str(text_file)}
    asked = here | {"methods": "all", "ratio": "0.2,0.95", "then": "laco:ratio=0.3"}
    found = {cell.label for cell in validate.cells_of_spec(spec_from_flags(asked)) if cell.earlier}
    assert {"sleb at 0.2, then laco", "sleb at 0.95, then laco"} <= found
    spec = tmp_path / "mine.yaml"
    spec.write_text("methods: drop-tail\nratio: 0.2\nthen: laco:ratio=0.95\n")
    (last,) = (cell for cell in validate.cells_of_spec(run_spec.load_spec(str(spec), here)) if cell.earlier)
    assert (last.method, last.ratio) == ("laco", 0.95)


def test_methods_for_mixtures_alone_are_left_out_whatever_mends_them(model_folder, text_file):
    here = {"model": str(model_folder), "profile": "smoke", "device": "cpu", "tasks": "none", "ratio": 0.2}
    here |= {"texts": str(text_file), "calibration": str(text_file), "methods": "all", "compensate": "scale"}
    found = {cell.method for cell in validate.cells_of_spec(spec_from_flags(here))}
    assert "sleb+scale" in found
    assert found & {"reap+scale", "expert-norm+scale", "expert-frequency+scale", "expert-random+scale"} == set()
    named = {cell.method for cell in validate.cells_of_spec(spec_from_flags(here | {"methods": "reap"}))}
    assert "reap+scale" in named  # whose outcome says why


# --- its folder


@pytest.mark.parametrize("command", ["run", "speed"])
def test_an_interrupt_names_the_folder_that_was_not_named(command, base, tmp_path, monkeypatch, capsys):
    """By default it has the date in its name, so that tomorrow the same command begins a new one."""

    def stopped(cells, folder, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", stopped)
    monkeypatch.chdir(tmp_path)
    at = base.index("--out")
    asked = {"run": [*base[:at], *base[at + 2 :], "--methods", "drop-tail", "--ratio", "0.3"]}
    asked["speed"] = ["speed", base[base.index("--model") + 1], "--device", "cpu"]
    assert main(asked[command]) == 130
    (folder,) = Path("results").iterdir()
    said = capsys.readouterr().err
    assert said == f"prunebench: interrupted; the same command with --out {folder} goes on where it stopped\n"
    assert main([*asked[command], "--out", str(folder)]) == 130
    assert capsys.readouterr().err == "prunebench: interrupted; the same command goes on where it stopped\n"
