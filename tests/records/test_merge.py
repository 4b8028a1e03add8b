"""Parts of a run that several machines have measured become one run folder, or nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import refused
from made_records import DENSE, LACO, SLICEGPT, with_cell, with_measured

from bench.cli.main import main
from bench.plan.kinds import to_plain
from bench.records import packed_run, run_folder
from bench.records.record import Record, save
from methods.files import hash_file


def part(folder: Path, *records: Record) -> Path:
    """A run folder with these records, each with samples of a task."""
    for number, record in enumerate(records):
        key = f"{record.cell.method}--{record.cell.ratio}--{record.cell.seed}"
        file = folder / "samples" / key / "piqa.parquet"
        file.parent.mkdir(parents=True)
        pd.DataFrame({"doc_id": [0, 1], "acc": [0.0, float(number)]}).to_parquet(file, index=False)
        figures = {"documents": 2, "main": "acc", "metrics": {"acc": {"value": number / 2}}}
        found = {"samples": {"piqa": {"rows": 2, "sha256": hash_file(file)}}}
        found["tasks"] = {"piqa": to_plain(record.measured.task_scores["piqa"]) | figures}
        save(with_measured(record, **found), folder / "cells" / f"{key}.json")
    return folder


@pytest.fixture
def parts(tmp_path):
    return part(tmp_path / "a", DENSE, LACO), part(tmp_path / "b", DENSE, SLICEGPT)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_is_its_parts_packed_or_not(parts, tmp_path, capsys):
    a, b = parts
    expected = content(a) | content(b)
    (a / "models" / "laco--0.3--0").mkdir(parents=True)
    (a / "models" / "laco--0.3--0" / "weights").write_text("these")
    assert main(["merge", str(a), str(b), "--out", str(tmp_path / "whole")]) == 0
    assert f"{tmp_path / 'whole'}: 3 cells of 2 parts" in capsys.readouterr().out
    whole = content(tmp_path / "whole")
    assert whole.pop("models/laco--0.3--0/weights") == b"these"
    assert {"report.md", "report.csv"} <= {*whole}
    assert {name: data for name, data in whole.items() if not name.startswith("report.")} == expected
    packed_run.pack_run(b, b)
    assert main(["merge", str(b), str(a), "--out", str(tmp_path / "again")]) == 0
    again = content(tmp_path / "again")
    assert {name: data for name, data in again.items() if name in expected} == expected
    assert packed_run.is_packed(b)
    assert set(run_folder.read(tmp_path / "again")["label"]) == {"dense", "laco", "slicegpt"}


def test_cells_that_cannot_be_compared_are_joined_and_named(tmp_path, capsys):
    other = with_cell(SLICEGPT, dtype="bfloat16")
    a, b = part(tmp_path / "a", DENSE, LACO), part(tmp_path / "b", other)
    assert main(["merge", str(a), str(b), "--out", str(tmp_path / "whole")]) == 0
    said = capsys.readouterr()
    assert "3 cells of 2 parts" in said.out
    assert said.err.strip().splitlines() == run_folder.load_runs([a, b]).remarks
    assert "b: cells are not compared with those of a and stand in tables of their own: dtype is" in said.err


def test_two_records_of_one_cell_are_refused(parts, tmp_path, capsys):
    a, b = parts
    path = b / "cells" / "dense--None--0.json"
    other = json.loads(path.read_text())
    other["measured"]["layers"] = 29
    path.write_text(json.dumps(other))
    said = refused(capsys, ["merge", str(a), str(b), "--out", str(tmp_path / "whole")])
    assert f"dense--None--0 is in {a} and in {b}, and not the same" in said
    assert not (tmp_path / "whole").exists()


def test_what_is_no_part_is_refused_and_nothing_is_written(parts, tmp_path, capsys):
    a, b = parts
    whole = tmp_path / "whole"
    before = sorted(tmp_path.iterdir())
    assert "is no run folder" in refused(capsys, ["merge", str(a), str(tmp_path), "--out", str(whole)])
    assert "is not empty" in refused(capsys, ["merge", str(a), "--out", str(b)])
    next((a / "samples").rglob("piqa.parquet")).write_bytes(b"")
    assert "is missing or not the file that was written" in refused(capsys, ["merge", str(a), "--out", str(whole)])
    assert "--out" in refused(capsys, ["merge", str(a)])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("link", ["models", "models/laco--0.3--0", "models/laco--0.3--0/deep/secret"])
def test_what_links_of_a_model_lead_to_is_not_copied(link, parts, tmp_path, capsys):
    a, b = parts
    outside = tmp_path / "outside"
    (outside / "laco--0.3--0").mkdir(parents=True)
    (outside / "laco--0.3--0" / "secret").write_text("of another one")
    (a / link).parent.mkdir(parents=True, exist_ok=True)
    (a / link).symlink_to(outside / "laco--0.3--0" if link != "models" else outside)
    said = refused(capsys, ["merge", str(a), str(b), "--out", str(tmp_path / "whole")])
    assert f"{a / link} is a link, and what it leads to is not copied" in said
    assert not (tmp_path / "whole").exists()


def test_no_other_file_beside_samples_is_copied(parts, tmp_path):
    (tmp_path / "secret").write_text("of another one")
    a, b = parts
    (a / "samples" / "laco--0.3--0" / "note.txt").symlink_to(tmp_path / "secret")
    assert main(["merge", str(a), str(b), "--out", str(tmp_path / "whole")]) == 0
    assert not list((tmp_path / "whole").rglob("note.txt"))
