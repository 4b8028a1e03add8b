"""The view needle: how often a code is found, and how likely the right one is, by context and depth.

The depth of a document follows from its number (bench.data.needle), which samples hold. Without samples there is no
table, and the accuracy of each context stands in the view per-task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from bench.data.needle import CONTEXTS, depth_of_document
from bench.records.frame import tasks_of_records
from bench.records.measured import ANSWER_BPB
from bench.records.quantities import quantity_of_column
from bench.records.samples import Samples
from bench.stats.intervals import mean_stderr, wilson
from reports import protocol
from reports.groups import TableGroup
from reports.tables.rows import ReportData, row_of, sort_rows, table_of_group
from reports.tables.table import Column, Table, TableCell

READING = (
    "acc at a depth: codes that are found where the fact stands at that share of the context, in %, of ten codes each, "
    "with Wilson's 95 % interval; bpb: bits per byte of the right code, ± one standard error. Several draws have means."
)


@dataclass(frozen=True)
class DepthScore:
    """Holds what a model makes of the documents of one context and depth.

    accuracy  the share of codes that are found, with the ends of Wilson's interval; of several draws without
    bits      per byte of the right code, with the standard error; of several draws without
    """

    accuracy: float
    low: float | None
    high: float | None
    bits: float
    stderr: float | None


def tasks_with_needle(group: TableGroup) -> list[str]:
    """Return the tasks of a group that hide a needle, the shortest context first."""
    measured = tasks_of_records(list(chain(*group.drawn)))
    return [name for name in CONTEXTS if name in measured]


def scores_by_depth(samples: Samples, numbers: Sequence[int], task: str) -> dict[int, DepthScore]:
    """Return {depth: score} of a row from the samples of its records, by their numbers; {} unless each has samples."""
    right: dict[int, list[float]] = {}
    bits: dict[int, list[float]] = {}
    for number in numbers:
        columns = [samples.of(number, task, name) for name in ("doc_id", "acc", ANSWER_BPB)]
        values = [column.values.tolist() for column in columns if column is not None]
        if len(values) < len(columns):
            return {}
        for document, is_right, per_byte in zip(*values, strict=True):
            depth = depth_of_document(int(document))
            right.setdefault(depth, []).append(is_right)
            bits.setdefault(depth, []).append(per_byte)
    return {depth: _score(right[depth], bits[depth], is_drawn=len(numbers) > 1) for depth in sorted(right)}


def _score(right: Sequence[float], bits: Sequence[float], *, is_drawn: bool) -> DepthScore:
    if is_drawn:
        return DepthScore(fmean(right), None, None, fmean(bits), None)
    return DepthScore(fmean(right), *wilson(round(sum(right)), len(right)), *mean_stderr(bits))


def tables_of_needles(data: ReportData) -> list[Table]:
    """Return a table for each group and context whose samples are there."""
    tables = []
    for group in data.groups:
        for task in tasks_with_needle(group):
            sorted_group = sort_rows(group, f"task_{task}")
            scores = [scores_by_depth(data.samples, numbers, task) for numbers in sorted_group.numbers]
            if any(scores):
                tables.append(_table(sorted_group, task, scores))
    return tables


def _table(group: TableGroup, task: str, scores: Sequence[dict[int, DepthScore]]) -> Table:
    depths = sorted(set(chain(*scores)))
    columns = [Column(f"acc_{depth}", f"acc {depth} %", "%", "higher", "accuracy") for depth in depths]
    columns += [Column(f"bpb_{depth}", f"bpb {depth} %", "", "lower", "bits") for depth in depths]
    rows = []
    for place, (record, of_row) in enumerate(zip(group.records, scores, strict=True)):
        each = [of_row.get(depth) for depth in depths]
        rows.append(row_of(record, group.label(place), [*map(_cell_of_accuracy, each), *map(_cell_of_bits, each)]))
    records = list(chain(*group.drawn))
    return table_of_group(
        "needle",
        group,
        columns,
        rows,
        [READING],
        name=f"{task.replace('_', '-')}-{group.ratio}",
        title=f"{task} by depth, {protocol.words_of_ratio(group.records)}",
        measured=protocol.protocol_of_records(records, ("tasks",)),
    )


def _cell_of_accuracy(score: DepthScore | None) -> TableCell:
    if score is None:
        return TableCell()
    quantity = quantity_of_column("average")
    text = brief = quantity.show(score.accuracy)
    if score.low is not None and score.high is not None:
        text = f"{brief} [{quantity.show(score.low)}, {quantity.show(score.high)}]"
    return TableCell(text, brief, score.accuracy, score.low, score.high)


def _cell_of_bits(score: DepthScore | None) -> TableCell:
    if score is None:
        return TableCell()
    quantity = quantity_of_column(ANSWER_BPB)
    brief = quantity.format(score.bits, score.bits)
    text = brief if score.stderr is None else f"{brief} ± {quantity.format(score.stderr, score.bits)}"
    return TableCell(text, brief, score.bits, stderr=score.stderr)
