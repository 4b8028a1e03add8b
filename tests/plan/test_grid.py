"""Sweeps and spec files: what multiplies, what is refused before work, and that keys stay what they were."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import refused, tiny
from made_cells import made_cell, made_inputs

from bench.cli.main import main
from bench.plan import grid, run_spec, validate
from bench.plan.cell import Cell
from bench.plan.protocol import protocol_of_profile
from bench.plan.run_spec import RunSpec
from bench.records import run_folder
from bench.runs import runner
from methods.errors import UserError
from reports.published.against import CLOSE
from reports.published.papers import read_published


@pytest.fixture
def cells_of(monkeypatch):
    """The cells that a command line asks for; nothing is run."""

    def ask(arguments: list[str]) -> list[Cell]:
        seen: list[Cell] = []

        def run(cells, folder, **_):
            seen.extend(cells)
            raise KeyboardInterrupt

        monkeypatch.setattr(runner, "run", run)
        assert main(arguments) == 130
        return seen

    return ask


def labels(cells: list[Cell]) -> list[str]:
    return [cell.label for cell in cells if cell.method != "dense"]


# --- keys


def test_the_key_of_a_cell_is_that_of_shipped_records():
    """Records that were measured still count, whatever fields and parameters are added later."""
    protocol = protocol_of_profile("quick", windows_drawn=False, calibration_sequences=16)
    parameters, inputs = {"C": 4, "I": 2, "T": None}, made_inputs("ab", versions={"torch": "2.13.0"})
    cell = made_cell("laco", 0.3, protocol, model="smollm2-135m", parameters=parameters, given=("C",), inputs=inputs)
    assert cell.key == "laco-C-4--0.3--13e93a71"
    asks = json.loads(replace(cell, protocol=replace(protocol, calibration_sequences=64)).question)["protocol"]
    assert asks == json.loads(cell.question)["protocol"] | {
        "calibration_sequences": 64
    }  # today's default is in the key


def test_one_value_is_asked_for_as_ever(base, cells_of):
    """A flag with one value gives the cell that a mention with the parameter inside gives, and no other."""
    one = cells_of([*base, "--methods", "laco", "--ratio", "0.4", "--set", "laco.C=3", "--seed", "2"])
    other = cells_of([*base, "--methods", "laco:C=3", "--ratio", "0.4", "--seed", "2"])
    assert [cell.key for cell in one] == [cell.key for cell in other]
    assert one[1].seed == 2
    assert one[1].protocol.calibration_sequences == 4
    assert one[1].given == ("C",)


# --- sweeps


def test_settings_multiply(base, cells_of):
    found = cells_of(
        [*base, "--methods", "laco,drop-tail", "--ratio", "0.2", "--set", "laco.C=2,3", "--set", "laco.I=1,2"]
    )
    pairs = [(cell.parameters["C"], cell.parameters["I"]) for cell in found if cell.method == "laco"]
    assert pairs == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert [cell.method for cell in found] == ["dense", *["laco"] * 4, "drop-tail"]
    assert len({cell.key for cell in found}) == 6


def test_a_mention_keeps_what_it_says_itself():
    swept = grid.choices_of_spec(RunSpec(methods="laco:C=3,laco,flap", settings={"laco.C": [2, 4], "laco.T": 0.5}))
    assert [mention[:2] for mention in swept] == [
        ("laco", {"C": "3", "T": "0.5"}),
        ("laco", {"C": "2", "T": "0.5"}),
        ("laco", {"C": "4", "T": "0.5"}),
        ("flap", {}),
    ]


def test_settings_reach_what_then_names(base, cells_of):
    then = ["--then", "laco:ratio=0.5", "--then", "laco:ratio=0.6,tokens=8"]
    settings = ["--set", "laco.C=3", "--set", "laco.tokens=16", *then]
    cells = cells_of([*base, "--methods", "laco:C=2", "--ratio", "0.2", *settings])
    assert [(cell.parameters["C"], cell.parameters["tokens"]) for cell in cells[1:]] == [(2, 16), (3, 16), (3, 8)]
    (_, drop, *chained) = cells_of([*base, "--methods", "drop-tail", "--ratio", "0.2", *settings])
    assert drop.method == "drop-tail"
    assert [cell.parameters["C"] for cell in chained] == [3, 3]


def test_of_one_name_the_last_counts():
    assert grid.parse_settings(["laco.C=2,3", "laco.T=0.7", "laco.C=4"]) == {"laco": {"C": ["4"], "T": ["0.7"]}}


def test_what_methods_look_at_multiplies(base, text_file, tmp_path, cells_of):
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text())
    lists = ["--calibration", f"{text_file},{other}", "--calibration-sequences", "2,4", "--seed", "0,1"]
    found = cells_of([*base, "--methods", "shortgpt", "--ratio", "0.4", *lists])
    asked = [(c.protocol.calibration, c.protocol.calibration_sequences, c.seed) for c in found if c.method != "dense"]
    assert asked == [(str(text), n, seed) for text in (text_file, other) for n in (2, 4) for seed in (0, 1)]
    assert len(found) == 16  # the dense model under each
    assert {cell.protocol.calibration_length for cell in found} == {24}


@pytest.mark.parametrize(
    "given, sequences",
    [
        ({"calibration_tokens": "1k,4k"}, {4, 16}),
        ({"calibration_tokens": "512"}, {2}),
        ({"calibration_tokens": ["1K"], "calibration_length": 64}, {16}),
        ({"calibration_tokens": "1k,1024"}, {4}),
    ],
)
def test_calibration_tokens_are_whole_sequences(given, sequences):
    spec = RunSpec("flap", ratios=[0.2], **given)
    assert {protocol.calibration_sequences for protocol, _ in spec.protocols()} == sequences


@pytest.mark.parametrize(
    "given, message",
    [
        ({"calibration_tokens": "1000"}, "are whole sequences of 256 tokens .*; 1000 is 3.90625 of them"),
        ({"calibration_tokens": "0"}, "0 is 0 of them"),
        ({"calibration_tokens": "1m"}, "are numbers, or thousands of 1,024 as in 64k; got '1m'"),
        ({"calibration_tokens": "-1k"}, "got '-1k'"),
        ({"calibration_tokens": "1k", "calibration_sequences": 4}, "say the same; give one of them"),
        ({"calibration_tokens": "1k", "calibration_length": "64,128"}, "takes one --calibration-length"),
    ],
)
def test_calibration_tokens_that_cannot_be(given, message):
    with pytest.raises(UserError, match=message):
        RunSpec("flap", ratios=[0.2], **given)


def test_a_file_with_a_comma_in_its_name_is_one_text(base, text_file, tmp_path, cells_of):
    odd = tmp_path / "a,b.txt"
    odd.write_text(text_file.read_text())
    found = cells_of([*base, "--methods", "shortgpt", "--ratio", "0.4", "--calibration", str(odd)])
    assert {cell.protocol.calibration for cell in found} == {str(odd)}


MISTAKES = {
    "set of another": (["--set", "lacoo.C=2,3"], "lacoo, which --methods does not name; did you mean laco?"),
    "set unknown": (["--set", "laco.sentence=2,3"], "laco has no parameter sentence; it has: C, I"),
    "set near": (["--set", "laco.sentence=2"], "did you mean sentences?"),
    "set wrong": (["--set", "laco.C=2,x"], "laco:C is int, at least 2; got 'x'"),
    "set with a hole": (["--set", "laco.C=2,,3"], "--set is written METHOD.NAME=VALUE, as in laco.T=0.7 or laco.C=2,3"),
    "second text unknown": (["--calibration", "wiki,wikki"], "no text 'wikki'; did you mean wiki"),
    "no number": (["--seed", "0,x"], "--seed is a list of whole numbers; got '0,x'"),
    "no seed": (["--seed", "none"], "--seed is given nothing"),
    "zero sequences": (["--calibration-sequences", "4,0"], "--calibration-sequences is a positive number; got 0"),
    "too many": (
        ["--set", "laco.C=2,3", "--seed", "0,1", "--max-cells", "5"],
        "multiplies to 6 cells, and --max-cells",
    ),
    "far too many": (
        ["--set", f"laco.tokens={','.join(map(str, range(1, 3001)))}", "--set", f"laco.sentences={','.join('123456')}"],
        "multiplies to 18,000 or more cells, and --max-cells allows 200",
    ),
    "minutes of no search": (
        ["--search-minutes", "3"],
        "--search-minutes ends a search, and --methods names none of darwinlm, evopress, tyr",
    ),
    "no minutes": (["--search-minutes", "0"], "--search-minutes is 0.01 or more; got 0"),
    "no cells": (["--set", "laco.C=2,3", "--max-cells", "0"], "--max-cells is a positive number; got 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_sweep_is_refused_before_any_work(mistake, base, capsys, tmp_path):
    arguments, message = MISTAKES[mistake]
    assert message in refused(capsys, [*base, "--methods", "laco", "--ratio", "0.2", *arguments])
    assert not (tmp_path / "run").exists()


def test_the_limit_is_for_sweeps_alone(base, cells_of):
    ratios = ["--ratio", "0.2,0.4", "--max-cells", "1"]
    assert len(cells_of([*base, "--methods", "drop-tail", *ratios])) == 3


def test_a_sweep_runs_and_prints_one_factor_against_another(base, text_file, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text().replace("w1 ", "w2 "))
    arguments = [*base, "--methods", "laco:I=1", "--ratio", "0.4", "--set", "laco.C=2,3", "--seed", "0,1"]
    arguments += ["--calibration", str(other)]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "laco: ppl words.txt ↓ by C and seed" in out
    assert re.search(r"^dense +\d+ ± \d+", out, re.MULTILINE)
    assert "[6/6]" in err
    records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").glob("*.json")]
    hashes = {(record["cell"]["seed"], record["cell"]["inputs"]["calibration_sha256"]) for record in records}
    assert len(hashes) == 2
    assert len({record["cell"]["inputs"]["texts"][str(text_file)] for record in records}) == 1
    decided = {record["decisions"]["calibration"]["sha256"] for record in records if record["cell"]["seed"] == 1}
    assert decided == {sha256 for seed, sha256 in hashes if seed == 1}
    assert main([*arguments[:-2], *arguments[-2:]]) == 0
    assert capsys.readouterr().err.count("has a record") == 6


def test_cells_of_a_sweep_are_those_of_single_runs(base, tmp_path, capsys):
    """Sharing what is read changes no figure: a run of one seed finds its cells in the sweep's folder."""
    rest = ["--methods", "shortgpt", "--ratio", "0.4"]
    assert main([*base, *rest, "--seed", "0,1", "--calibration-sequences", "2,4"]) == 0
    capsys.readouterr()
    assert main([*base, *rest, "--seed", "1", "--calibration-sequences", "2"]) == 0
    assert capsys.readouterr().err.count("has a record") == 2


