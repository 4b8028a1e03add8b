"""One cell whole on the terminal: nothing of it is missing, nothing is wider than the line."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_records import DENSE, LACO, RECORDS, failed, with_cell

from bench.cli.main import main
from bench.plan.kinds import defaults_of_later_fields
from bench.plan.protocol import Protocol
from bench.records.record import save
from reports.formats import terminal
from reports.tables import whole_cell
from reports.text import width_of


def names(value: Any) -> list[str]:
    """Every name within nested values."""
    if isinstance(value, dict):
        return [*value, *(name for inner in value.values() for name in names(inner))]
    return [name for inner in value for name in names(inner)] if isinstance(value, list) else []


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.cell.method[:8])
def test_everything_is_there_within_the_line(record):
    text = terminal.text_of_cell(record, "key")
    assert all(width_of(line) <= terminal.LINE for line in text.splitlines())
    assert all(character.isprintable() for line in text.splitlines() for character in line)
    cell = record.plain()["cell"]
    for name, default in defaults_of_later_fields(Protocol).items():
        assert cell["protocol"].pop(name) == default  # of which cells of before say nothing
    for block in (cell, record.decisions, record.plain()["measured"], record.environment):
        for name in names(block):
            assert name in text or name == "value" or not name.isprintable(), name


def written(value: Any) -> str:
    return "\n".join(
        terminal.text_of_cell(replace(LACO, decisions={"found": value}), "key")
        .partition("DECIDED")[2]
        .splitlines()[1:3]
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([4, 22, 23, 24], "found  4, 22-24"),
        ([5, 4, 3, 9, 10], "found  5, 4, 3, 9, 10"),
        ([192] * 4 + [7], "found  192 (4 times), 7"),
        ([True, 1, 1.0, 1], "found  yes, 1, 1, 1"),
        ([], "found  none"),
        ([[], [], [3]], "found\n    0-1  none"),
        (None, "found  none"),
        (1234567, "found  1,234,567"),
        (0.8447907567, "found  0.844791"),
        ({"value": 0.5, "stderr": 0.05}, "found  0.5, stderr 0.05"),
        ([{"layer": 3, "gone": True}], "found\n    layer  gone"),
    ],
)
def test_values_are_written_short_and_without_loss(value, text):
    assert written(value).strip().startswith(text)


def test_ranges_stand_for_the_same_numbers():
    values = [0, 1, 2, 3, 5, 6, 9, 10, 11, 12, 20]
    (fact,) = whole_cell._fact("", {"x": values}).inside
    parts = [part.split("-") for part in fact.value.split(", ")]
    assert [n for part in parts for n in range(int(part[0]), int(part[-1]) + 1)] == values


def test_a_long_table_is_written_row_by_row():
    rows = [{f"column_{number}": number for number in range(20)}] * 2
    text = terminal.text_of_cell(replace(LACO, decisions={"trace": rows}), "key")
    assert "column_0 0, column_1 1," in text
    assert all(width_of(line) <= terminal.LINE for line in text.splitlines())


def test_an_error_keeps_its_lines():
    record = failed("error", "flap", "KeyError: x\nTraceback (most recent call last):\n  File a\n    raise \x1b[31m")
    lines = terminal.text_of_cell(record, "key").splitlines()
    assert any(line.endswith("Traceback (most recent call last):") for line in lines)
    assert any(line.endswith("raise \\x1b[31m") for line in lines)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name, record in (("dense--fixed--1", DENSE), ("laco--0.3--2a", LACO), ("laco--0.3--2b", LACO)):
        save(record, tmp_path / "my run" / "cells" / f"{name}.json")
    return tmp_path / "my run"


@pytest.mark.parametrize(
    "words", [["{run}", "laco--0.3--2a"], ["{run}/laco--0.3--2a"], ["{run}/cells/laco--0.3--2a.json"]]
)
def test_a_cell_is_named_in_one_word_or_two(run, words, capsys):
    assert main(["show", *(word.format(run=run) for word in words)]) == 0
    assert capsys.readouterr().out.startswith("laco at ratio 0.3 of SmolLM2-135M-Instruct\nlaco--0.3--2a\n\nASKED\n")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["{run}", "laco"], "'laco' names 2 cells of .*; it has laco--0.3--2a, laco--0.3--2b"),
        (["{run}", "flap"], "'flap' is no cell of .*; it has dense--fixed--1, laco"),
        (["{run}"], "names no cell; say RUN/CELL"),
        (["{run}/nowhere", "x"], "is no run folder"),
    ],
)
def test_a_name_that_is_not_one_cell_is_a_mistake(run, words, error, capsys):
    assert main(["show", *(word.format(run=run) for word in words)]) == 2
    found = capsys.readouterr()
    assert re.search(error, found.err)
    assert (found.out, found.err.count("\n")) == ("", 1)


def test_a_cell_may_be_named_by_its_label(run, capsys):
    labelled = with_cell(DENSE, method="a/b", parameters={"c": 1}, given=["c"])
    save(labelled, run / "cells" / "a-b-c-1--fixed--3.json")
    save(LACO, run / "cells" / "laco--0.3--2a.json")
    (run / "cells" / "laco--0.3--2b.json").unlink()
    save(DENSE, run / "cells" / "dense--fixed--1.json")
    assert main(["show", f"{run}/a/b:c=1"]) == 0
    assert "a-b-c-1--fixed--3" in capsys.readouterr().out
    published = with_cell(LACO, method="laco-published")
    save(published, run / "cells" / "laco-published--0.3--9.json")
    assert main(["show", str(run), "laco"]) == 0  # a label before the start of a file's name
    assert "\nlaco--0.3--2a\n" in capsys.readouterr().out


def test_a_damaged_record_is_named_in_one_line(run, capsys):
    (run / "cells" / "laco--0.3--2b.json").write_text("{")
    assert main(["show", str(run), "laco--0.3--2a"]) == 0  # which another record does not hinder
    capsys.readouterr()
    assert main(["show", str(run), "laco--0.3--2b"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "is not JSON" in err
