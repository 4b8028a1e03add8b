"""The study of what tasks tell apart says what its records say."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path

from pages import ROOT, text

from bench.records import run_folder
from bench.regression import contrasts
from reports.tables.rows import ReportData
from reports.tables.table import Table
from reports.tables.views import build_view

RUN, ALL, PAGE = ROOT / "docs/results/task-signal", ROOT / "docs/results/grid", "docs/studies/tasks.md"
TASKS = ("hellaswag", "piqa", "winogrande", "arc_easy", "openbookqa")
MODELS = {"SmolLM2-135M-Instruct": "smollm2-135m", "Gemma-3-270M": "gemma3-270m",
          "Qwen2.5-Coder-0.5B-Instruct": "qwen2.5-coder-0.5b"}  # fmt: skip


@cache
def data(run: Path) -> ReportData:
    merged = run_folder.load_runs([run])
    return ReportData(merged.records, "", merged.samples)


@cache
def tables(run: Path) -> list[Table]:
    return build_view("signal", data(run).records, samples=data(run).samples)


def column(table: Table, name: str) -> dict[str, float]:
    """Return a column of a table, by figure; what is not there is infinite."""
    at = [one.name for one in table.columns].index(name)
    values = {row.label: row.cells[at].value for row in table.rows}
    return {label: math.inf if value is None else float(value) for label, value in values.items()}


def place(model: str, method: str) -> int:
    cells = enumerate(one.cell for one in data(RUN).records)
    (found,) = (n for n, cell in cells if (cell.model, cell.method) == (model, method))
    return found


def row_of_pair(model: str, method: str) -> str:
    """Return the line of a method beside laco-ls: both perplexities and the answers, with paired 95 % intervals."""
    pair = (place(model, "laco-ls"), place(model, method))
    records, samples = data(RUN).records, data(RUN).samples
    cells = []
    for name in ("wiki", "c4"):
        found = contrasts.contrast_of_perplexities(records, [pair], samples, name)[pair]
        cells.append(f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]")
    found = contrasts.contrast_of_averages(records, [pair], samples, TASKS, "answer_bpb", bounds=True)[pair]
    cells.append(f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
    accuracy = contrasts.contrast_of_averages(records, [pair], samples, TASKS, bounds=True)[pair]
    cells.append(f"{100 * accuracy.estimate:+.1f} [{100 * accuracy.low:+.1f}, {100 * accuracy.high:+.1f}]")
    return f"| {' | '.join([f'`{model}`', f'`{method}`', *cells])} |"


def rows_of_pairs() -> list[str]:
    methods = ("2ssp", "minitron-width", "sleb", "flap")
    return [row_of_pair(model, method) for model in MODELS.values() for method in methods]


@cache
def of_five() -> dict[str, Table]:
    """Return the table of the five methods on 500 documents of each model, by its name."""
    return {name: table for model, name in MODELS.items() for table in tables(RUN) if table.model == model}


def rows_of_figures() -> list[str]:
    """Return a line for each figure: of each model signal over noise, the agreement of orders, and documents."""
    found = dict[str, list[str]]()
    for table in of_five().values():
        ratio, tau, needed = (column(table, name) for name in ("signal_to_noise", "agreement", "needed"))
        for figure in ratio:
            documents = f"{math.ceil(needed[figure]):,}" if math.isfinite(needed[figure]) else "-"
            found.setdefault(figure, []).extend([f"{ratio[figure]:.2f}", f"{tau[figure]:.2f}", documents])
    return [f"| {' | '.join([figure, *cells])} |" for figure, cells in found.items()]


def test_every_table_stands_in_the_page():
    page = text(PAGE)
    assert list(of_five()) == list(MODELS.values())
    assert len(rows_of_figures()) == 2 * len(TASKS) + 2
    assert {task.documents for one in data(RUN).records for task in one.measured.task_scores.values()} == {500}
    assert "\n".join(rows_of_figures()) in page


def test_what_is_said_of_five_methods():
    page = text(PAGE)
    taus = {
        one: [f"{column(table, 'agreement')[one]:.2f}" for table in of_five().values()] for one in ("average", "bpb")
    }
    for name, key in (("average accuracy", "average"), ("bits per byte of the right answers", "bpb")):
        assert f"| {name} | {' | '.join(taus[key])} |" in page.splitlines()
    accurate, bits = (sorted(taus[key]) for key in ("average", "bpb"))
    assert f"by a Kendall's τ of {accurate[0]} to {accurate[-1]}" in page
    assert f"it agrees by {bits[0]} to {bits[-1]}" in page
    without = [
        {figure.split()[0] for figure, one in column(table, "signal").items() if " acc" in figure and one == 0}
        for table in of_five().values()
    ]
    assert without == [{"hellaswag", "winogrande", "openbookqa"}] * 2 + [{"winogrande"}]
    needed = [column(table, "needed") for table in of_five().values()]
    documents = [math.ceil(one["bpb"]) for one in needed]
    assert f"{min(documents)} to {max(documents)} documents of each task are needed by bits" in page
    least = math.ceil(min(one["average"] for one in needed))
    assert f"by average accuracy {least:,} at least, which is more than the tasks have" in page
    assert least > 16_023 / 5  # all documents of the five tasks


def test_what_is_said_of_pairs():
    accurate, unclear = list[str](), list[tuple[str, str]]()
    for row in rows_of_pairs():
        model, method, *cells = row.strip("| ").split(" | ")
        wiki, c4, bits, accuracy = (list(map(float, one.partition("[")[2].rstrip("]").split(", "))) for one in cells)
        assert bits[0] > 0
        accurate += [model] * (accuracy[1] < 0)
        assert accuracy[0] < 0
        unclear += [(method, name) for name, (low, _) in (("wiki", wiki), ("c4", c4)) if low <= 1]
        assert model == "`gemma3-270m`" or not any(low <= 1 for low, _ in (wiki, c4))
    assert accurate == ["`smollm2-135m`"] * 2
    assert unclear == [("`2ssp`", "wiki"), ("`2ssp`", "c4"), ("`minitron-width`", "c4")]


def test_what_is_said_of_all_methods():
    """Of each model and ratio of the grid, by two halves of the documents."""
    page, smallest = text(PAGE), 9
    figures = {(table.model, table.name): column(table, "agreement") for table in tables(ALL)}
    for name, words in (
        ("average", "by {:.2f} to {:.2f} in average accuracy"),
        ("bpb", "In bits they agree by {:.2f} to {:.2f}."),
    ):
        values = [one[name] for one in figures.values()]
        assert words.format(min(values), max(values)) in page
    titles = [re.search(r"(\d+)\s+methods", table.title) for table in tables(ALL)]
    counts = sorted(int(title[1]) for title in titles if title)
    assert len(counts) == len(figures) == 5 and counts[0] == smallest
    assert f"**It holds for {smallest} to {counts[-1]} methods of the grid" in page
    assert all("a draw of 50 documents of each task" in " ".join(one.footnotes) for one in tables(ALL))