def test_no_seed_draws_again_what_another_has_drawn(cells_of, base):
    cells = cells_of([*base, "--methods", "drop-random:draws=3", "--ratio", "0.4", "--seed", "0,1,2"])
    drawn = [cell.parameters["seed"] for cell in cells if cell.method == "drop-random"]
    assert len(set(drawn)) == len(drawn) == 9
    assert sorted(drawn)[:3] == [0, 1, 2]


def test_minutes_of_searches_are_their_parameter(base, cells_of):
    """One flag gives searches, compensated ones too, the cells that the parameter gives; others have no minutes."""
    methods = [*base, "--ratio", "0.4", "--methods"]
    by_flag = cells_of([*methods, "evopress,shortgpt,tyr+ghost,evopress:minutes=3", "--search-minutes", "0.5"])
    named = "evopress:minutes=0.5,shortgpt,tyr+ghost:minutes=0.5,evopress:minutes=3"
    assert [cell.key for cell in by_flag] == [cell.key for cell in cells_of([*methods, named])]
    assert [cell.parameters.get("minutes") for cell in by_flag] == [None, 0.5, None, 0.5, 3.0]


def test_minutes_of_a_search_that_a_chain_names(base, cells_of):
    asked = [*base, "--ratio", "0.2", "--methods", "shortgpt", "--then", "evopress:ratio=0.4", "--search-minutes", "2"]
    assert [cell.parameters.get("minutes") for cell in cells_of(asked)] == [None, None, 2.0]


