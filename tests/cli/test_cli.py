"""The command line as a user meets it: mistakes are one line and exit code 2, before any work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import refused
from made_cells import made_cell, made_inputs
from tiny_methods import EXPERTS

from bench.cli.main import main
from bench.data import assets
from bench.system import environment, threads
from methods.errors import UserError

MISTAKES = {
    "no such method": (["--methods", "lako", "--ratio", "0.2"], "no method is called 'lako'; did you mean laco?"),
    "no method": (["--methods", ",", "--ratio", "0.2"], "no method was named"),
    "no such parameter": (["--methods", "laco:K=3", "--ratio", "0.2"], "laco has no parameter K; it has: C, I, T"),
    "wrong value": (["--methods", "laco:C=x", "--ratio", "0.2"], "laco:C is int, at least 2; got 'x'"),
    "parameter alone": (["--methods", "C=3", "--ratio", "0.2"], "is a parameter without a method"),
    "set of another": (["--methods", "laco", "--ratio", "0.2", "--set", "flap.x=1"], "which --methods does not name"),
    "set unknown": (["--methods", "laco", "--ratio", "0.2", "--set", "laco.Q=1"], "laco has no parameter Q"),
    "set misspelt": (["--methods", "laco", "--ratio", "0.2", "--set", "laco"], "--set is written METHOD.NAME=VALUE"),
    "ratio of one": (["--methods", "laco", "--ratio", "1"], r"in \[0, 1\); got 1"),
    "negative ratio": (["--methods", "laco", "--ratio", "-0.1"], r"\[0, 1\)"),
    "no number": (
        ["--methods", "laco", "--ratio", "much"],
        r"a ratio is a number in \[0, 1\), such as 0.3; got 'much'",
    ),
    "not a number": (["--methods", "laco", "--ratio", "nan"], r"in \[0, 1\); got nan"),
    "no ratio": (["--methods", "laco"], "laco needs a ratio"),
    "too much": (["--methods", "drop-tail", "--ratio", "0.95"], "out of reach: all but one of the 6 layers"),
    "too much for a window": (["--methods", "laco", "--ratio", "0.6"], "windows of C=4 with I=2 remove at most"),
    "too little": (["--methods", "laco", "--ratio", "0.01"], "less than half a layer"),
    "no such layer": (["--methods", "drop:layers=3-9"], "there is no layer 9: the model has layers 0 to 5"),
    "no such profile": (["--methods", "laco", "--ratio", "0.2", "--profile", "swift"], "no profile 'swift'; there are"),
    "no such text": (["--methods", "laco", "--ratio", "0.2", "--texts", "wikki"], "no text 'wikki'; did you mean wiki"),
    "no such dtype": (["--methods", "laco", "--ratio", "0.2", "--dtype", "int3"], "dtype is auto, float32"),
    "no such device": (
        ["--methods", "laco", "--ratio", "0.2", "--device", "tpu9"],
        "device is auto, cpu, cuda or cuda:N",
    ),
    "a seed beyond torch's": (
        ["--methods", "laco", "--ratio", "0.2", "--seed", str(2**64)],
        "--seed lies between 0 and",
    ),
    "no model": (["--methods", "laco", "--ratio", "0.2", "--model", ""], "--model is given nothing"),
    "too many threads": (["--methods", "laco", "--ratio", "0.2", "--threads", "9999"], "--threads lies between 1 and"),
    "long stride": (["--methods", "laco", "--ratio", "0.2", "--stride", "99"], "stride lies between 1 and the window"),
    "no plugin": (["--methods", "laco", "--ratio", "0.2", "--plugin", "mine.py"], "--plugin names a Python file"),
    "unknown flag": (
        ["--methods", "laco", "--ratio", "0.2", "--speed"],
        r"unrecognized arguments: --speed; did you mean --\w+\?; see `python -m bench run --help`",
    ),
    "negative shots": (["--methods", "laco", "--ratio", "0.2", "--fewshot", "-1"], "fewshot is a number of examples"),
    "data of no task": (
        ["--methods", "laco", "--ratio", "0.2", "--task-data", f"race={__file__}"],
        r"--task-data: .*test_cli.py holds no .arrow, .parquet, .jsonl file",
    ),
    "data misspelt": (
        ["--methods", "laco", "--ratio", "0.2", "--task-data", "race"],
        "--task-data is written TASK=PATH",
    ),
    "multiple beyond the width": (
        ["--methods", "slicegpt:multiple=1000", "--ratio", "0.2"],
        "multiple is at most the model's width",
    ),
    "negative limit": (["--methods", "laco", "--ratio", "0.2", "--cell-minutes", "-1"], "--cell-minutes is 0 for no"),
    "endless limit": (["--methods", "laco", "--ratio", "0.2", "--cell-memory-mib", "nan"], "or positive; got nan"),
    "limit of no process": (
        ["--methods", "laco", "--ratio", "0.2", "--cell-minutes", "5", "--no-isolate"],
        "--cell-minutes needs a process of its own; leave --no-isolate out",
    ),
    "negative count": (["--methods", "laco", "--ratio", "0.2", "--windows", "-1"], "windows is 0 .* or positive"),
}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "7"}),
    ],
)
def test_threads_wait_as_the_user_says_or_for_a_moment(said, kept, monkeypatch, capsys):
    monkeypatch.setattr("os.environ", dict(said))
    assert main(["list", "profiles"]) == 0
    assert os.environ == kept
    assert threads.settings_of_waiting() == {name.lower(): value for name, value in kept.items()}


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        (["--method", "laco"], "a command stands first, and --method is none; did you mean `run --methods`?"),
        (["--methods=laco"], "did you mean `run --methods`?"),
        (["rnu"], "did you mean run?"),
        (["report", "RUN", "--vew", "main"], "unrecognized arguments: --vew main; did you mean --view?"),
        (["report", "RUN", "--view", "mian"], "did you mean main?"),
        (["list"], "required: one of methods, models, families, tasks, texts, profiles, specs, formats"),
        (["list", "method"], "did you mean methods?"),
        ([], "required: one of run, speed, export"),
        (["pack"], "required: RUN"),
    ],
)
def test_what_was_meant_is_said_of_a_word_that_is_near(line, meant, capsys):
    assert meant in refused(capsys, line)


def test_a_message_shows_the_ends_of_what_is_long_and_no_escapes():
    long, quoted = "x" * 5000, "a b " * 1000
    for text, shown in (
        (f"no method is called {long}", f"no method is called {'x' * 50}…{'x' * 50}"),
        (f"got {quoted!r}, not 3", f"got '{quoted[:49]}…{quoted[-49:]}', not 3"),
        ("la\x1b[31mco\u202e\x00", r"la\x1b[31mco\u202e\x00"),
        ("two\nlines", "two lines"),
        ("the base's, " + "and more " * 50 + "the run's", None),
        ("'x' is none of " + "those, " * 50 + "or 'y'", None),
    ):
        assert str(UserError(text)) == (shown or text)
        assert str(UserError(str(UserError(text)))) == str(UserError(text))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_any_work(mistake, base, capsys, tmp_path):
    arguments, message = MISTAKES[mistake]
    assert re.search(message, refused(capsys, base + arguments))
    assert not (tmp_path / "run").exists()


def test_a_short_text_is_refused_with_both_counts(base, capsys, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("w1 w2 w3\n\nw4 w5 w6")
    line = refused(capsys, [*base, "--methods", "laco", "--ratio", "0.2", "--calibration", str(short)])
    assert re.search(r"has \d tokens for calibration .*, but 4 x 24 = 96 were asked for", line)
    line = refused(capsys, [*base, "--methods", "laco", "--ratio", "0.2", "--texts", str(short)])
    assert re.search(r"has \d tokens for evaluation, but 128 are needed for 4 windows of 32", line)


def test_texts_whose_samples_would_share_a_file_are_refused(base, capsys, text_file, tmp_path):
    (tmp_path / text_file.name).write_text(text_file.read_text())
    both = f"{text_file},{tmp_path / text_file.name}"
    line = refused(capsys, [*base, "--methods", "laco", "--ratio", "0.2", "--texts", both])
    assert "share a name, by which samples are kept; rename one of them" in line


def test_a_model_that_is_none_is_refused(base, capsys, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    rest = ["--methods", "laco", "--ratio", "0.2"]
    assert "config.json" in refused(capsys, [*base, *rest, "--model", str(tmp_path / "empty")])
    monkeypatch.setattr(assets, "is_hub_reachable", lambda: False)
    assert "hub" in refused(capsys, [*base, *rest, "--model", "some-owner/some-model"])
    assert "did you mean smollm2-135m?" in refused(capsys, [*base, *rest, "--model", "smolm2-135m"])


def test_a_task_that_is_none_is_refused(base, capsys):
    line = refused(capsys, [*base, "--methods", "laco", "--ratio", "0.2", "--tasks", "helaswag"])
    assert re.search("no task 'helaswag'; did you mean hellaswag", line)


def test_documents_of_ones_own_are_part_of_the_key(base, tmp_path, capsys):
    rows = [{"goal": f"w{i}", "sol1": "w1 w2", "sol2": "w3", "label": i % 2} for i in range(6)]
    arguments = [*base, "--methods", "dense", "--tasks", "piqa", "--task-data", f"piqa={tmp_path / 'mine.jsonl'}"]
    for count in (6, 6, 5):
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
        assert main(arguments) == 0
    records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").glob("*.json")]
    assert sorted(record["measured"]["tasks"]["piqa"]["available"] for record in records) == [5, 6]
    assert len({record["cell"]["protocol"]["task_data"][0][2] for record in records}) == 2
    assert capsys.readouterr().err.count("has a record") == 1


@pytest.mark.parametrize("calibration", ["same", "another"])
def test_a_text_is_evaluated_whole_unless_it_is_calibrated_on(calibration, base, text_file, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text().replace("w1 ", "w2 "))
    chosen = ["--calibration", str(text_file if calibration == "same" else other)]
    assert main([*base, *chosen, "--methods", "dense", "--windows", "0"]) == 0
    (path,) = (tmp_path / "run" / "cells").glob("*.json")
    (figures,) = json.loads(path.read_text())["measured"]["perplexity"].values()
    assert figures["whole"] == (calibration == "another")
    assert figures["windows"] == 40 * 60 // (64 if calibration == "same" else 32)
    assert figures["words"] == figures["tokens"]  # a token is a word here
    assert figures["word_perplexity"] == pytest.approx(figures["perplexity"])


def test_a_folder_that_cannot_hold_results_is_refused(base, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(capsys, [*base, "--methods", "laco", "--ratio", "0.2", "--out", str(tmp_path / "file" / "run")])
    assert "cannot hold results" in line


def test_report_and_fetch_refuse_what_is_not_there(capsys, tmp_path):
    assert "is no run folder" in refused(capsys, ["report", str(tmp_path)])
    assert "nothing is called 'llama'" in refused(capsys, ["fetch", "llama"])
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "x.json").write_text('{"schema": 1')
    assert "is not JSON" in refused(capsys, ["report", str(tmp_path)])


def test_a_run_prints_a_table_and_writes_what_it_promises(with_checks, capsys, tmp_path):
    arguments = [*with_checks, "--methods", "laco:C=2,I=1,drop-tail,slicegpt,drop:layers=1", "--ratio", "0.2,0.4"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "tiny-llama   ratio 0.2: 1 of 6 layers" in out
    assert "[1/8] dense" in err
    assert "more lines, with `report --explain`: " in out  # at most eight stand here
    cells = [json.loads(path.read_text()) for path in sorted((tmp_path / "run" / "cells").glob("*.json"))]
    assert len(cells) == 8
    for cell in cells:
        assert set(cell) == {"schema", "cell", "status", "error", "environment", "decisions", "measured"}
        assert cell["status"] == "ok"
        assert isinstance(cell["measured"]["parameters"], int)
    assert (tmp_path / "run" / "report.md").read_text().startswith("# Structured pruning of tiny-llama")
    assert (tmp_path / "run" / "report.csv").read_text().count("\n") == 9
    assert (
        len(list((tmp_path / "run" / "samples").rglob("*.parquet"))) == 16
    )  # of each cell its text, and what the checks wrote

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cells").glob("*.json")}
    assert main(arguments) == 0
    again = capsys.readouterr()
    assert again.out == out
    assert again.err.count("has a record") == 8
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cells").glob("*.json")}

    assert main(["report", str(tmp_path / "run"), "--format", "csv"]) == 0
    assert capsys.readouterr().out.count("\n") == 9


def test_a_random_method_is_drawn_several_times_and_shares_a_row(base, capsys, tmp_path):
    chosen = ["--methods", "drop-random:draws=3,drop-random:seed=9", "--ratio", "0.4", "--speed-rounds", "0"]
    assert main([*base, *chosen]) == 0
    out, _ = capsys.readouterr()
    cells = [json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").glob("drop-random*.json")]
    assert sorted(cell["cell"]["parameters"]["seed"] for cell in cells) == [0, 1, 2, 9]
    assert sorted(cell["decisions"]["seed"] for cell in cells) == [0, 1, 2, 9]
    assert sum(line.startswith("drop-random:draws=3 ") for line in out.splitlines()) == 1
    assert "drop-random:draws=3 [3 draws]." in " ".join(out.split())


def test_all_is_every_method_that_takes_a_ratio(base, monkeypatch, tmp_path):
    import methods
    from bench.runs import runner

    seen = []

    def run(cells, folder, **_):
        seen.extend(cells)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", run)
    assert main([*base, "--methods", "all,drop:layers=1", "--ratio", "0.4"]) == 130
    wanted = {card.name for card in methods.cards_of_methods()} - set(EXPERTS)
    assert {cell.method for cell in seen} == wanted
    assert {cell.method for cell in seen if cell.ratio is None} == {"dense", "drop"}


def test_an_unsupported_model_is_an_outcome_and_a_crash_is_a_failure(base, capsys, tmp_path, monkeypatch):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from methods import Pruner, Unsupported, register\n"
        "@register('refuses')\n"
        "@dataclass(frozen=True)\n"
        "class Refuses(Pruner):\n"
        "    def plan(self, model, ratio): raise Unsupported('no such luck')\n"
        "    def prune(self, model, calibration, ratio): return self.plan(model, ratio)\n"
        "@register('crashes')\n"
        "@dataclass(frozen=True)\n"
        "class Crashes(Pruner):\n"
        "    def plan(self, model, ratio): return {}\n"
        "    def prune(self, model, calibration, ratio): raise RuntimeError('by design')\n"
    )
    arguments = [*base, "--methods", "refuses,crashes,drop-tail", "--ratio", "0.2", "--plugin", str(plugin)]
    assert main(arguments) == 3
    out = capsys.readouterr().out
    assert "no such luck" in out
    assert "RuntimeError: by design" in out
    records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").glob("*.json")]
    assert {record["cell"]["method"]: record["status"] for record in records} == {
        "dense": "ok",
        "refuses": "unsupported",
        "crashes": "error",
        "drop-tail": "ok",
    }
    assert main([*arguments, "--retry-failed"]) == 3
    assert capsys.readouterr().err.count("has a record") == 3


def record_of(cell, order, free, *seconds):
    from bench.records.measured import Measured
    from bench.records.record import Record

    decisions = {"removal_order": order, "free_removals": free}
    measured = Measured(search_seconds=seconds, parameters=1, prune_seconds=50.0)
    return Record(cell, "ok", {}, decisions, measured)


def test_a_greedy_cell_goes_on_from_the_longest_order_of_its_own_kind():
    from dataclasses import replace

    from bench.plan.cell import TaskInput
    from bench.plan.protocol import protocol_of_profile
    from bench.runs.searches import KnownSearches

    inputs = made_inputs(tasks={"piqa": TaskInput(1.0, "e")})
    cell = made_cell("sleb", 0.3, protocol_of_profile("smoke"), parameters={"tokens": 64}, inputs=inputs)
    other, longer = (
        replace(protocol_of_profile("smoke"), tasks=()),
        replace(protocol_of_profile("smoke"), calibration_length=65),
    )
    records = [
        record_of(replace(cell, ratio=0.1), ["layer 3"], 1, 5.0),
        record_of(
            replace(cell, ratio=0.2, protocol=other, inputs=made_inputs()),
            ["layer 3", "layer 1", "layer 2"],
            2,
            *(5.0, 9.0),
        ),
        record_of(replace(cell, ratio=0.4, protocol=longer), ["layer 1"] * 9, 9, *range(9)),
        record_of(replace(cell, ratio=0.4, seed=1), ["layer 1"] * 9, 9, *range(9)),
        record_of(replace(cell, ratio=0.4, parameters={"tokens": 32}), ["layer 1"] * 9, 9, *range(9)),
        record_of(replace(cell, ratio=0.4, method="finercut"), ["layer 1"] * 9, 9, *range(9)),
        record_of(replace(cell, ratio=0.4, inputs=made_inputs("b")), ["layer 1"] * 9, 9, *range(9)),
        record_of(replace(cell, ratio=0.4, inputs=made_inputs(revision="2")), ["layer 1"] * 9, 9, *range(9)),
    ]
    assert KnownSearches(records).start_of(cell) == (("layer 3", "layer 1"), (5.0, 9.0))
    assert KnownSearches(records[:1]).start_of(cell) == (("layer 3",), (5.0,))
    assert KnownSearches(records[2:]).start_of(cell) == ((), ())


def test_a_search_serves_every_compensation_behind_it():
    from dataclasses import replace

    from bench.plan.protocol import protocol_of_profile
    from bench.runs.searches import KnownSearches

    def found(method, parameters, revision="1+1", **changes):
        inputs = made_inputs(revision=revision)
        smoke = protocol_of_profile("smoke")
        return made_cell(method, 0.3, smoke, parameters=parameters, inputs=inputs, **changes)

    mended = found("sleb+ghost", {"tokens": 64, "ghost.ridge": 1.0})
    order = ["layer 3", "layer 1"]
    alone = record_of(found("sleb", {"tokens": 64}), order, 2, 5.0, 9.0)
    assert KnownSearches([alone]).start_of(mended) == (("layer 3", "layer 1"), (5.0, 9.0))
    other = record_of(replace(mended, parameters={"tokens": 64, "ghost.ridge": 0.1}), order, 2, 5.0, 8.0)
    assert KnownSearches([other]).start_of(mended) == (("layer 3", "layer 1"), (5.0, 8.0))
    assert KnownSearches([other]).start_of(found("sleb+scale", {"tokens": 64, "scale.tokens": None}))[1] == (5.0, 8.0)
    for unlike in (
        found("sleb", {"tokens": 32}),
        found("finercut+ghost", {"tokens": 64, "ghost.ridge": 1.0}),
        found("sleb", {"tokens": 64}, revision="2"),
    ):
        assert KnownSearches([record_of(unlike, order, 2, 5.0, 9.0)]).start_of(mended) == ((), ())


def test_a_reader_that_has_gone_ends_the_command_without_a_word():
    """As behind `| head`."""
    gone, out = os.pipe()
    os.close(gone)
    command = [sys.executable, "-m", "bench", "list", "methods"]
    try:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, cwd=environment.CHECKOUT, check=False)
    finally:
        os.close(out)
    assert (done.returncode, done.stderr) == (141, b"")
