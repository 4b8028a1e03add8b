"""The views seeds and signal: how much of a value is the draw, and how well values tell methods apart.

The view seeds divides a perplexity by its sources: the method, the calibration text, its seed, and the windows.

records -> cells that differ in method, calibration text and seed alone -> two tables for each ratio and evaluation text

The first table has a standard deviation for each source, of one cell and of the difference of two methods at one
calibration. The second has a row for each method.

The view signal says how well each task and each of its figures tells the methods of a ratio apart.

records -> the methods of each ratio that answered the same documents -> a row for each figure (bench.stats.draws)
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy.special import stdtrit

from bench.plan.cell import words_of_amount
from bench.plan.protocol import name_of_text
from bench.records.comparability import setup_of_study
from bench.records.frame import tasks_with_accuracies, tasks_with_answers, texts_of_records
from bench.records.measured import ANSWER_BPB
from bench.records.quantities import quantity_of_column
from bench.records.quantity import format_percent, format_perplexity, format_significant, shorten_name
from bench.records.record import Record, name_of_model
from bench.records.samples import Sample, Samples, pair_whole
from bench.regression.pairs import to_windows
from bench.stats.clusters import degrees_of_freedom, ratio_stderr
from bench.stats.draws import (
    DRAWS,
    Figures,
    Separation,
    VarianceComponent,
    exp_of_log,
    separation_of,
    variance_components,
)
from bench.stats.intervals import NORMAL_95
from reports import legend, protocol
from reports.groups import TableGroup, label_with_differences, names_of_seeds, seeds_of
from reports.legend import FlaggedCell
from reports.tables.rows import ReportData, table_of_group
from reports.tables.table import Column, Row, Table, TableCell

Draw = tuple[str, int]  # the text and the seed of a calibration
SOURCES = ("method", "calibration text", "calibration seed", "windows")
SEED_AND_WINDOWS = "calibration seed and windows"
SPREADS = (
    Column("deviation", "sd (nats)"),
    Column("deviation_percent", "sd (%)"),
    Column("freedom", "d.f."),
    Column("difference", "sd of a difference (nats)"),
    Column("difference_percent", "sd of a difference (%)"),
    Column("told_apart_percent", "told apart (%)"),
)
OF_METHODS = (
    Column("perplexity", "mean ppl", better="lower"),
    Column("lowest", "lowest"),
    Column("highest", "highest"),
    Column("draws", "draws"),
    Column("by_seed", "sd by seed (nats)"),
    Column("by_seed_percent", "sd by seed (%)"),
    Column("by_windows_percent", "sd by windows (%)"),
    Column("ahead", "ahead of the next"),
)
ABOUT = (
    "sd: the standard deviation that a source adds to the logarithm of a perplexity, and as a share of the perplexity.",
    "calibration text: between the texts of a method; calibration seed: between the seeds of a text.",
    "The variances are those of the analysis of variance, for unequal numbers by Henderson's method 1.",
    "windows: of one cell, over draws of as many windows as it was measured on.",
    "difference: of two methods at the same text and seed, window by window; what a draw does to both is not in it.",
    f"told apart: {NORMAL_95} sd of a difference. One draw of the source does not tell apart two methods that are "
    "nearer than that in perplexity.",
)
ABOUT_METHODS = (
    "mean ppl: over texts and seeds, by the logarithm; lowest, highest: of the same cells.",
    "sd by seed: of the logarithm, between the seeds of a text.",
    "ahead of the next: the draws in which the perplexity is lower than that of the next row, of those that both have.",
)


@dataclass(frozen=True)
class CalibrationDraws:
    """Holds the perplexities on one text of cells that differ in method, calibration text and seed alone.

    cells     for each method {draw of the calibration: place of the record}, the best method first
    records   {place: record}, also of cells without a perplexity
    left_out  methods that use no calibration, or make random choices of their own
    """

    text: str
    ratio: float | None
    cells: dict[str, dict[Draw, int]]
    records: dict[int, Record]
    left_out: list[str]

    @property
    def amount(self) -> str:
        """Return the ratio in words, as 'ratio 0.3' or 'budget macs=0.8'."""
        return words_of_amount(self.ratio, self.ratio_of) or "ratio fixed"

    @property
    def ratio_of(self) -> str:
        """Return the base of the ratio, such as 'all' or 'decoder'."""
        return next(iter(self.records.values())).cell.ratio_of

    def log(self, place: int) -> float:
        """Return the logarithm of the perplexity of the record at `place`."""
        return math.log(self.records[place].measured.text_scores[self.text].perplexity)

    def pairs_of_methods(self) -> Iterator[tuple[tuple[str, str], Draw, int, int]]:
        """Yield every pair of methods at every draw that both have: the pair, the draw, the two places."""
        for pair in combinations(self.cells, 2):
            first, second = (self.cells[method] for method in pair)
            yield from ((pair, draw, first[draw], second[draw]) for draw in first if draw in second)


def tables_of_seeds(data: ReportData) -> list[Table]:
    """Return the tables of all cells that were measured with several seeds of one calibration text."""
    return [
        table
        for study in draws_of_calibrations(data)
        for table in (_of_sources(study, data.samples), _of_methods(study))
    ]


def draws_of_calibrations(data: ReportData) -> Iterator[CalibrationDraws]:
    """Yield the draws for each ratio and evaluation text that at least two methods have at several seeds."""
    groups: dict[str, list[int]] = {}
    for number, record in enumerate(data.records):
        if record.cell.method != "dense":
            protocol = record.cell.protocol
            looked_at = [protocol.calibration_sequences, protocol.calibration_length]
            alike = [setup_of_study(record), *looked_at, record.cell.ratio, record.cell.ratio_of]
            groups.setdefault(json.dumps(alike), []).append(number)
    for numbers in groups.values():
        records = {number: data.records[number] for number in numbers}
        without = {n for n, record in records.items() if not is_calibrated(record, data.needs)}
        left_out = list(dict.fromkeys(records[n].cell.label for n in without))
        kept = {n: record for n, record in records.items() if n not in without}
        for text in texts_of_records(list(kept.values())):
            cells = _cells(kept, text)
            if sum(_seeds(draws) > 1 for draws in cells.values()) > 1:
                yield CalibrationDraws(text, records[numbers[0]].cell.ratio, cells, kept, left_out)


def is_calibrated(record: Record, needs: Mapping[str, str]) -> bool:
    """Say whether a cell varies by the draw of its calibration and by no random choice, as far as that is known."""
    stages = record.cell.stages
    return not any(stage.is_draw for stage in stages) and any(needs.get(stage.method) != "nothing" for stage in stages)


def _cells(records: Mapping[int, Record], text: str) -> dict[str, dict[Draw, int]]:
    """Return {method: {draw: place}} of the cells with a finite perplexity, the best method first."""
    places_by_method: dict[str, dict[Draw, int]] = {}
    logs: dict[str, list[float]] = {}
    every = list(records.values())
    for place, record in records.items():
        draw = (str(record.cell.protocol.calibration), record.cell.seed)
        name, perplexity = label_with_differences(record, every), _perplexity(record, text)
        places = places_by_method.setdefault(name, {})
        if draw not in places and math.isfinite(perplexity):
            places[draw] = place
            logs.setdefault(name, []).append(math.log(perplexity))
    return {
        method: dict(sorted(places_by_method[method].items()))
        for method in sorted(logs, key=lambda method: fmean(logs[method]))
    }


def _perplexity(record: Record, text: str) -> float:
    """Return the perplexity of a record on a text; infinity without one."""
    score = record.measured.text_scores.get(text)
    return score.perplexity if score else math.inf


def _seeds(draws: Mapping[Draw, int]) -> int:
    """Return the largest number of seeds that any text has."""
    several = [text for text, _ in draws]
    return max(map(several.count, several), default=0)


def _of_sources(study: CalibrationDraws, samples: Samples) -> Table:
    """Return the table of the standard deviation of each source, for one cell and for a difference."""
    every = [
        (method, text, study.log(place)) for method, draws in study.cells.items() for (text, _), place in draws.items()
    ]
    methods, where, logs = zip(*every, strict=True)
    of_cell = [*variance_components(logs, methods, where), _windows(study)]
    pairs = [(pair, text, study.log(b) - study.log(a)) for pair, (text, _), a, b in study.pairs_of_methods()]
    of_difference = [VarianceComponent(None, 0)] * len(SOURCES)
    if pairs:
        both, where, differences = zip(*pairs, strict=True)
        of_difference[1:] = *variance_components(differences, both, where)[1:], _windows_of_differences(study, samples)
    rows = []
    for source, component, apart in zip(SOURCES, of_cell, of_difference, strict=True):
        freedom = (
            TableCell(f"{component.freedom:,}", value=component.freedom)
            if component.variance is not None
            else TableCell()
        )
        cells = [*_spread(component.deviation), freedom, *_spread_of_difference(apart.deviation)]
        rows.append(Row(source, "", study.ratio, tuple(cells), ratio_of=study.ratio_of))
    seed, windows = (component.deviation for component in of_difference[-2:])
    if seed is not None and windows is not None:
        cells = [TableCell(), TableCell(), TableCell(), *_spread_of_difference(math.hypot(seed, windows))]
        rows.append(Row(SEED_AND_WINDOWS, "", study.ratio, tuple(cells), ratio_of=study.ratio_of))
    flags = [*_left_out(study), *_below_zero(of_cell, "of one cell"), *_below_zero(of_difference, "of a difference")]
    table = _table(study, "seeds", SPREADS, rows, ABOUT)
    return replace(table, head="source", notes=tuple(legend.describe_flags(flags)))


def _below_zero(components: Sequence[VarianceComponent], of: str) -> Iterator[FlaggedCell]:
    """Yield the flags of the sources whose variance is estimated below zero; `of` says what varies."""
    for source, component in zip(SOURCES, components, strict=True):
        if component.variance is not None and component.variance < 0:
            yield FlaggedCell(legend.BELOW_ZERO, source, {"of": of})


def _windows(study: CalibrationDraws) -> VarianceComponent:
    """Return the mean variance of a cell over its windows, from Student's interval of its perplexity."""
    variances, freedom = [], 0
    for place in (place for draws in study.cells.values() for place in draws.values()):
        score = study.records[place].measured.text_scores[study.text]
        if score.perplexity_low and score.perplexity_high and score.windows > 1:
            wide = math.log(score.perplexity_high / score.perplexity_low) / 2
            freedom = degrees_of_freedom(score.windows, in_a_row=not score.drawn)
            variances.append((wide / float(stdtrit(freedom, 0.975))) ** 2)
    return VarianceComponent(fmean(variances) if variances else None, freedom)


