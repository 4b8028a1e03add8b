"""Samples that do not fit their record are refused by every command that reads them, in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import refused
from made_records import changed
from made_runs import answers, cell, nats
from pages import ROOT

from bench.cli.main import main
from bench.records import packed_run, run_folder
from bench.records.record import InvalidRecord
from bench.records.samples import SampleFiles
from bench.regression.results import results_of_run
from methods.files import hash_file

RESULTS = sorted(path.parent for path in (ROOT / "docs" / "results").glob("*/records.jsonl"))
KEY = "laco--0.1--0"
COMMANDS = (
    ("compare", "RUN", "OTHER"),
    ("compare", f"OTHER/{KEY}", f"RUN/{KEY}"),
    ("gate", "RUN", "--baseline", "OTHER", "--no-confirm"),
    ("report", "RUN", "--reference", "sleb"),
    ("baseline", "accept", "RUN", "--out", "NEW"),
    ("pack", "RUN", "--out", "NEW"),
    ("merge", "RUN", "--out", "NEW"),
    ("history", "RUN", "--metric", "perplexity_wiki", "--label", "laco"),
    ("history", "RUN", "--metric", "task_piqa", "--label", "laco"),
)


def made(folder: Path, form: str) -> Path:
    """A run of three cells: loose, loose with the sha256 of its samples, or packed."""
    for label, ratio, seed in (("dense", None, 1), ("laco", 0.1, 3), ("sleb", 0.1, 4)):
        cell(folder, label, ratio, tasks={"piqa": answers(seed, 100)}, texts={"wiki": nats(seed)})
    if form != "figures":
        for path in (folder / "cells").glob("*.json"):
            files = (folder / "samples" / path.stem).glob("*.parquet")
            edit(path, ["measured", "samples"], {file.stem: {"sha256": hash_file(file)} for file in files})
    if form == "packed":
        packed_run.pack_run(folder, folder)
    return folder


def edit(path: Path, place: list[str], value: object) -> None:
    """Change a figure of a record: of a packed run that of the cell KEY."""
    lines = [
        json.loads(line) for line in (path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()])
    ]
    plain = next((line for line in lines if line.get("key") == KEY), lines[0])
    for name in place[:-1]:
        plain = plain[name]
    plain[place[-1]] = value(plain[place[-1]]) if callable(value) else value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_rows(run: Path, name: str, change: object) -> None:
    """Change the samples NAME of the cell KEY, and nothing else."""
    packed = packed_run.is_packed(run)
    path = run / "samples" / f"{name}.parquet" if packed else run / "samples" / KEY / f"{name}.parquet"
    table = pd.read_parquet(path)
    mine = table["cell"] == KEY if packed else pd.Series(True, index=table.index)
    column, new = change(table[mine])
    table.loc[mine, column] = new
    table.to_parquet(path, index=False)


ROWS = {
    "nll": ("perplexity-wiki", lambda rows: ("nll", rows["nll"] * 1.2)),
    "answers": ("piqa", lambda rows: ("acc", [1.0] * 90 + [0.0] * 10)),
    "order": ("piqa", lambda rows: ("doc_hash", rows["doc_hash"].to_numpy()[::-1])),  # the figures are the same
}
FIGURES = {
    "perplexity": ["perplexity", "wiki", "perplexity"],
    "tokens": ["perplexity", "wiki", "tokens"],
    "accuracy": ["tasks", "piqa", "metrics", "acc", "value"],
}


def refuses(run: Path, other: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    """Hold every command that reads the samples to a line of refusal, and to writing nothing."""
    before = sorted(run.parent.rglob("*"))
    for command in COMMANDS:
        if command[0] == "history" and ("piqa" in where) != ("task_piqa" in command):
            continue
        words = [word.replace("RUN", str(run)).replace("OTHER", str(other)) for word in command]
        error = refused(capsys, [word.replace("NEW", str(run.parent / "new")) for word in words])
        assert where in error, command
        assert sorted(run.parent.rglob("*")) == before
    assert main(["gate", str(other), "--baseline", str(run), "--no-confirm"]) == 4
    assert where in capsys.readouterr().err


@pytest.mark.parametrize("form", ["figures", "hashes", "packed"])
@pytest.mark.parametrize("what", ROWS)
def test_changed_rows_are_refused(what, form, tmp_path, capsys):
    if (what, form) == ("order", "figures"):
        return  # which nothing tells
    run, other = made(tmp_path / "run", form), made(tmp_path / "other", form)
    name, change = ROWS[what]
    change_rows(run, name, change)
    refuses(run, other, capsys, name)


@pytest.mark.parametrize("form", ["hashes", "packed"])
@pytest.mark.parametrize("what", FIGURES)
def test_changed_figures_are_refused(what, form, tmp_path, capsys):
    run, other = made(tmp_path / "run", form), made(tmp_path / "other", form)
    path = run / "records.jsonl" if form == "packed" else run / "cells" / f"{KEY}.json"
    edit(path, ["measured", *FIGURES[what]], lambda figure: type(figure)(figure * 1.2 if figure > 1 else figure * 0.9))
    refuses(run, other, capsys, "piqa" if what == "accuracy" else "perplexity-wiki")


def test_rows_that_no_line_is_about_are_refused(tmp_path, capsys):
    run, other = made(tmp_path / "run", "packed"), made(tmp_path / "other", "packed")
    edit(run / "records.jsonl", ["rows_sha256"], lambda rows: {"perplexity-wiki": rows["perplexity-wiki"]})
    assert "has no rows_sha256 of them" in refused(capsys, ["compare", str(run), str(other)])


def test_a_baseline_with_a_record_that_does_not_fit_is_none(tmp_path, capsys):
    run, base = made(tmp_path / "run", "hashes"), made(tmp_path / "base", "hashes")
    edit(base / "cells" / f"{KEY}.json", ["cell", "seed"], None)
    assert main(["gate", str(run), "--baseline", str(base), "--no-confirm"]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{KEY}.json: cell.seed is null, not a whole number" in line


def test_each_file_is_read_and_hashed_once(tmp_path, monkeypatch):
    for form in ("hashes", "packed"):
        run, hashed = made(tmp_path / form, form), list[object]()
        target = (
            "bench.records.sample_tables.hash_file" if form == "hashes" else "bench.records.packed_run.sha256_of_rows"
        )
        monkeypatch.setattr(target, counted(hashed, hash_file if form == "hashes" else packed_run.sha256_of_rows))
        samples = run_folder.load_runs([run]).samples
        for figure in ("acc", "answer_bpb", "acc"):
            for place in range(3):
                samples.of(place, "piqa", figure)
        assert len(hashed) == 3, form
        results_of_run(run)
        assert len(hashed) == 3 + 6, form


def counted(calls: list[object], function):
    def counts(given: object) -> str:
        calls.append(given)
        return function(given)

    return counts


@pytest.mark.parametrize("run", RESULTS, ids=lambda run: run.name)
def test_the_figures_of_every_shipped_record_follow_from_its_samples(run):
    found = run_folder.read_records(run)
    run_folder.refuse_unfit_samples(run, found, SampleFiles())
    key, record = next(iter(found.items()))
    if texts := record.measured.text_scores:
        text, score = next(iter(texts.items()))
        record = changed(record, "measured", "perplexity", text, "perplexity", to=1.01 * score.perplexity)
        if (run / "samples").is_dir():
            with pytest.raises(InvalidRecord, match="by these rows"):
                run_folder.refuse_unfit_samples(run, {key: record}, SampleFiles())
