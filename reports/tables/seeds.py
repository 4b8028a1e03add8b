"""The view seeds: how much of a perplexity is the method, the calibration's text, its seed, and the windows.

records -> cells alike but for method, calibration text and seed -> two tables for each ratio and each text measured on

The first table has a standard deviation for each source, of one cell and of the difference of two methods at one
calibration; the second has a row for each method.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from statistics import fmean

from scipy.special import stdtrit

from bench.records.columns import texts
from bench.records.comparability import study_setup
from bench.records.drawn_cells import is_draw
from bench.records.record import Record, amount, display_name, label, ratio_of, requested_ratio, text_name
from bench.records.samples import Samples
from bench.stats.clusters import degrees_of_freedom, ratio_stderr
from bench.stats.draws import VarianceComponent, components, exponential
from bench.stats.intervals import NORMAL_95
from reports import notes
from reports.blocks import name_beside, seeds_named, seeds_of
from reports.metrics import metric, perplexity, short, significant
from reports.tables.rows import ReportData
from reports.tables.table import Column, Row, Table, TableCell

Draw = tuple[str, int]  # the text and the seed of a calibration
SOURCES = ("method", "calibration text", "calibration seed", "windows")
SPREADS = (
    Column("deviation", "sd (nats)"),
    Column("deviation_percent", "sd (%)"),
    Column("freedom", "d.f."),
    Column("difference", "sd of a difference (nats)"),
    Column("difference_percent", "sd of a difference (%)"),
)
OF_METHODS = (
    Column("perplexity", "mean ppl", better="lower"),
    Column("lowest", "lowest"),
    Column("highest", "highest"),
    Column("draws", "draws"),
    Column("by_seed", "sd by seed (nats)"),
    Column("by_seed_percent", "sd by seed (%)"),
    Column("by_windows_percent", "sd by windows (%)"),
)
ABOUT = (
    "sd: the standard deviation that a source adds to the logarithm of a perplexity, and as a share of the perplexity; "
    "texts are those of one method, seeds those of one text. By the analysis of variance, for unequal numbers by "
    "Henderson's method 1.",
    "windows: of one cell, over draws of as many windows as it was measured on.",
    "difference: of two methods at the same text and seed, window by window; what a draw does to both is not in it.",
)
ABOUT_METHODS = (
    "mean ppl: over the draws, texts and seeds, by the logarithm; lowest and highest of them; sd by seed: of the "
    "logarithm, between the seeds of one text.",
)


@dataclass(frozen=True)
class CalibrationDraws:
    """Hold the perplexities on one text of cells that differ in method, calibration text and seed alone.

    cells     of each method, best first, its places among all records by the draw of the calibration
    records   all that are looked at, with those that have no figure
    left_out  methods that look at no calibration, or draw themselves
    """

    text: str
    ratio: float | None
    cells: dict[str, dict[Draw, int]]
    records: dict[int, Record]
    left_out: list[str]

    @property
    def asked(self) -> str:
        """Return what went, as 'ratio 0.3' or 'budget macs=0.8'."""
        return amount(self.ratio, self.ratio_of) or "ratio fixed"

    @property
    def ratio_of(self) -> str:
        """Return what the ratio is a share of."""
        return ratio_of(next(iter(self.records.values())).cell)

    def log(self, place: int) -> float:
        """Return the logarithm of a perplexity."""
        return math.log(self.records[place].measured["perplexity"][self.text]["perplexity"])

    def shared(self) -> Iterator[tuple[tuple[str, str], Draw, int, int]]:
        """Give every pair of methods at every draw that both have: the pair, the draw, the two places."""
        for pair in combinations(self.cells, 2):
            one, other = (self.cells[method] for method in pair)
            yield from ((pair, draw, one[draw], other[draw]) for draw in one if draw in other)


def tables(data: ReportData) -> list[Table]:
    """Return the tables of everything that was measured with several seeds of one calibration text."""
    return [
        table for found in calibration_draws(data) for table in (_of_sources(found, data.samples), _of_methods(found))
    ]


def calibration_draws(data: ReportData) -> Iterator[CalibrationDraws]:
    """Yield what was measured with several seeds, for each text that was measured on and each ratio."""
    groups: dict[str, list[int]] = {}
    for number, record in enumerate(data.records):
        if record.cell["method"] != "dense":
            asked = record.cell["protocol"]
            looked_at = [asked["calibration_sequences"], asked["calibration_length"]]
            alike = [study_setup(record), *looked_at, requested_ratio(record), ratio_of(record.cell)]
            groups.setdefault(json.dumps(alike), []).append(number)
    for numbers in groups.values():
        records = {number: data.records[number] for number in numbers}
        without = {n for n, one in records.items() if not _is_calibrated(one, data.needs)}
        left_out = list(dict.fromkeys(label(records[n].cell) for n in without))
        kept = {n: one for n, one in records.items() if n not in without}
        for text in texts(list(kept.values())):
            cells = _cells(kept, text)
            if sum(_seeds(draws) > 1 for draws in cells.values()) > 1:
                yield CalibrationDraws(text, requested_ratio(records[numbers[0]]), cells, kept, left_out)


def _is_calibrated(record: Record, needs: Mapping[str, str]) -> bool:
    """Return whether the draw of a calibration is what a cell varies by, as far as it is known."""
    stages = [*record.cell.get("earlier", ()), record.cell]
    return not any(map(is_draw, stages)) and any(needs.get(stage["method"]) != "nothing" for stage in stages)


def _cells(records: Mapping[int, Record], text: str) -> dict[str, dict[Draw, int]]:
    """Return the places of the cells that have a finite perplexity, by method, the best first."""
    found: dict[str, dict[Draw, int]] = {}
    logs: dict[str, list[float]] = {}
    every = list(records.values())
    for place, record in records.items():
        draw = (str(record.cell["protocol"]["calibration"]), record.cell["seed"])
        places = found.setdefault(name := name_beside(record, every), {})
        if draw not in places and math.isfinite(figure := _perplexity(record, text)):
            places[draw] = place
            logs.setdefault(name, []).append(math.log(figure))
    return {method: dict(sorted(found[method].items())) for method in sorted(logs, key=lambda one: fmean(logs[one]))}


def _perplexity(record: Record, text: str) -> float:
    """Return a perplexity, infinity where there is none."""
    return float(record.measured.get("perplexity", {}).get(text, {}).get("perplexity", math.inf))


def _seeds(draws: Mapping[Draw, int]) -> int:
    """Return the most seeds that any text has."""
    several = [text for text, _ in draws]
    return max(map(several.count, several), default=0)


def _of_sources(found: CalibrationDraws, samples: Samples) -> Table:
    """Return the standard deviation of each source, of a cell and of a difference."""
    every = [
        (method, text, found.log(place)) for method, draws in found.cells.items() for (text, _), place in draws.items()
    ]
    methods, where, logs = zip(*every, strict=True)
    of_cell = [*components(logs, methods, where), _windows(found)]
    pairs = [(pair, text, found.log(b) - found.log(a)) for pair, (text, _), a, b in found.shared()]
    of_difference = [VarianceComponent(None, 0)] * len(SOURCES)
    if pairs:
        both, where, differences = zip(*pairs, strict=True)
        of_difference[1:] = *components(differences, both, where)[1:], _windows_of_differences(found, samples)
    rows = []
    for source, one, apart in zip(SOURCES, of_cell, of_difference, strict=True):
        freedom = TableCell(f"{one.freedom:,}", value=one.freedom) if one.variance is not None else TableCell()
        cells = [*_spread(one.deviation), freedom, *_spread(apart.deviation)]
        rows.append(Row(source, "", found.ratio, tuple(cells), ratio_of=found.ratio_of))
    negative = [
        name + " (of a difference)" * (several is of_difference)
        for several in (of_cell, of_difference)
        for name, one in zip(SOURCES, several, strict=True)
        if one.variance is not None and one.variance < 0
    ]
    below = [f"estimated below zero, and shown as 0: {', '.join(negative)}."] * bool(negative)
    table = _table(found, "seeds", SPREADS, rows, ABOUT)
    return replace(table, head="source", notes=(*_resolved(of_difference), *below, *_counts(found)))


def _windows(found: CalibrationDraws) -> VarianceComponent:
    """Return the mean variance of a cell over its windows, from its interval, which is Student's."""
    variances, freedom = [], 0
    for place in (place for draws in found.cells.values() for place in draws.values()):
        figures = found.records[place].measured["perplexity"][found.text]
        if figures.get("perplexity_low") and figures.get("windows", 0) > 1:
            wide = math.log(figures["perplexity_high"] / figures["perplexity_low"]) / 2
            freedom = degrees_of_freedom(figures["windows"], in_a_row=not figures["drawn"])
            variances.append((wide / float(stdtrit(freedom, 0.975))) ** 2)
    return VarianceComponent(fmean(variances) if variances else None, freedom)