def _windows_of_differences(study: CalibrationDraws, samples: Samples) -> VarianceComponent:
    """Return the mean variance over windows of the difference of two methods at one draw, from their samples."""
    name, variances, freedom = f"perplexity-{name_of_text(study.text)}", [], 0
    for _, _, a, b in study.pairs_of_methods():
        both = pair_whole(*(samples.of(place, name, "nll") for place in (a, b)))
        if both:
            windows = to_windows(both.first, study.records[a].measured.text_scores[study.text])
            _, stderr, freedom = ratio_stderr(both.differences, windows.tokens, in_a_row=windows.in_a_row)
            variances.append(stderr**2)
    return VarianceComponent(fmean(variances) if variances else None, freedom)


def _spread(deviation: float | None) -> tuple[TableCell, TableCell]:
    """Return the cells of a standard deviation of a logarithm, in nats and as a share of the perplexity."""
    if deviation is None:
        return TableCell(), TableCell()
    share = _share(deviation)
    return TableCell(format_significant(deviation), value=deviation), TableCell(
        format_significant(100 * share), value=share
    )


def _share(deviation: float) -> float:
    """Return a deviation of a logarithm as a share of the perplexity."""
    return exp_of_log(deviation) - 1 if deviation > 1 else math.expm1(deviation)


