"""The study of what tasks tell apart says what its records say."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

from pages import ROOT, text

from bench.records import run_folder
from bench.stats import contrasts
from reports.formats import markdown
from reports.tables.rows import ReportData
from reports.tables.table import Table
from reports.tables.views import view

RUN, ALL, PAGE = ROOT / "docs/results/task-signal", ROOT / "docs/results/all-models", "docs/studies/tasks.md"
TASKS = ("hellaswag", "piqa", "winogrande", "arc_easy", "openbookqa")
MODELS = {"SmolLM2-135M-Instruct": "smollm2-135m", "Gemma-3-270M": "gemma3-270m",
          "Qwen2.5-Coder-0.5B-Instruct": "qwen2.5-coder-0.5b"}  # fmt: skip
RATIOS = (0.1, 0.2, 0.3)


@cache
def data(run: Path) -> ReportData:
    merged = run_folder.load_runs([run])
    return ReportData(merged.records, "", merged.samples)


@cache
def tables(run: Path) -> list[Table]:
    return view("signal", data(run).records, samples=data(run).samples)


def column(table: Table, name: str) -> dict[str, float]:
    """Return a column of a table, by figure; what is not there is infinite."""
    at = [one.name for one in table.columns].index(name)
    values = {row.label: row.cells[at].value for row in table.rows}
    return {label: math.inf if value is None else float(value) for label, value in values.items()}


def place(method: str) -> int:
    (found,) = (n for n, one in enumerate(data(RUN).records) if one.cell["method"] == method)
    return found


def row_of_pair(method: str) -> str:
    """Return the line of a method beside laco-ls: both perplexities and the answers, with paired 95 % intervals."""
    pair = (place("laco-ls"), place(method))
    records, samples = data(RUN).records, data(RUN).samples
    cells = []
    for name in ("wiki", "c4"):
        found = contrasts.perplexity(records, [pair], samples, name)[pair]
        cells.append(f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]")
    found = contrasts.average(records, [pair], samples, TASKS, "answer_bpb", bounds=True)[pair]
    cells.append(f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
    accuracy = contrasts.average(records, [pair], samples, TASKS, bounds=True)[pair]
    cells.append(f"{100 * accuracy.estimate:+.1f} [{100 * accuracy.low:+.1f}, {100 * accuracy.high:+.1f}]")
    return f"| {' | '.join([f'`{method}`', *cells])} |"


def rows_of_pairs() -> list[str]:
    return [row_of_pair(method) for method in ("2ssp", "minitron-width", "sleb", "flap")]


def table_of(model: str, ratio: float) -> Table:
    (found,) = (
        one for one in tables(ALL) if one.model == model and one.name.startswith(f"signal-{ratio:g}-of-the-decoder")
    )
    return found


def rows_of_models() -> list[str]:
    """Return the lines of the table of three models: agreement of halves, and the documents that are needed."""
    lines = []
    for model, name in MODELS.items():
        for ratio in RATIOS:
            table = table_of(model, ratio)
            tau, needed = column(table, "agreement"), column(table, "needed")
            words = [f"{needed[one]:,.0f}" if needed[one] < 1e6 else "-" for one in ("average", "bpb")]
            cells = [f"{tau['average']:.2f}", f"{tau['bpb']:.2f}", *words]
            lines.append(f"| `{name}` | {ratio:g} | {' | '.join(cells)} |")
    return lines


def lines_of(table: Table) -> list[str]:
    return [line for line in markdown.grid(table).splitlines() if line.startswith("|")]


def test_every_table_stands_in_the_page():
    page = text(PAGE)
    (table,) = tables(RUN)
    assert len(lines_of(table)) == 2 + 2 * len(TASKS) + 2
    for line in (*lines_of(table), *rows_of_pairs(), *rows_of_models()):
        assert line in page, line


def test_what_is_said_of_five_methods():
    page, (table,) = text(PAGE), tables(RUN)
    signal, tau, needed = (column(table, name) for name in ("signal", "agreement", "needed"))
    assert f"by a τ of {tau['average']:.2f}; by bits per byte of the right answer of {tau['bpb']:.2f}" in page
    without = {task for task in TASKS for label, one in signal.items() if label.startswith(f"{task} acc") and one == 0}
    assert without == {"hellaswag", "winogrande", "openbookqa"}
    assert f"{math.ceil(needed['bpb'])} documents of each task are needed by bits" in page
    assert needed["average"] > 16_023 / 5  # all documents of the five tasks
    for row in rows_of_pairs():
        bits, accuracy = (cell.partition("[")[2].rstrip("] |").split(", ") for cell in row.split(" | ")[3:5])
        assert float(bits[0]) > 0
        assert float(accuracy[0]) < 0 < float(accuracy[1])


def test_what_is_said_of_all_methods():
    page = text(PAGE)
    found = [[float(cell) for cell in row.split(" | ")[2:4]] for row in rows_of_models()]
    for at, words in enumerate(("by {:.2f} to {:.2f} in average accuracy", "by {:.2f} to {:.2f} in bits")):
        values = [one[at] for one in found]
        assert words.format(min(values), max(values)) in page
    assert all("on 50 documents of each task" in " ".join(one.footnotes) for one in tables(ALL))