def test_seeds_alone_print_their_mean_and_not_one_row_for_each(base, capsys, tmp_path):
    assert main([*base, "--methods", "shortgpt,drop-random:draws=2", "--ratio", "0.4", "--seed", "0,1"]) == 0
    out = capsys.readouterr().out
    assert "ratio 0.4" in out
    assert out.count("\nshortgpt ") == 1
    assert "drop-random:draws=2 [4 draws over 2 seeds]." in " ".join(out.split())
    assert main(["report", str(tmp_path / "run"), "--explain"]) == 0
    _, _, calibration = " ".join(capsys.readouterr().out.split()).rpartition("calibration ")
    assert calibration.endswith(", seeds 0, 1")


# --- spec files


def written(tmp_path, table, name="mine.yaml"):
    path = tmp_path / name
    path.write_text(table if isinstance(table, str) else yaml.safe_dump(table, sort_keys=False))
    return str(path)


def test_a_spec_is_the_flags_that_it_names(base, tmp_path, cells_of):
    spec = {
        "description": "mine",
        "methods": ["laco", "shortgpt+ghost"],
        "ratio": [0.2, 0.4],
        "set": {"laco.C": [2, 3], "laco.I": 1, "laco.H": None, "laco.clamp": False},
        "calibration_sequences": [2, 4],
        "no-checks": True,
        "uniform": False,
        "seed": 3,
    }
    flags = ["--methods", "laco,shortgpt+ghost", "--ratio", "0.2,0.4", "--set", "laco.C=2,3", "--set", "laco.I=1"]
    flags += ["--set", "laco.H=none", "--set", "laco.clamp=false", "--no-checks", "--seed", "3"]
    place = base.index("--calibration-sequences")
    base, flags = [*base[:place], *base[place + 2 :]], [*flags, "--calibration-sequences", "2,4"]
    by_file = cells_of([base[0], "--spec", written(tmp_path, spec), *base[1:]])
    assert [cell.key for cell in by_file] == [cell.key for cell in cells_of([*base, *flags])]
    assert len(by_file) == 2 * (1 + 2 * 3)
    assert not by_file[0].protocol.checks