def _spread_of_difference(deviation: float | None) -> tuple[TableCell, TableCell, TableCell]:
    """Return the cells of a deviation of a difference, and of how far apart methods must be to be told apart."""
    if deviation is None:
        return TableCell(), TableCell(), TableCell()
    told_apart = _share(NORMAL_95 * deviation)
    return *_spread(deviation), TableCell(format_significant(100 * told_apart), value=told_apart)


def _left_out(study: CalibrationDraws) -> Iterator[FlaggedCell]:
    """Yield the flags of the cells and methods that are left out of a table."""
    in_study = {place for draws in study.cells.values() for place in draws.values()}
    for place, record in study.records.items():
        if place not in in_study:
            flag = legend.REPEATED if math.isfinite(_perplexity(record, study.text)) else legend.NO_PERPLEXITY
            calibration = f"{record.cell.protocol.calibration}, seed {record.cell.seed}"
            yield FlaggedCell(flag, record.cell.label, {"calibration": calibration})
    for label in study.left_out:
        yield FlaggedCell(legend.UNCALIBRATED, label)


def _of_methods(study: CalibrationDraws) -> Table:
    """Return the table of methods: the mean of each, the range of its draws, and their standard deviation."""
    rows, ahead = [], _draws_ahead(study)
    for method, draws in study.cells.items():
        logs = [study.log(place) for place in draws.values()]
        deviation = variance_components(logs, [text for text, _ in draws])[-1].deviation
        own = _windows(CalibrationDraws(study.text, study.ratio, {method: draws}, study.records, []))
        figures = [exp_of_log(value) for value in (fmean(logs), min(logs), max(logs))]
        cells = [
            *(TableCell(format_perplexity(figure, figures[0]), value=figure) for figure in figures),
            TableCell(str(len(logs)), value=len(logs)),
            *_spread(deviation),
            _spread(own.deviation)[1],
            ahead.get(method, TableCell()),
        ]
        name = study.records[next(iter(draws.values()))].cell.method
        rows.append(Row(method, name, study.ratio, tuple(cells), ratio_of=study.ratio_of))
    return _table(study, "seeds-methods", OF_METHODS, rows, ABOUT_METHODS)


