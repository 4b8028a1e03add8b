"""The view signal: how well each task and each of its figures tells the methods of a ratio apart.

records -> the methods of each ratio that answered the same documents -> a row for each figure (bench.stats.signal)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from bench.records.columns import accuracies, answered
from bench.records.record import ANSWER_BPB
from bench.records.samples import Samples, alike
from bench.stats.signal import DRAWS, Figures, Separation, separation
from reports import notes
from reports.blocks import TableGroup
from reports.metrics import percent, significant
from reports.tables.rows import ReportData, of_group
from reports.tables.table import Column, Row, Table, TableCell

DRAWN = 100  # documents of each task, or half of what there are
FEWEST = 4  # methods: of fewer a standard deviation says next to nothing
COLUMNS = (
    Column("signal", "signal"),
    Column("noise", "noise of a draw"),
    Column("signal_to_noise", "signal / noise", better="higher"),
    Column("agreement", "tau of a draw", better="higher"),
    Column("needed", "documents needed", better="lower"),
)
ABOUT = (
    "a row is of one figure of a task, or of the mean of all tasks' figures of one kind.",
    "signal: the standard deviation between methods, without what the draw of the documents adds; in points of % of an "
    "accuracy, in bits per byte of bpb.",
    "noise of a draw: the standard deviation that the draw adds to one method beside the others, on {} documents of "
    "each task; what a document does to all methods is in no comparison.",
    "tau of a draw: Kendall's tau-b between the order of the methods on that many documents and on all that are left, "
    f"the mean of {DRAWS} draws.",
    "documents needed: of each task, for a difference as large as the signal to be found in 80 % of draws, two-sided "
    "at 5 %.",
    "all of it is of these methods at this ratio: the more alike methods are, the less any figure tells them apart.",
)


def tables(data: ReportData) -> list[Table]:
    """Return a table for each ratio at which enough methods answered the same documents."""
    return [table for group in data.groups for table in _of_group(group, data.samples)]


def _of_group(group: TableGroup, samples: Samples) -> Iterator[Table]:
    measured = [at for at, one in enumerate(group.records) if one.status == "ok" and one.cell["method"] != "dense"]
    figures, kept = _figures(group, measured, samples)
    if len(kept) < FEWEST or not figures:
        return
    drawn = min(DRAWN, min(one.shape[1] for one in figures.values()) // 2)
    of_each: dict[str, list[Figures]] = {"average": [], ANSWER_BPB: []}
    for (_, figure), one in figures.items():
        of_each[ANSWER_BPB if figure == ANSWER_BPB else "average"].append(one)
    rows = [
        _row(f"{task} {_word(figure)}", figure, separation([one], drawn)) for (task, figure), one in figures.items()
    ]
    rows += [
        _row(_word(name), name, separation(several, drawn)) for name, several in of_each.items() if len(several) > 1
    ]
    lost = [group.label(at) for at in measured if at not in kept]
    table = of_group(
        "signal",
        group,
        COLUMNS,
        rows,
        (*notes.protocol(group.records, (), ("tasks",), seeds=False), *(one.format(drawn) for one in ABOUT)),
        said=[
            f"{len(kept)} methods: {', '.join(map(group.label, kept))}.",
            *[f"left out, since no samples of theirs are of the same documents: {', '.join(lost)}."] * bool(lost),
        ],
    )
    yield replace(table, head="figure")


def _figures(
    group: TableGroup, places: Sequence[int], samples: Samples
) -> tuple[dict[tuple[str, str], Figures], list[int]]:
    """Return each task's figures by the names of both, (methods, documents), and the places of the methods.

    Of a method with several draws the first one counts; those that answered other documents than most are left out.
    """
    number = {at: next(iter(group.models(at)[0].values())) for at in places}
    records = [group.records[at] for at in places]
    mains = {task: records[0].measured["tasks"][task]["main"] for task in accuracies(records[:1])}
    wanted = [*mains.items(), *((task, ANSWER_BPB) for task in answered(records[:1]))]
    found = {one: {at: samples.of(number[at], *one) for at in places} for one in wanted}
    kept = list(places)
    for given in found.values():
        same = alike(given, dict.fromkeys(given))
        most = Counter(same.values()).most_common(1)
        kept = [at for at in kept if most and same.get(at) == most[0][0]]
    known = {name: [one for at in kept if (one := given[at])] for name, given in found.items()}
    return {name: np.array([one.figures for one in several]) for name, several in known.items() if several}, kept


def _word(figure: str) -> str:
    return "bpb" if figure == ANSWER_BPB else figure


def _row(label: str, figure: str, found: Separation) -> Row:
    """Write what was found of a figure; that of an accuracy in points."""
    show, unit = (significant, 1.0) if figure == ANSWER_BPB else (percent, 100.0)
    return Row(
        label,
        "",
        None,
        (
            TableCell(show(found.signal), value=found.signal * unit),
            TableCell(show(found.noise), value=found.noise * unit),
            TableCell(f"{found.ratio:.2f}", value=found.ratio),
            TableCell() if math.isnan(found.agreement) else TableCell(f"{found.agreement:.2f}", value=found.agreement),
            TableCell() if math.isinf(found.needed) else TableCell(f"{math.ceil(found.needed):,}", value=found.needed),
        ),
    )
