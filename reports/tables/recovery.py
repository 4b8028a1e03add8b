"""The view recovery: quality by the tokens of healing, and what it takes to come near the dense model.

A curve has the points of `--heal-at` and the end. Its measure is the perplexity of a text of the run, or with
`--heal-answers` the mean over tasks of the right answers' bits per byte. Excess is the logarithm of the measure as a
multiple of the dense model's. A power law through the excesses says after how many tokens a method is within a share of
the dense model (bench.stats.power_law).

Work of training counts multiply-accumulates twice, once forward and twice on the way back: for activations, and for
weights where all are trained. The dense model's predictions are a forward of it over the distinct tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from bench.plan.protocol import Recipe
from bench.records.measured import ANSWER_BPB, PointScore, TaskMetric, TextScore
from bench.records.quantities import quantity_of_column
from bench.records.quantity import format_count, format_seconds, format_significant, shorten_name
from bench.records.record import Record
from bench.stats.intervals import NORMAL_95, average_stderr
from bench.stats.power_law import PowerLaw, fit_power_law
from reports import protocol
from reports.groups import TableGroup
from reports.tables.rows import ReportData, row_of, table_of_group
from reports.tables.table import Column, Table, TableCell

WITHIN = (0.5, 0.25, 0.1)  # of the dense perplexity
WITHIN_OF_BITS = (0.1, 0.05, 0.02)  # of the dense model's bits
LARGE = 1e9  # from here on amounts are written with an exponent
CURVE = (
    "{} after so many tokens of healing, with its 95 % interval over {}; the last column is of the model "
    "that is given back. Before the end the learning rate has not fallen yet, so that a shorter training of its own "
    "would do better. Of several draws the first."
)
REACHED = (
    "within: of the dense model's {0}. tokens: at which a power law through the logarithms of the {0} as multiples of "
    "the dense model's is so near, with the 95 % interval of the fit (Fieller); beyond the tokens trained on it is "
    "an extrapolation. work: floating-point operations of training to there, with the dense model's predictions. "
    "time: seconds of training to there at the pace so far, and of pruning. -: the curve has fewer than four points "
    "after its start, or is not shown to fall."
)


Ends = tuple[float, float | None, float | None]  # a value with the ends of its interval


@dataclass(frozen=True)
class RecoveryMeasure:
    """Says what a curve is of: a column of the frame, perplexity_wiki or answer_bpb."""

    column: str

    @property
    def is_bits(self) -> bool:
        """Say whether it is the bits per byte of the right answers, and not a perplexity."""
        return self.column == ANSWER_BPB

    @property
    def name(self) -> str:
        """Return its part in names of files."""
        return self.column if self.is_bits else shorten_name(self.column.removeprefix("perplexity_"))

    @property
    def title(self) -> str:
        """Return its words: 'perplexity on wiki'."""
        return "bits per byte of the right answers" if self.is_bits else f"perplexity on {self.name}"

    @property
    def sampled(self) -> str:
        """Return what its interval is over."""
        return "documents" if self.is_bits else "windows"

    @property
    def levels(self) -> tuple[float, ...]:
        """Return the shares of the dense value whose tokens are estimated."""
        return WITHIN_OF_BITS if self.is_bits else WITHIN

    def format(self, value: float) -> str:
        """Write a value."""
        return quantity_of_column(self.column).format(value, value)

    def of_scores(self, texts: Mapping[str, PointScore | TextScore], answers: Mapping[str, TaskMetric]) -> Ends | None:
        """Return the value with its interval; None where it was not measured."""
        if not self.is_bits:
            score = texts.get(self.column.removeprefix("perplexity_"))
            return (score.perplexity, score.perplexity_low, score.perplexity_high) if score else None
        if not answers:
            return None
        value, errors = fmean(each.value for each in answers.values()), [each.stderr for each in answers.values()]
        if None in errors:
            return value, None, None
        half = NORMAL_95 * average_stderr([error for error in errors if error is not None])
        return value, value - half, value + half


@dataclass(frozen=True)
class RecoveryPoint:
    """Holds the measure after some tokens and seconds of training, with its interval."""

    tokens: int
    seconds: float
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RecoveryCurve:
    """Holds the curve of one healed cell by one measure.

    tokens_before, seconds_before  of the stages that the cell goes on from, and of pruning
    work_per_token                 floating-point operations of training; None where they are not known
    work_before                    those of the dense model's predictions
    """

    label: str
    record: Record
    points: tuple[RecoveryPoint, ...]
    tokens_before: int
    seconds_before: float
    work_per_token: float | None
    work_before: float

    def fit(self, dense: float) -> PowerLaw | None:
        """Return the power law of the excess over the dense model's value; None for too few points."""
        tokens = [point.tokens for point in self.points]
        return fit_power_law(tokens, [math.log(point.value / dense) for point in self.points])

    def seconds_at(self, tokens: float) -> float:
        """Return the seconds of pruning and of training on so many tokens, at the pace of all of it."""
        end = self.points[-1]
        return self.seconds_before + end.seconds / max(1, end.tokens) * tokens


