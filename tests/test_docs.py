"""What the docs claim is what there is: parameters, the method in the README, and its tables."""

from __future__ import annotations

import csv
import io
import re

import pytest
from pages import PAGES, rows

import methods

CARDS = {card.name: card for card in methods.catalogue()}
LACO_PUBLISHED = {"merge": "'sum'", "clamp": "True", "sentences": "10"}


@pytest.mark.parametrize("name", [name for name in CARDS if name != "laco-published"])
def test_every_parameter_is_on_its_page_with_its_default(name):
    table = rows()
    for parameter in CARDS[name].parameters:
        assert any(row[-3:] == parameter for row in table), f"docs/methods lacks {name}: {parameter}"


def test_laco_published_differs_from_laco_as_the_page_says():
    ours, theirs = ({row[0]: row[1] for row in CARDS[name].parameters} for name in ("laco", "laco-published"))
    assert {name: value for name, value in theirs.items() if ours[name] != value} == LACO_PUBLISHED
    page = (PAGES / "laco.md").read_text(encoding="utf-8")
    assert all(re.search(rf"`{name}={value}`", page) for name, value in LACO_PUBLISHED.items())


def test_the_method_in_the_readme_runs(model_folder, text_file, tmp_path, capsys):
    from bench.cli.main import main

    readme = (PAGES.parent.parent / "README.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "mine.py").write_text(source)
    arguments = ["run", "--methods", "drop-first,drop-tail", "--plugin", str(tmp_path / "mine.py"), "--ratio", "0.2"]
    small = ["--window", "32", "--windows", "2", "--calibration-sequences", "2", "--calibration-length", "16"]
    texts = ["--texts", str(text_file), "--calibration", str(text_file), "--tasks", "none", "--speed-rounds", "0"]
    model = ["--model", str(model_folder), "--profile", "smoke", "--out", str(tmp_path / "run")]
    assert main([*arguments, *small, *texts, *model]) == 0
    assert "drop-first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "first", "many"),
    [
        (["smollm2-135m", "--view", "by-ratio"], "ppl wiki ↓, by ratio", 3),
        (["laco-ls", "--reference", "laco-ls"], "ratio 0.2: 8 of 30 layers", 2),
    ],
    ids=["every method", "laco-ls"],
)
def test_the_tables_of_the_readme_are_what_its_records_say(asked, first, many, capsys):
    from bench.cli.main import main

    root = PAGES.parent.parent
    assert main(["report", str(root / "docs" / "results" / asked[0]), *asked[1:]]) == 0
    printed = capsys.readouterr().out
    readme = (root / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(rf"```text\n(SmolLM2-135M-Instruct   {first}.*?)```", readme, re.DOTALL)
    tables = shown.strip().split("\n\nSmolLM2-135M-Instruct   ")
    assert len(tables) == many
    assert all(table in printed for table in tables)


MEASURES = {
    "perplexity `wiki`": "perplexity_wiki",
    "perplexity `c4`": "perplexity_c4",
    "points of the average": "gain_average",
}


def report(capsys, runs: tuple[str, ...], *asked: str) -> list[dict[str, str]]:
    """What `report` prints as CSV of runs in docs/results, with the dagger behind what it is put to."""
    from bench.cli.main import main

    folders = [str(PAGES.parent / "results" / run) for run in runs]
    assert main(["report", *folders, *asked, "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    return [line | {"shown": line["shown"] + "†" * ("differs" in line["marks"])} for line in lines]


def study(beside: str) -> list[tuple[str, list[str], list[list[str]]]]:
    """(first head, further heads, lines) of each table of the study that has the column `beside`, left out of both."""
    page = (PAGES.parent / "studies" / "compensation.md").read_text(encoding="utf-8")
    found = re.findall(rf"\| (.*) \| {beside} \| (.*) \|\n\|.*\n((?:\|.*\n)+)", page)
    return [
        (first, heads.split(" | "), [line.strip("| ").split(" | ") for line in lines.splitlines()])
        for first, heads, lines in found
    ]


def test_the_tables_of_the_study_of_compensations_are_what_its_records_say(capsys):
    said = {
        (line["measure"], line["label"], line["requested_ratio"]): line["shown"]
        for line in report(capsys, ("laco-ls", "compensation"), "--view", "grid")
    }
    checked = 0
    for measure, columns, lines in study("removed"):
        mendings = ["+" + re.sub("[` ]", "", name) if "`" in name else "" for name in columns]
        for method, ratio, *cells in lines:
            for mending, cell in zip(mendings, cells, strict=True):
                label = method.strip("`") + mending.replace(",intercept", ":refit.intercept=True")
                assert said.get((MEASURES[measure], label, ratio), "-") == cell, (measure, label, ratio)
                checked += cell != "-"
    assert checked > 100


def test_the_tables_of_calibration_tokens_are_what_their_records_say(capsys):
    said = {}
    for run in ("compensation-calibration", "compensation-65536"):
        for line in report(capsys, (run,), "--view", "by-ratio"):
            text = "c4" if 'calibration "c4"' in line["conditions"] else "wiki"
            said[line["measure"], line["label"], text, run == "compensation-65536"] = line["shown"]
    checked = 0
    for measure, columns, lines in study("calibrated on"):
        assert columns == ["alone", "2,048", "4,096", "16,384", "65,536"]
        for method, text, *cells in lines:
            name, _, given = method.strip("`").replace("=no", "=False").partition(":")
            alone, _, mending = name.partition("+")
            fewer = [f"{mending}.tokens={n}".lstrip(".") for n in (2048, 4096)]
            labels = [":".join(filter(None, (name, ",".join(filter(None, (few, given)))))) for few in (*fewer, "")]
            found = [(alone if mending else "", False), *((label, False) for label in labels), (labels[-1], True)]
            shown = [said.get((MEASURES[measure], label, text, many), "-") for label, many in found]
            assert shown == cells, (measure, name, text)
            checked += len(cells) - cells.count("-")
    assert checked > 50


def test_the_table_of_what_maps_cost_in_time_is_what_its_records_say(capsys):
    said: dict[str, list[str]] = {}
    for line in report(capsys, ("compensation-speed",), "--view", "speed"):
        if line["measure"] == "speedup" or (line["measure"] == "ratio" and line["label"] not in said):
            said.setdefault(line["label"], []).append(re.sub(r"(\d)x", r"\1", line["shown"]))
    ((_, _, lines),) = study("parameters removed")
    assert {re.findall("`(.*?)`", method)[0]: cells for method, *cells in lines} == said


def test_the_table_of_what_helps_laco_ls_is_what_its_records_say(capsys):
    said = {
        (line["measure"].partition("_")[2], line["label"], line["requested_ratio"]): line["shown"]
        for line in report(capsys, ("laco-ls-ablation",), "--view", "by-ratio", "--reference", "laco-ls")
    }
    ((_, columns, lines),) = study("what is fitted")
    for choice, fitted, *cells in lines:
        settings = ",".join(re.findall(r"`(.*?)`", choice + fitted)).replace("yes", "True")
        label = f"laco-ls:{settings}" if settings else "laco-ls"
        for column, cell in zip(columns, cells, strict=True):
            text, ratio = column.strip("`").split("` at ")
            assert said[text, label, ratio] == cell, (label, column)
    assert len(lines) == 9


@pytest.mark.parametrize("page", ["README.md", "docs/speed.md"])
def test_the_tables_of_speeds_are_what_their_records_say(page, capsys):
    said: dict[str, list[str]] = {}
    for line in report(capsys, ("speed",), "--view", "speed"):
        if line["measure"] == "speedup":
            said.setdefault(line["label"].removesuffix(" at 0.3"), []).append(re.sub(r"(\d)x", r"\1", line["shown"]))
    text = (PAGES.parent.parent / page).read_text(encoding="utf-8")
    (lines,) = re.findall(r"\| \| prefill, batch 1 \| decode, batch 1 \|.*\n\|.*\n((?:\|.*\n)+)", text)
    shown = {}
    for method, *cells in (line.strip("| \n").split(" | ") for line in lines.splitlines()):
        name = "drop:layers=10-20" if "dropped" in method else re.findall("`(.*?)`", method)[0]
        shown[name] = [cell.partition(" / ")[0] for cell in cells[:4]]
    assert shown == {name: cells for name, cells in said.items() if name != "dense"}
