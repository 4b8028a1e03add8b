"""A metric over commits (bench.regression.history), as a table, as CSV and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from bench.regression.history import FEWEST, HistoryPoint
from reports.metrics import metric, shown
from reports.text import markdown_escaped, printable

HEADS = ("date", "commit", "run", "value", "", "conditions that differ from the run before")
NOTES = {
    "*": "*: files differed from the commit.",
    "interval": "intervals: of each run by itself; runs share documents and windows, so a step within can be real.",
    "change": f"new level: it differs from the runs before by more than their noise, and has held for two runs; "
    f"marked from {FEWEST} runs on.",
}


def table(points: Sequence[HistoryPoint], column: str, *, markdown: bool) -> str:
    """One line per run; a new level is marked."""
    escape = markdown_escaped if markdown else printable
    lines = [
        [
            point.date[:16].replace("T", " "),
            point.commit or "-",
            point.run,
            _value(point, column),
            "new level" if point.change else "",
            ", ".join(point.apart),
        ]
        for point in points
    ]
    used = [n for n in range(len(HEADS)) if any(line[n] for line in lines)]
    found = metric(column)
    unit = f" ({found.unit})" if found.unit and not found.unit_in_cell else ""
    heads = [*HEADS[:3], found.label + unit, *HEADS[4:]]
    body = tabulate(
        [[escape(line[n]) for n in used] for line in lines],
        headers=[escape(heads[n]) for n in used],
        tablefmt="pipe" if markdown else "plain",
        disable_numparse=True,
    )
    notes = [NOTES["*"]] if any(point.commit.endswith("*") for point in points) else []
    notes += [NOTES["interval"]] * any(point.low is not None for point in points) + [NOTES["change"]]
    if any(point.draws > 1 for point in points):
        notes.append("mean over draws or seeds, without an interval.")
    return "\n\n".join([body, "\n".join(f"- {escape(note)}" if markdown else note for note in notes)]) + "\n"


def _value(point: HistoryPoint, column: str) -> str:
    row = {column: point.value, f"{column}_low": point.low, f"{column}_high": point.high}
    if metric(column).spread == "stderr" and point.low is not None and point.high is not None:
        row[f"{column}_stderr"] = (point.high - point.low) / 2 / 1.96
    return shown(row, column)


def as_csv(points: Sequence[HistoryPoint], column: str) -> str:
    """Full precision, one line per run."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["date", "commit", "run", column, "low", "high", "draws", "new_level", "conditions_apart"])
    for p in points:
        texts = [p.date, p.commit, printable(p.run), p.value, p.low, p.high, p.draws, int(p.change)]
        lines.writerow([*texts, " ".join(p.apart)])
    return out.getvalue()


def plot(points: Sequence[HistoryPoint], column: str, title: str, file: Path) -> None:
    """The values with their intervals over the commits, evenly spaced; new levels and changed conditions are marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "prunebench", "text.parse_math": False}):
        figure, axes = pyplot.subplots(figsize=(max(5.0, 0.45 * len(points) + 2), 3.6), layout="constrained")
        _draw(axes, points, column, title)
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(file.suffix, {})
        figure.savefig(file, dpi=150, metadata=metadata)
        pyplot.close(figure)


def _draw(axes: Any, points: Sequence[HistoryPoint], column: str, title: str) -> None:
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
    found = metric(column)
    axes.set_ylabel(printable(f"{found.label} ({found.unit})" if found.unit else found.label))
    axes.set_title(printable(title), fontsize=9)
    if starts or apart:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