def _draws_ahead(study: CalibrationDraws) -> dict[str, TableCell]:
    """Return {method: cell of the draws in which it has a lower perplexity than the next method}."""
    signs: dict[tuple[str, str], list[bool]] = {}
    for pair, _, a, b in study.pairs_of_methods():
        signs.setdefault(pair, []).append(study.log(a) < study.log(b))
    cells = {}
    for pair in pairwise(study.cells):
        if draws := signs.get(pair):
            count = draws.count(True)
            cells[pair[0]] = TableCell(f"{count} of {len(draws)}", value=count / len(draws))
    return cells


def _table(
    study: CalibrationDraws, name: str, columns: Sequence[Column], rows: Sequence[Row], about: Sequence[str]
) -> Table:
    """Return a table without notes; the title has the text, the ratio, and the number of cells."""
    records = list(study.records.values())
    ratio = "fixed" if study.ratio is None else f"{study.ratio:g}"
    calibrations = list(dict.fromkeys(text for draws in study.cells.values() for text, _ in draws))
    behind = [
        f"{sum(map(len, study.cells.values()))} cells of {len(study.cells)} methods",
        f"calibrated on {' and '.join(map(shorten_name, calibrations))}",
        names_of_seeds(seeds_of(records)),
    ]
    return Table(
        name=f"{name}-{Path(study.text).stem}-{ratio}",
        view="seeds",
        model=name_of_model(records[0]),
        title=f"{quantity_of_column(f'perplexity_{study.text}').heading}, {study.amount}: {', '.join(behind)}",
        conditions=tuple(protocol.conditions_of(records)),
        columns=tuple(columns),
        rows=tuple(rows),
        footnotes=(*legend.describe_columns(records, (), ("perplexity",), seeds=False), *about),
        protocol=tuple(protocol.protocol_of_records(records, ("perplexity",))),
    )


DRAWN = 100  # documents of each task in a draw, or half of all if that is less
FEWEST = 4  # methods; the standard deviation of fewer says next to nothing
COLUMNS = (
    Column("signal", "signal"),
    Column("noise", "noise of a draw"),
    Column("signal_to_noise", "signal / noise", better="higher"),
    Column("agreement", "tau of a draw", better="higher"),
    Column("needed", "documents needed", better="lower"),
)
ABOUT_SIGNAL = (
    "a row is of one figure of a task, or of the mean of all tasks' figures of one kind.",
    "signal: the standard deviation between methods, without what the draw of the documents adds; in points of % of an "
    "accuracy, in bits per byte of bpb.",
    "noise of a draw: the standard deviation that a draw of {} documents of each task adds to one method beside the "
    "others. What a document does to all methods is not in it.",
    "tau of a draw: Kendall's tau-b between the order of the methods on that many documents and on all that are left, "
    f"the mean of {DRAWS} draws.",
    "documents needed: of each task, for a difference as large as the signal to be found in 80 % of draws, two-sided "
    "at 5 %.",
    "all of it is of these methods at this ratio: the more alike methods are, the less any figure tells them apart.",
)