@pytest.mark.parametrize(
    ("said", "on"), [(True, True), (1, True), ("true", True), ("on", True), (0, False), ("off", False)]
)
def test_a_switch_that_turns_something_off_may_be_written_in_any_way(said, on, with_checks, tmp_path, cells_of):
    spec = written(tmp_path, {"methods": "laco", "ratio": 0.2, "no-checks": said, "first-windows": said})
    protocol = cells_of([with_checks[0], "--spec", spec, *with_checks[1:]])[0].protocol
    assert (protocol.checks, protocol.windows_drawn) == (not on, not on)


def test_flags_win_over_the_file_wherever_they_stand(base, tmp_path, cells_of):
    spec = written(tmp_path, {"methods": "laco", "ratio": 0.2, "set": {"laco.C": [2, 3], "laco.I": 1}, "window": 16})
    found = cells_of([*base, "--ratio", "0.4", "--set", "laco.C=4", f"--spec={spec}"])
    assert [(cell.ratio, cell.parameters["C"], cell.parameters["I"]) for cell in found[1:]] == [(0.4, 4, 1)]
    assert found[0].protocol.window == 32


def test_a_spec_builds_on_another(base, tmp_path, cells_of):
    written(tmp_path, {"methods": "laco", "ratio": [0.2, 0.4], "set": {"laco.C": 2, "laco.I": 1}}, "below.yaml")
    spec = written(tmp_path, {"base": "below.yaml", "ratio": 0.4, "set": {"laco.C": 3}})
    found = cells_of([*base, "--spec", spec])
    assert [(cell.ratio, cell.parameters["C"], cell.parameters["I"]) for cell in found[1:]] == [(0.4, 3, 1)]


