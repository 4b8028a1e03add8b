"""The tutorial runs as it is written, and what it shows in the docs is what it has shown."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import nbformat
import pytest
from tutorial import FIGURE, NOTEBOOK, executed

import bench


def outputs(notebook, kind):
    """The outputs of a kind in all cells, in their order."""
    found = list[str]()
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        data = output.get("data") or {output.get("name"): output.get("text")}
        found += [data[kind]] if kind in data else []
    return found


def test_the_stored_notebook_is_short_and_says_nothing_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [line for cell in notebook.cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    assert len([line for line in code if line.strip()]) <= 30
    assert re.findall(r"(?<![\w<.:/])/(?:tmp|home|root|work|usr|Users|var)\b", text) == []
    names = {output.get("name") for cell in notebook.cells for output in cell.get("outputs", ())}
    assert names <= {None, "stdout"}
    assert {cell.get("execution_count") for cell in notebook.cells} == {None}


def test_the_figure_of_the_docs_is_that_of_the_notebook():
    [drawn] = outputs(nbformat.read(NOTEBOOK, as_version=4), "image/svg+xml")
    assert drawn == FIGURE.read_text(encoding="utf-8")


def printed(notebook):
    """What each cell has printed, which a kernel that is interrupted between two writes sends in pieces."""
    every = ([one.text for one in cell.get("outputs", ()) if one.get("name") == "stdout"] for cell in notebook.cells)
    return ["".join(pieces) for pieces in every if pieces]


def test_its_cells_run_on_a_tiny_model(model_folder, text_file, tmp_path, monkeypatch, capsys):
    texts = {"texts": str(text_file), "calibration": str(text_file), "window": 32, "calibration_length": 24}
    monkeypatch.setattr(bench, "RunSpec", functools.partial(bench.RunSpec, model=str(model_folder), **texts))
    monkeypatch.chdir(tmp_path)
    names, stored = dict[str, Any](), nbformat.read(NOTEBOOK, as_version=4)
    for cell in stored.cells:
        if cell.cell_type == "code":
            of_this_text = cell.source.replace("perplexity_wiki", f"perplexity_{text_file}").replace(
                "-wiki-by-method", ""
            )
            exec(of_this_text, names)
    lines, wanted = capsys.readouterr().out.splitlines(), "".join(printed(stored)).splitlines()
    assert lines[0] == wanted[0] == str(["ok"] * 5)
    assert len(lines) == len(wanted)  # statuses, layers that went, names of figures
    assert sorted(names["cells"]["label"]) == sorted(record.cell.label for record in names["records"])
    assert (tmp_path / "tutorial.svg").read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.nightly
@pytest.mark.default_model
def test_the_tutorial_runs_and_finds_what_it_shows(tmp_path):
    stored = nbformat.read(NOTEBOOK, as_version=4)
    found = executed(tmp_path)
    assert printed(found) == printed(stored)  # outcomes, layers that went, names of figures
    records = [json.loads(path.read_text()) for path in (tmp_path / "tutorial" / "cells").iterdir()]
    assert len(records) == 5
    [drawn] = outputs(found, "image/svg+xml")
    assert drawn == (tmp_path / "tutorial.svg").read_text(encoding="utf-8")
    shown = outputs(stored, "text/plain")[1]
    for record in records:
        perplexity = record["measured"]["perplexity"]["wiki"]["perplexity"]
        row = rf"{record['cell']['method']} .* {record['measured']['parameters']} +(\d+\.\d)$"
        [figure] = re.findall(row, shown, re.MULTILINE)
        assert float(figure) == pytest.approx(perplexity, abs=0.06)  # sums are rounded otherwise on other machines