def _windows_of_differences(found: CalibrationDraws, samples: Samples) -> VarianceComponent:
    """Return the mean variance over windows of the difference of two methods at one draw, from their samples."""
    name, variances, freedom = f"perplexity-{text_name(found.text)}", [], 0
    for _, _, a, b in found.shared():
        one, other = (samples.of(place, name, "nll") for place in (a, b))
        if one and other and one.units.equals(other.units):
            row = not found.records[a].measured["perplexity"][found.text]["drawn"]
            _, stderr, freedom = ratio_stderr(other.figures - one.figures, one.units.to_pylist(), in_a_row=row)
            variances.append(stderr**2)
    return VarianceComponent(fmean(variances) if variances else None, freedom)


def _spread(deviation: float | None) -> tuple[TableCell, TableCell]:
    """Return the cells of a standard deviation of a logarithm, in nats and as a share of the perplexity."""
    if deviation is None:
        return TableCell(), TableCell()
    share = _share(deviation)
    return TableCell(significant(deviation), value=deviation), TableCell(significant(100 * share), value=share)


def _share(deviation: float) -> float:
    """Return a deviation of a logarithm as a share of the perplexity."""
    return exponential(deviation) - 1 if deviation > 1 else math.expm1(deviation)


def _resolved(of_difference: Sequence[VarianceComponent]) -> Iterator[str]:
    """Say how near two methods can be before one seed does not tell them apart."""
    *_, seed, windows = of_difference
    if seed.deviation is None:
        return
    near = _share(NORMAL_95 * seed.deviation)
    said = f"two methods nearer than {significant(100 * near)} % in perplexity are not told apart by one seed"
    more = ""
    if windows.deviation is not None:
        both = _share(NORMAL_95 * math.hypot(seed.deviation, windows.deviation))
        more = f"; with the draw of the windows {significant(100 * both)} %"
    yield f"{said}: {NORMAL_95} sd of their difference by the calibration seed{more}."