def tables_of_signal(data: ReportData) -> list[Table]:
    """Return a table for each ratio at which enough methods answered the same documents."""
    return [table for group in data.groups for table in _of_group(group, data.samples)]


def _of_group(group: TableGroup, samples: Samples) -> Iterator[Table]:
    measured = [
        at for at, record in enumerate(group.records) if record.status == "ok" and record.cell.method != "dense"
    ]
    figures, kept = _figures(group, measured, samples)
    if len(kept) < FEWEST or not figures:
        return
    drawn = min(DRAWN, min(values.shape[1] for values in figures.values()) // 2)
    of_each: dict[str, list[Figures]] = {"average": [], ANSWER_BPB: []}
    for (_, figure), values in figures.items():
        of_each[ANSWER_BPB if figure == ANSWER_BPB else "average"].append(values)
    rows = [
        _row(f"{task} {_word(figure)}", figure, separation_of([values], drawn))
        for (task, figure), values in figures.items()
    ]
    rows += [
        _row(_word(name), name, separation_of(several, drawn)) for name, several in of_each.items() if len(several) > 1
    ]
    lost = [group.label(at) for at in measured if at not in kept]
    table = table_of_group(
        "signal",
        group,
        COLUMNS,
        rows,
        (
            *legend.describe_columns(group.records, (), ("tasks",), seeds=False),
            *(sentence.format(drawn) for sentence in ABOUT_SIGNAL),
        ),
        measured=protocol.protocol_of_records(group.records, ("tasks",)),
        remarks=legend.describe_flags(FlaggedCell(legend.OTHER_DOCUMENTS, label) for label in lost),
    )
    title = f"{table.title}, {len(kept)} methods"
    where = f"methods, {table.model}, {words_of_amount(group.ratio, group.ratio_of) or 'ratio fixed'}"
    methods = (where, ", ".join(map(group.label, kept)))
    yield replace(table, head="figure", title=title, protocol=(methods, *table.protocol))


def _figures(
    group: TableGroup, places: Sequence[int], samples: Samples
) -> tuple[dict[tuple[str, str], Figures], list[int]]:
    """Return {(task, figure): array of methods by documents}, and the places of the methods.

    The first of several draws counts. Methods that answered other documents than most are left out.
    """
    number = {at: next(iter(group.models(at)[0].values())) for at in places}
    records = [group.records[at] for at in places]
    mains = {task: records[0].measured.task_scores[task].main for task in tasks_with_accuracies(records[:1])}
    columns = [*mains.items(), *((task, ANSWER_BPB) for task in tasks_with_answers(records[:1]))]
    kept, samples_by_name = list(places), dict[tuple[str, str], dict[int, Sample | None]]()
    for task, metric in columns:
        given = {at: samples.of(number[at], task, metric) for at in places}
        samples_by_name[task, metric] = given
        units = {at: sample.sorted_units for at, sample in given.items() if sample is not None}
        most = Counter(units.values()).most_common(1)
        kept = [at for at in kept if most and units.get(at) == most[0][0]]
    figures = {}
    for name, given in samples_by_name.items():
        pairs = [pair_whole(given[kept[0]], given[at]) for at in kept]
        values = [both.second.values for both in pairs if both is not None]
        if values:
            figures[name] = np.array(values)
    return figures, kept


def _word(figure: str) -> str:
    return "bpb" if figure == ANSWER_BPB else figure


def _row(label: str, figure: str, separation: Separation) -> Row:
    """Return the row of a figure: its signal, noise, agreement and needed documents; of an accuracy in points."""
    show, unit = (format_significant, 1.0) if figure == ANSWER_BPB else (format_percent, 100.0)
    cells = [
        TableCell(show(separation.signal), value=separation.signal * unit),
        TableCell(show(separation.noise), value=separation.noise * unit),
        TableCell(f"{separation.ratio:.2f}", value=separation.ratio),
        TableCell(),
        TableCell(),
    ]
    if not math.isnan(separation.agreement):
        cells[3] = TableCell(f"{separation.agreement:.2f}", value=separation.agreement)
    if not math.isinf(separation.needed):
        cells[4] = TableCell(f"{math.ceil(separation.needed):,}", value=separation.needed)
    return Row(label, "", None, tuple(cells))