def find_dense_value(group: TableGroup, measure: RecoveryMeasure, curves: Sequence[RecoveryCurve]) -> float | None:
    """Return the dense model's value of the measure of some curves; None where it was not measured."""
    dense = _dense_record(group)
    value = _value_at_end(dense, measure, _tasks_of(curves[0].record)) if dense else None
    return value[0] if value else None


def _dense_record(group: TableGroup) -> Record | None:
    return next((record for record in group.records if record.cell.method == "dense" and record.status == "ok"), None)


def curves_by_measure(group: TableGroup) -> dict[RecoveryMeasure, list[RecoveryCurve]]:
    """Return {measure: the curves of the healed cells that have it while they were trained}, of draws the first."""
    curves: dict[RecoveryMeasure, list[RecoveryCurve]] = {}
    dense = _dense_record(group)
    for place, record in enumerate(group.records):
        for measure in _measures_of(record):
            curves.setdefault(measure, []).append(_curve(group.label(place), record, measure, dense))
    return curves


def _measures_of(record: Record) -> list[RecoveryMeasure]:
    healing = record.measured.healing
    if record.status != "ok" or healing is None:
        return []
    texts = dict.fromkeys(chain.from_iterable(point.texts or {} for point in healing.curve))
    columns = [*(f"perplexity_{text}" for text in texts), *[ANSWER_BPB] * bool(_tasks_of(record))]
    return list(map(RecoveryMeasure, columns))


def _tasks_of(record: Record) -> list[str]:
    """Return the tasks whose right answers were measured while a cell was trained."""
    healing = record.measured.healing
    return list(dict.fromkeys(chain.from_iterable(point.answers or {} for point in healing.curve))) if healing else []


def _value_at_end(record: Record, measure: RecoveryMeasure, tasks: Sequence[str]) -> Ends | None:
    """Return the value of a measured model, of answers over these tasks; None where one of them lacks it."""
    measured = record.measured
    answers = {name: score.answer_bpb for name, score in measured.task_scores.items() if score.answer_bpb}
    chosen = {name: answers[name] for name in tasks if name in answers}
    return measure.of_scores(measured.text_scores, chosen if len(chosen) == len(tasks) else {})


def _curve(label: str, record: Record, measure: RecoveryMeasure, dense: Record | None) -> RecoveryCurve:
    measured, healing = record.measured, record.measured.healing
    assert healing is not None
    points = []
    for point in healing.curve:
        if point.tokens < healing.tokens and (value := measure.of_scores(point.texts or {}, point.answers or {})):
            points.append(RecoveryPoint(point.tokens, point.seconds, *value))
    if end := _value_at_end(record, measure, _tasks_of(record)):
        points.append(RecoveryPoint(healing.tokens, healing.seconds, *end))
    tokens, seconds = _spent_before(record)
    recipe = record.cell.healing
    work, before = work_of_training(recipe, measured.macs_per_token, dense) if recipe else (None, 0.0)
    seconds += measured.prune_seconds or 0.0
    return RecoveryCurve(label, record, tuple(points), tokens, seconds, work, before)


def _spent_before(record: Record) -> tuple[int, float]:
    """Return the tokens and the seconds of the stages that a cell goes on from."""
    stages = [stage["measured"] for stage in record.decisions.get("earlier", [])]
    healed = [stage["healing"] for stage in stages if stage.get("healing")]
    seconds = sum(stage.get("prune_seconds") or 0.0 for stage in stages)
    return sum(each["tokens"] for each in healed), seconds + sum(each["seconds"] for each in healed)


def work_of_training(recipe: Recipe, macs: float | None, dense: Record | None) -> tuple[float | None, float]:
    """Return the floating-point operations of a token of training, and those of the dense model's predictions.

    macs  of the pruned model for a token; None where they are not known

    Both are unknown where another model was the teacher, since no record has its size.
    """
    if macs is None or recipe.teacher:
        return None, 0.0
    passes = (3 if recipe.kind == "full" else 2) + recipe.recompute
    of_dense = dense.measured.macs_per_token if dense and recipe.loss == "kl" else None
    return 2 * passes * macs, 2 * (of_dense or 0.0) * recipe.sequences * recipe.length