WRONG = {
    "unknown key": ({"methdos": "laco"}, "`run` has no flag 'methdos'; did you mean methods?"),
    "own word": ({"descripton": "x"}, "did you mean description?"),
    "wrong type": ({"methods": "laco", "window": "wide"}, "--window is 2 or more; got 'wide'"),
    "list of one": ({"methods": "laco", "window": [32, 64]}, "--window is 2 or more; got [32, 64]"),
    "wrong word": ({"methods": "laco", "match": "most"}, "--match is layers or exact; got 'most'"),
    "no switch": ({"methods": "laco", "window": True}, "--window is 2 or more; got True"),
    "a switch with a value": ({"methods": "laco", "uniform": 3}, "--uniform is true or false; got 3"),
    "a switch off with a value": ({"no-checks": 3}, "mine.yaml: --no-checks is true or false; got 3"),
    "table": ({"methods": {"laco": 1}}, "methods is a value or a list of values; got {'laco': 1}"),
    "nested list": ({"ratio": [[0.1]]}, "ratio is a value or a list of values; got [0.1]"),
    "empty": ({"ratio": []}, "ratio is an empty list"),
    "nothing": ({"ratio": None}, "ratio has no value"),
    "twice": ({"max-cells": 1, "max_cells": 2}, "names max-cells twice"),
    "a spec in a spec": ({"spec": "x"}, "`run` has no flag 'spec'"),
    "remote code": ({"trust_remote_code": True}, "give --trust-remote-code on the command line"),
    "no table": ("- laco\n", "is no table of the flags of `run`"),
    "no YAML": ("methods: [laco\n", "is not YAML"),
    "a key twice": (
        "methods: laco\nratio: 0.1\nmethods: shortgpt\n",
        "the table at line 1 names methods twice; keep one",
    ),
    "a setting twice": (
        "methods: laco\nset: {laco.C: 4, laco.C: 5}\n",
        "the table at line 2 names laco.C twice; keep one",
    ),
    "an object": ("methods: !!python/name:os.system\n", "is not YAML"),
    "no methods": ({"ratio": 0.2}, "the following arguments are required: --methods"),
    "no base": ({"base": "laco-papper"}, "no spec 'laco-papper'; did you mean laco-paper?"),
    "its own base": ({"base": "mine.yaml"}, "base leads back to"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_spec_is_refused_in_one_line(mistake, base, capsys, tmp_path):
    table, message = WRONG[mistake]
    line = refused(capsys, [*base, "--spec", written(tmp_path, table)])
    assert message in line
    assert "mine.yaml" in line or mistake in ("no methods", "no base")
    assert not (tmp_path / "run").exists()


def test_a_spec_that_is_not_there_is_refused(base, capsys):
    assert "no spec 'laco-ablaton'; did you mean laco-ablation?" in refused(capsys, [*base, "--spec", "laco-ablaton"])
    assert "give a YAML file, or one of" in refused(capsys, [*base, "--spec", "/no/such.yaml"])
    assert "expected one argument" in refused(capsys, [*base, "--methods", "laco", "--spec"])


# --- what comes with the suite


def test_every_spec_that_comes_with_the_suite_is_described(capsys):
    assert main(["list", "specs"]) == 0
    out = capsys.readouterr().out
    for name, description in run_spec.shipped_specs().items():
        assert description
        assert "\n" not in description
        assert f"{name} " in out


@pytest.mark.parametrize("name", run_spec.shipped_specs())
def test_every_spec_asks_for_methods_and_parameters_that_there_are(name):
    import methods

    spec = run_spec.load_spec(name, {"device": "cpu"})
    asked = [methods.make(method, given) for method, given, _ in grid.choices_of_spec(spec)]
    assert asked
    assert all(pruner.fixed or spec.ratios for pruner in asked)


@pytest.mark.parametrize("field", ["window", "calibration_length"])
def test_sequences_that_are_longer_than_a_model_takes_are_refused(field):
    sizes = {"window": 128, "stride": 64, "calibration_length": 128}
    longer = protocol_of_profile("quick", **sizes | {field: 129})
    for family in ("gpt2", "llama"):
        config = tiny(family).config
        validate.refuse_longer(protocol_of_profile("quick", **sizes), config)
        with pytest.raises(UserError, match=f"--{field.replace('_', '-')} 129 is more than the 128 tokens"):
            validate.refuse_longer(longer, config)
        if field == "calibration_length":
            validate.refuse_longer(longer, config, is_calibrated=False)


@pytest.mark.parametrize(("task", "tokens"), [("instructions", 128), ("gsm8k_gen", 256), ("codex_mbpp_gen", 512)])
def test_an_answer_that_leaves_a_model_no_room_for_the_prompt_is_refused(task, tokens):
    config = tiny("llama").config  # which takes 128 tokens
    sizes = {"window": 128, "stride": 64, "calibration_length": 128}
    validate.refuse_longer(protocol_of_profile("quick", tasks=("squad_gen", "piqa", "triviaqa"), **sizes), config)
    words = (
        f"--tasks {task}: a written answer has up to {tokens} tokens, and of the 128 tokens that the model takes none"
    )
    with pytest.raises(UserError, match=words):
        validate.refuse_longer(protocol_of_profile("quick", tasks=("piqa", task), **sizes), config)


@pytest.mark.nightly
@pytest.mark.default_model
def test_the_healing_study_asks_for_what_its_record_holds(tmp_path, cells_of):
    asked = ["run", "--spec", "laco-heal", "--device", "cpu", "--out", str(tmp_path / "r")]
    dense, pruned, healed = cells_of(asked)
    assert (dense.method, pruned.method, healed.method) == ("dense", "laco", "laco")
    assert (dense.healing, pruned.healing) == (None, None)
    _, measured = run_folder.find_cell(Path(__file__).parents[2] / "docs/results/smollm2-135m-healed", "laco-healed")
    assert healed.healing.as_run() == measured.measured.healing.recipe
    assert (healed.ratio, healed.protocol.windows) == (measured.cell.ratio, measured.cell.protocol.windows)


PUBLISHED = sorted(path.stem for path in (Path(run_spec.__file__).parents[1] / "specs/papers").glob("published-*.yaml"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_spec_of_a_published_table_asks_for_rows_of_it(name):
    """Every printed row of its methods is near one of its ratios, and windows and text are the printed ones."""
    spec = run_spec.load_spec(name, {})
    (paper,) = read_published(name.split("-")[1])
    (model,) = (one for one in paper.models.values() if spec.model in one.names)
    asked = {one.method for one in grid.choices_of_spec(spec)}
    measured = [row for row in model.rows if row.ratio]
    printed = {(method, row.ratio) for row in measured for method in row.methods if method in asked}
    assert asked <= {method for row in model.rows for method in row.methods}
    near = {ratio: [one for one in printed if abs(one[1] - ratio) <= CLOSE] for ratio in spec.ratios}
    assert all(near.values())
    assert {method for ones in near.values() for method, _ in ones} == {method for method, _ in printed}
    ((protocol, _),) = spec.protocols()
    dense = next(row for row in model.rows if row.methods == ("dense",))
    wanted = paper.protocol.with_own(dense.protocol)
    assert protocol.window == wanted.window
    assert protocol.windows == wanted.windows
    assert protocol.speed_rounds == 0
    words = next(iter(dense.perplexity), "")
    assert all(words in text for text in protocol.texts)


def test_the_papers_settings_are_the_published_ones():
    seen = {}
    for name in ("llama2-7b", "llama2-13b", "baichuan2-7b"):
        spec = run_spec.load_spec(f"laco-paper-{name}", {})
        seen[spec.model] = ([one.given for one in grid.choices_of_spec(spec) if one.method == "laco"], spec.ratios)
    published = {  # C, I, T by notes on the paper and by the authors' notebook
        "meta-llama/Llama-2-7b-hf": ("4", "2", "0.65"),
        "meta-llama/Llama-2-13b-hf": ("6", "2", "0.75"),
        "baichuan-inc/Baichuan2-7B-Base": ("4", "2", "0.7"),
    }
    assert set(seen) == set(published)
    for model, (C, I, T) in published.items():
        given, ratios = seen[model]
        assert (given[0]["C"], given[0]["I"], given[0].get("T")) == (C, I, None)
        assert (given[1]["C"], given[1]["I"], given[1]["T"]) == (C, I, T)
        assert len(ratios) == 1


PROTOCOLS = sorted(path.stem for path in (Path(run_spec.__file__).parents[1] / "specs/papers").glob("protocol-*.yaml"))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_spec_in_a_papers_protocol_says_its_rows_its_command_and_that_it_was_never_run(name):
    spec, text = run_spec.load_spec(name, {}), run_spec.shipped_specs()[name]
    cells = len(grid.choices_of_spec(spec)) * len(spec.ratios)  # beside the dense model
    assert f" {cells} cells, never run" in text or (cells == 5 and " five methods, never run" in text)
    head = (Path(run_spec.__file__).parents[1] / f"specs/papers/{name}.yaml").read_text()
    command = f"python -m bench run --spec {name}"
    assert f"{command} --plan h100 " in head
    assert f"{command} --device cuda --out results/" in head
    assert "# Never run." in head
    assert spec.protocols()[0][0].speed_rounds == 0
    models = {"llama3.1-8b": "meta-llama/Llama-3.1-8B", "qwen3-8b": "Qwen/Qwen3-8B"}
    assert spec.model == models[name.split("-", 2)[2]]


def test_both_models_stand_in_four_papers_protocols():
    assert {name.split("-", 2)[1] for name in PROTOCOLS} == {"laco", "sleb", "2ssp", "minitron"}
    assert len(PROTOCOLS) == 8
