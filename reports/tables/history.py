"""A metric over commits (bench.regression.history): as a table, as lines of CSV and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

from bench.regression.history import FEWEST, HistoryPoint
from bench.stats.intervals import NORMAL_95
from methods.files import write_atomically
from reports.metrics import metric, shown
from reports.tables.table import Row, Table, TableCell, column, text, words
from reports.text import printable

DIRTY = "*: files differed from the commit."
INTERVAL = "intervals: of each run by itself; runs share documents and windows, so a step within can be real."
CHANGE = (
    "new level: it differs from the runs before by more than their noise, and has held for two runs; "
    f"marked from {FEWEST} runs on."
)
POOLED = "mean over draws or seeds, of a perplexity the geometric one, without an interval."


def table(points: Sequence[HistoryPoint], name: str) -> Table:
    """Make the table of the metric `name`: one row per run, a new level is marked."""
    columns = [words("commit"), words("run"), replace(column(name), better=None), words("level", "")]
    columns.append(words("apart", "conditions that differ from the run before"))
    rows = [Row(point.date[:16].replace("T", " "), "", None, _cells(point, name)) for point in points]
    used = [at for at in range(len(columns)) if at < 3 or any(row.cells[at].value for row in rows)]
    dirty, interval = (any(p.commit.endswith("*") for p in points), any(p.low is not None for p in points))
    pooled = any(point.draws > 1 for point in points)
    footnotes = (*[DIRTY] * dirty, *[INTERVAL] * interval, CHANGE, *[POOLED] * pooled)
    return Table("history", "history", "", "", (), tuple(columns), tuple(rows), (), footnotes, "date").only(used)


def _cells(point: HistoryPoint, name: str) -> tuple[TableCell, ...]:
    row = {name: point.value, f"{name}_low": point.low, f"{name}_high": point.high}
    if metric(name).spread == "stderr" and point.low is not None and point.high is not None:
        row[f"{name}_stderr"] = (point.high - point.low) / 2 / NORMAL_95
    value = TableCell(shown(row, name), value=point.value, low=point.low, high=point.high)
    level, apart = "new level" if point.change else "", ", ".join(point.apart)
    return text(point.commit), text(point.run), value, TableCell(level, value=level), TableCell(apart, value=apart)


def csv(points: Sequence[HistoryPoint], name: str) -> tuple[list[str], list[list[object]]]:
    """Return the headings, and a line of figures per run."""
    lines: list[list[object]] = [
        [p.date, p.commit, p.run, p.value, p.low, p.high, p.draws, int(p.change), " ".join(p.apart)] for p in points
    ]
    return ["date", "commit", "run", name, "low", "high", "draws", "new_level", "conditions_apart"], lines


def plot(points: Sequence[HistoryPoint], name: str, title: str, file: Path) -> None:
    """Draw the values with their intervals over the commits, evenly spaced, with new levels and changed conditions.

    Raises Unwritable where the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "prunebench", "text.parse_math": False}):
        figure, axes = pyplot.subplots(figsize=(max(5.0, 0.45 * len(points) + 2), 3.6), layout="constrained")
        _draw(axes, points, name, title)
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(file.suffix, {})
        drawn = BytesIO()
        figure.savefig(drawn, format=file.suffix.removeprefix("."), dpi=150, metadata=metadata)
        pyplot.close(figure)
    write_atomically(file, drawn.getvalue())


def _draw(axes: Any, points: Sequence[HistoryPoint], name: str, title: str) -> None:
    places = range(len(points))
    values = [point.value for point in points]
    ends = [
        (point.value if point.low is None else point.low, point.value if point.high is None else point.high)
        for point in points
    ]
    below = [value - low for value, (low, _) in zip(values, ends, strict=True)]
    above = [high - value for value, (_, high) in zip(values, ends, strict=True)]
    axes.errorbar(places, values, yerr=[below, above], fmt="o", color="#0072B2", ecolor="#999999", capsize=2, zorder=3)
    starts = [n for n, point in enumerate(points) if point.change]
    for first, last in zip([0, *starts], [*starts, len(points)], strict=True):
        level = median(values[first:last])
        axes.hlines(level, first - 0.4, last - 0.6, color="#0072B2", linewidth=1, alpha=0.6)
    for n in starts:
        axes.axvline(
            n - 0.5, color="#D55E00", linestyle="--", linewidth=1, label="new level" if n == starts[0] else None
        )
    apart = [n for n, point in enumerate(points) if point.apart]
    for n in apart:
        axes.axvline(n - 0.5, color="#999999", linestyle=":", label="other conditions" if n == apart[0] else None)
    axes.set_xticks(
        list(places), [printable(point.commit or point.date[:10]) for point in points], rotation=60, fontsize=7
    )
    found = metric(name)
    axes.set_ylabel(printable(f"{found.label} ({found.unit})" if found.unit else found.label))
    axes.set_title(printable(title), fontsize=9)
    if starts or apart:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