def tables_of_recovery(data: ReportData) -> list[Table]:
    """Return two tables for each group and measure: the curves, and what it takes to come near the dense model."""
    tables = []
    for group in data.groups:
        for measure, curves in curves_by_measure(group).items():
            dense = find_dense_value(group, measure, curves)
            tables.append(_table_of_curves(group, measure, curves, dense))
            if dense is not None:
                tables.append(_table_of_levels(group, measure, curves, dense))
    return tables


def _table_of_curves(
    group: TableGroup, measure: RecoveryMeasure, curves: Sequence[RecoveryCurve], dense: float | None
) -> Table:
    tokens = sorted({point.tokens for curve in curves for point in curve.points})
    columns = [Column(f"after_{count}", format_count(count), better="lower") for count in tokens]
    rows = []
    for curve in curves:
        by_tokens = {point.tokens: point for point in curve.points}
        cells = [_cell_of_point(by_tokens.get(count), measure) for count in tokens]
        rows.append(row_of(curve.record, curve.label, cells))
    beside = f", dense {measure.format(dense)}" if dense else ""
    title = f"{measure.title} by tokens of healing{beside}, {protocol.words_of_ratio(group.records)}"
    heading = "Bits per byte" if measure.is_bits else "Perplexity"
    return table_of_group(
        "recovery",
        group,
        columns,
        rows,
        [CURVE.format(heading, measure.sampled)],
        name=f"recovery-{measure.name}-{group.ratio}",
        title=title,
        measured=protocol.protocol_of_records(
            list(chain(*group.drawn)), ("tasks" if measure.is_bits else "perplexity",)
        ),
    )


def _cell_of_point(point: RecoveryPoint | None, measure: RecoveryMeasure) -> TableCell:
    if point is None:
        return TableCell()
    brief = text = measure.format(point.value)
    if point.low is not None and point.high is not None:
        write = quantity_of_column(measure.column).format
        text = f"{brief} [{write(point.low, point.value)}, {write(point.high, point.value)}]"
    return TableCell(text, brief, point.value, point.low, point.high)


def _table_of_levels(
    group: TableGroup, measure: RecoveryMeasure, curves: Sequence[RecoveryCurve], dense: float
) -> Table:
    columns = [
        Column("within", "within", key=True),
        Column("tokens", "tokens", better="lower"),
        Column("work", "work", better="lower"),
        Column("time", "time", better="lower"),
    ]
    rows = []
    for curve in curves:
        law = curve.fit(dense)
        for share in measure.levels:
            within = TableCell(f"{100 * share:.0f} %", value=share)
            reached = law.find_tokens(math.log1p(share)) if law else None
            rows.append(row_of(curve.record, curve.label, [within, *_cells_of_level(curve, reached)]))
    where = "by the right answers' bits" if measure.is_bits else f"on {measure.name}"
    title = f"coming near the dense model {where}, {protocol.words_of_ratio(group.records)}"
    name = f"recovery-cost-{measure.name}-{group.ratio}"
    legend = REACHED.format("bits" if measure.is_bits else "perplexities")
    return table_of_group("recovery", group, columns, rows, [legend], name=name, title=title)


def _cells_of_level(curve: RecoveryCurve, reached: tuple[float, float, float] | None) -> list[TableCell]:
    """Return the cells of tokens, work and time at a level, with intervals that follow from that of the tokens."""
    if reached is None:
        return [TableCell()] * 3
    tokens = [curve.tokens_before + each for each in reached]
    seconds = [curve.seconds_at(each) for each in reached]
    work = [curve.work_before + (curve.work_per_token or 0.0) * each for each in tokens]
    cells = [_cell_with_ends(tokens, format_count)]
    cells.append(TableCell() if curve.work_per_token is None else _cell_with_ends(work, format_significant, " FLOP"))
    return [*cells, _cell_with_ends(seconds, format_seconds, " s")]


def _cell_with_ends(amounts: Sequence[float], show: Callable[[float], str], unit: str = "") -> TableCell:
    """Return the cell of an amount with its unit, and the ends of its interval."""
    brief, *ends = (show(each) if each < LARGE else f"{each:.1e}" for each in amounts)
    value, low, high = amounts
    return TableCell(f"{brief}{unit} [{', '.join(ends)}]", f"{brief}{unit}", value, low, high)
