"""The view recovery: perplexity by the tokens of healing, and what it takes to come near the dense model.

A curve has the points of `--heal-at` and the end, where the texts of the run are measured. Excess is the logarithm of
the perplexity as a multiple of the dense model's. A power law through the excesses says after how many tokens a method
is within a share of the dense perplexity (bench.stats.power_law).

Work of training counts multiply-accumulates twice, once forward and twice on the way back: for activations, and for
weights where all are trained. The dense model's predictions are a forward of it over the distinct tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from bench.plan.protocol import Recipe
from bench.records.quantities import quantity_of_column
from bench.records.quantity import format_count, format_perplexity, format_seconds, format_significant, shorten_name
from bench.records.record import Record
from bench.stats.power_law import PowerLaw, fit_power_law
from reports import protocol
from reports.groups import TableGroup
from reports.tables.rows import ReportData, row_of, table_of_group
from reports.tables.table import Column, Table, TableCell

WITHIN = (0.5, 0.25, 0.1)  # of the dense perplexity
LARGE = 1e9  # from here on amounts are written with an exponent
CURVE = (
    "Perplexity after so many tokens of healing, with its 95 % interval over windows; the last column is of the model "
    "that is given back. Before the end the learning rate has not fallen yet, so that a shorter training of its own "
    "would do better. Of several draws the first."
)
REACHED = (
    "within: of the dense model's perplexity. tokens: at which a power law through the logarithms of the perplexities "
    "over the dense one's is so near, with the 95 % interval of the fit (Fieller); beyond the tokens trained on it is "
    "an extrapolation. work: floating-point operations of training to there, with the dense model's predictions. "
    "time: seconds of training to there at the pace so far, and of pruning. -: the curve has fewer than four points "
    "after its start, or is not shown to fall."
)


@dataclass(frozen=True)
class RecoveryPoint:
    """Holds the perplexity of a text after some tokens and seconds of training, with its interval."""

    tokens: int
    seconds: float
    perplexity: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RecoveryCurve:
    """Holds the curve of one healed cell on one text.

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
        """Return the power law of the excess over a dense perplexity; None for too few points."""
        tokens = [point.tokens for point in self.points]
        return fit_power_law(tokens, [math.log(point.perplexity / dense) for point in self.points])

    def seconds_at(self, tokens: float) -> float:
        """Return the seconds of pruning and of training on so many tokens, at the pace of all of it."""
        end = self.points[-1]
        return self.seconds_before + end.seconds / max(1, end.tokens) * tokens


def find_dense_perplexity(group: TableGroup, text: str) -> float | None:
    """Return the dense model's perplexity of a text; None where it was not measured."""
    dense = _dense_record(group)
    score = dense.measured.text_scores.get(text) if dense else None
    return score.perplexity if score else None


def _dense_record(group: TableGroup) -> Record | None:
    return next((record for record in group.records if record.cell.method == "dense" and record.status == "ok"), None)


def curves_by_text(group: TableGroup) -> dict[str, list[RecoveryCurve]]:
    """Return {text: the curves of the healed cells that measured it while they were trained}, of draws the first."""
    curves: dict[str, list[RecoveryCurve]] = {}
    dense = _dense_record(group)
    for place, record in enumerate(group.records):
        for text in _texts_of(record):
            curves.setdefault(text, []).append(_curve(group.label(place), record, text, dense))
    return curves


def _texts_of(record: Record) -> list[str]:
    healing = record.measured.healing
    if record.status != "ok" or healing is None:
        return []
    return list(dict.fromkeys(chain.from_iterable(point.texts or {} for point in healing.curve)))


def _curve(label: str, record: Record, text: str, dense: Record | None) -> RecoveryCurve:
    measured, healing = record.measured, record.measured.healing
    assert healing is not None
    points = []
    for point in healing.curve:
        if point.tokens < healing.tokens and point.texts and (score := point.texts.get(text)):
            ends = score.perplexity_low, score.perplexity_high
            points.append(RecoveryPoint(point.tokens, point.seconds, score.perplexity, *ends))
    end = measured.text_scores.get(text)
    if end:
        ends = end.perplexity_low, end.perplexity_high
        points.append(RecoveryPoint(healing.tokens, healing.seconds, end.perplexity, *ends))
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
    """Return two tables for each group and text: the curves, and what it takes to come near the dense model."""
    tables = []
    for group in data.groups:
        for text, curves in curves_by_text(group).items():
            dense = find_dense_perplexity(group, text)
            tables.append(_table_of_curves(group, text, curves, dense))
            if dense is not None:
                tables.append(_table_of_levels(group, text, curves, dense))
    return tables


def _table_of_curves(group: TableGroup, text: str, curves: Sequence[RecoveryCurve], dense: float | None) -> Table:
    tokens = sorted({point.tokens for curve in curves for point in curve.points})
    columns = [Column(f"after_{count}", format_count(count), better="lower") for count in tokens]
    rows = []
    for curve in curves:
        by_tokens = {point.tokens: point for point in curve.points}
        cells = [_cell_of_point(by_tokens.get(count)) for count in tokens]
        rows.append(row_of(curve.record, curve.label, cells))
    beside = f", dense {format_perplexity(dense, dense)}" if dense else ""
    title = f"perplexity on {shorten_name(text)} by tokens of healing{beside}, {protocol.words_of_ratio(group.records)}"
    return table_of_group(
        "recovery",
        group,
        columns,
        rows,
        [CURVE],
        name=f"recovery-{shorten_name(text)}-{group.ratio}",
        title=title,
        measured=protocol.protocol_of_records(list(chain(*group.drawn)), ("perplexity",)),
    )


def _cell_of_point(point: RecoveryPoint | None) -> TableCell:
    if point is None:
        return TableCell()
    quantity = quantity_of_column("perplexity_wiki")
    brief = quantity.format(point.perplexity, point.perplexity)
    text = brief
    if point.low is not None and point.high is not None:
        text = (
            f"{brief} [{quantity.format(point.low, point.perplexity)}, {quantity.format(point.high, point.perplexity)}]"
        )
    return TableCell(text, brief, point.perplexity, point.low, point.high)


def _table_of_levels(group: TableGroup, text: str, curves: Sequence[RecoveryCurve], dense: float) -> Table:
    columns = [
        Column("within", "within", key=True),
        Column("tokens", "tokens", better="lower"),
        Column("work", "work", better="lower"),
        Column("time", "time", better="lower"),
    ]
    rows = []
    for curve in curves:
        law = curve.fit(dense)
        for share in WITHIN:
            within = TableCell(f"{100 * share:.0f} %", value=share)
            reached = law.find_tokens(math.log1p(share)) if law else None
            rows.append(row_of(curve.record, curve.label, [within, *_cells_of_level(curve, reached)]))
    title = f"coming near the dense model on {shorten_name(text)}, {protocol.words_of_ratio(group.records)}"
    name = f"recovery-cost-{shorten_name(text)}-{group.ratio}"
    return table_of_group("recovery", group, columns, rows, [REACHED], name=name, title=title)


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