def _counts(found: CalibrationDraws) -> Iterator[str]:
    """Say how many cells stand behind a table, and which ones do not."""
    known = {place for draws in found.cells.values() for place in draws.values()}
    others = [one for place, one in found.records.items() if place not in known]
    again = [one for one in others if math.isfinite(_perplexity(one, found.text))]
    for why, several in (("without a figure", [one for one in others if one not in again]), ("measured again", again)):
        cells = [one.cell for one in several]
        where = [f"{label(cell)} of {cell['protocol']['calibration']}, seed {cell['seed']}" for cell in cells]
        if where:
            yield f"{why}, and left out: {'; '.join(where)}."
    if found.left_out:
        yield f"left out, since no calibration decides them: {', '.join(found.left_out)}."


def _of_methods(found: CalibrationDraws) -> Table:
    """Return a row for each method: its mean, the range of its draws, and their standard deviation."""
    rows = []
    for method, draws in found.cells.items():
        logs = [found.log(place) for place in draws.values()]
        deviation = components(logs, [text for text, _ in draws])[-1].deviation
        own = _windows(CalibrationDraws(found.text, found.ratio, {method: draws}, found.records, []))
        figures = [exponential(value) for value in (fmean(logs), min(logs), max(logs))]
        cells = [
            *(TableCell(perplexity(one, figures[0]), value=one) for one in figures),
            TableCell(str(len(logs)), value=len(logs)),
            *_spread(deviation),
            _spread(own.deviation)[1],
        ]
        name = str(found.records[next(iter(draws.values()))].cell["method"])
        rows.append(Row(method, name, found.ratio, tuple(cells), ratio_of=found.ratio_of))
    return replace(_table(found, "seeds-methods", OF_METHODS, rows, ABOUT_METHODS), notes=tuple(_ties(found)))


def _ties(found: CalibrationDraws) -> Iterator[str]:
    """Name the neighbours in the order of the means that change places from one draw to another."""
    signs: dict[tuple[str, str], list[bool]] = {}
    for pair, _, a, b in found.shared():
        signs.setdefault(pair, []).append(found.log(a) < found.log(b))
    neighbours = [pair for pair in pairwise(found.cells) if len(set(signs.get(pair, ()))) > 1]
    if neighbours:
        said = [f"{a} and {b} ({signs[a, b].count(True)} of {len(signs[a, b])} draws)" for a, b in neighbours]
        yield f"neighbours whose ranks change with the draw, and how often the first is ahead: {', '.join(said)}."


def _table(
    found: CalibrationDraws, name: str, columns: Sequence[Column], rows: Sequence[Row], about: Sequence[str]
) -> Table:
    """Return a table without notes, titled by what it is of and by how many cells stand behind it."""
    records = list(found.records.values())
    ratio = "fixed" if found.ratio is None else f"{found.ratio:g}"
    calibrations = list(dict.fromkeys(text for draws in found.cells.values() for text, _ in draws))
    behind = [
        f"{sum(map(len, found.cells.values()))} cells of {len(found.cells)} methods",
        f"calibrated on {' and '.join(map(short, calibrations))}",
        seeds_named(seeds_of(records)),
    ]
    return Table(
        name=f"{name}-{Path(found.text).stem}-{ratio}",
        view="seeds",
        model=display_name(records[0]),
        title=f"{metric(f'perplexity_{found.text}').label}, {found.asked}: {', '.join(behind)}",
        conditions=tuple(notes.conditions(records)),
        columns=tuple(columns),
        rows=tuple(rows),
        footnotes=(*notes.protocol(records, (), ("perplexity",), seeds=False), *about),
    )
