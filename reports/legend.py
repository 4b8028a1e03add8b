"""The legend of tables: flags of cells, and how to read columns.

A flag is a fixed word with a fixed sentence. A legend has a line for each flag that occurs, and in it each cell with
its values in brackets. The lines on how to read columns are fixed too. A line that is not needed is not written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from bench.plan.kinds import to_plain
from bench.records.comparability import find_dense_peer, find_unlike_versions, group_draws
from bench.records.frame import (
    MISS,
    SMALL,
    STAGES,
    find_misfits,
    keep_standard_tasks,
    misses_budget,
    texts_of_records,
)
from bench.records.quantities import find_quantity, format_value, list_quantities, quantity_of_column
from bench.records.record import Record
from bench.records.speed_results import PointTiming, Speed
from bench.regression.contrasts import LEVEL
from methods.counted import QUANTITIES
from reports.groups import label_with_differences, seeds_of, suffixes_of_draws
from reports.protocol import KINDS, group_by_calibration

REASON = 300  # the longest reason that is shown, in characters; the record holds all of it


@dataclass(frozen=True)
class Flag:
    """A fixed word for a doubt about a cell.

    sentence  its meaning
    values    a template of the values that stand in brackets behind a cell; empty if there are none
    mark      the sign behind the values that are in doubt; empty if there is none
    """

    word: str
    sentence: str
    values: str = ""
    mark: str = ""

    @property
    def head(self) -> str:
        """Return the beginning of its line in a legend: '* missed'."""
        return f"{self.mark} {self.word}".strip().replace("_", " ")


@dataclass(frozen=True)
class FlaggedCell:
    """A flag of a cell, with the cell's name in its table and the values for the brackets."""

    flag: Flag
    name: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def brackets(self) -> str:
        """Return the values in brackets with a space in front; empty without any."""
        values = self.flag.values.format(**self.values)
        return f" [{values}]" if values else ""


FAILED = Flag("failed", "The cell has no figures.", "{status}: {reason}")
MISSED = Flag("missed", "The model misses its budget by more than 0.5 % of the dense model.", "{miss}", mark="*")
MISFIT = Flag(
    "misfit",
    "A fit does not hold on calibration sequences that it has not seen: its error there is far above that of the fit.",
    "{held_out:.2g} of the squared states of {tokens} {where}, {fitted:.2g} where it was fitted{more}",
)
ENDED_EARLY = Flag(
    "ended_early",
    "A limit of minutes ended the search before its last generation; a faster machine may get further.",
    "{generations} of {planned} generations{after}",
)
LATENCY_OFF = Flag(
    "latency_off",
    "The milliseconds that were timed contradict the table of latencies that the budget is counted by.",
    "{stays} of a token by the table, timed {timed}",
)
NOT_TIMED = Flag("not_timed", "A timing has failed, so that its speed is missing.", "{failure}")
ALONE = Flag(
    "alone",
    "The dense model had no room in memory, so that there is no speed-up; 'by work' is what the removed work alone "
    "would bring.",
    "{points}",
)
OF_POINTS = {  # of timed points, see bench.records.speed_results
    word: Flag(word, sentence, "{points}", mark="!")
    for word, sentence in {
        "noisy": "Single calls of a timing vary much; ± is their standard deviation as a share of their mean.",
        "not_warm": "The calls before the first that counts had not become steady.",
        "clocks_disagree": "Two clocks disagree on the time of the calls.",
        "processes_disagree": "Processes that read both models anew disagree on how many times as fast the model is.",
        "slowed": "Heat or power held the GPU's clocks down.",
        "launch_bound": "The host launches kernels more slowly than the GPU runs them; captured steps show that.",
        "low_bandwidth": "Less than 40 % of the GPU's bandwidth and of its matrix rate is used.",
        "low_matrix_rate": "Less than 40 % of the GPU's matrix rate is used: launches or small matrices take the time.",
        "in_blocks": "Both models do not fit into memory together, so that one was timed after the other.",
    }.items()
}
OF_MACHINE = {  # of the machine that timed
    "busy": Flag(
        "busy", "Other work ran during the timing.", "{other_cores:.1f} cores taken, {stolen_cores:.1f} withheld"
    ),
    "shared_gpu": Flag("shared_gpu", "Other processes used the GPU during the timing.", "{other_gpu_processes}"),
    "slowed": Flag(
        "slowed_machine", "Heat, power or a limit of processor time slowed the machine down during the timing."
    ),
}
OTHER_VERSIONS = Flag(
    "other_versions", "The cell was measured with other versions of packages than the dense model.", "{versions}"
)
SEEDS_DISAGREE = Flag(
    "seeds_disagree", "The seeds disagree on which of the two is better, so that they tie.", "{quantity}{where}"
)
CLIFF = Flag(
    "cliff",
    "The perplexity grows at least tenfold in one step of the ratio, of which the first is named.",
    "{quantity} from {lower} to {higher}: {ends}",
)
ORDERS_DISAGREE = Flag(
    "orders_disagree",
    "The method with the highest average accuracy is in the worse half by perplexity.",
    "{place} of {count}",
)
NOT_ABOVE_RANDOM = Flag(
    "not_above_random", "By perplexity the method is not shown to be better than every draw of drop-random.", "{where}"
)
WORSE_THAN_RANDOM = Flag(
    "worse_than_random", "By perplexity the method is shown to be worse than every draw of drop-random.", "{where}"
)
UNTESTED = Flag(
    "untested",
    "The row has no paired test: it is a mean of draws, or shares no samples with what it is compared with.",
    "{columns}",
)
NO_REFERENCE = Flag("no_reference", "There is no single model to test the rows against.", "{reason}")
DIFFERS = Flag(
    "differs",
    f"The value differs from that of the reference: p < {LEVEL} in paired tests, adjusted by Holm for the methods of a "
    "column.",
    "{tests}",
    mark="†",
)
GUESS = Flag("guess", "The accuracy is not shown to be above that of guesses.", "{chance} %", mark="‡")
DRAWS = Flag(
    "draws",
    "The row is a mean of draws, of a perplexity by its logarithm, of peak memory the highest; ± and [low, high] are "
    "their standard deviation.",
    "{draws}",
)
DRAWS_OF_SEEDS = Flag("draws_of_seeds", "The row is a mean of several draws at a seed, over several seeds.", "{draws}")
ONE_TIMED = Flag("one_timed", "The speed is that of one draw, since one draw alone is timed.")
TIMED_ELSEWHERE = Flag(
    "timed_elsewhere", "The draw that is timed is not among these cells, so that the speed is missing."
)
BELOW_ZERO = Flag(
    "below_zero", "The variance that a source adds is estimated below zero, and its deviation is shown as 0.", "{of}"
)
NO_PERPLEXITY = Flag("no_perplexity", "The cell has no finite perplexity, so that it is left out.", "{calibration}")
REPEATED = Flag(
    "repeated", "An earlier cell has the same method and calibration, so that the cell is left out.", "{calibration}"
)
UNCALIBRATED = Flag("uncalibrated", "No calibration decides what the method removes, so that it is left out.")
OTHER_DOCUMENTS = Flag(
    "other_documents", "No samples of the method are of the documents of the others, so that it is left out."
)
NO_MEAN = Flag("no_mean", "The method has no figure on some model, so that it has no mean and no place.", "{reasons}")
MORE_CELLS = Flag(
    "more_cells", "The model has more cells under other conditions; those with the most figures stand here."
)
FLAGS = (  # the most important first
    *(FAILED, MISSED, MISFIT, ENDED_EARLY, LATENCY_OFF, NOT_TIMED, ALONE),
    *OF_POINTS.values(),
    *OF_MACHINE.values(),
    OTHER_VERSIONS,
    *(SEEDS_DISAGREE, CLIFF, ORDERS_DISAGREE, WORSE_THAN_RANDOM, NOT_ABOVE_RANDOM),
    *(UNTESTED, NO_REFERENCE, DIFFERS, GUESS),
    *(NO_MEAN, MORE_CELLS, NO_PERPLEXITY, REPEATED, UNCALIBRATED, OTHER_DOCUMENTS, BELOW_ZERO),
    *(DRAWS, DRAWS_OF_SEEDS, ONE_TIMED, TIMED_ELSEWHERE),
)


def describe_flags(flagged: Iterable[FlaggedCell]) -> list[str]:
    """Return a line for each flag that occurs, in the order of FLAGS: its sentence, and its cells with their values.

    Cells with the same values share the brackets. Labels such as 'laco, healed' are kept apart by semicolons.
    """
    cells: dict[Flag, dict[str, list[str]]] = {}
    for flag, brackets, name in dict.fromkeys((cell.flag, cell.brackets, cell.name) for cell in flagged):
        cells.setdefault(flag, {}).setdefault(brackets, []).append(name)
    return [_line(flag, cells[flag]) for flag in FLAGS if flag in cells]


def _line(flag: Flag, names_by_brackets: Mapping[str, Sequence[str]]) -> str:
    every = chain.from_iterable(names_by_brackets.values())
    comma = "; " if any(", " in name for name in every) else ", "
    cells = comma.join(f"{comma.join(names)}{brackets}" for brackets, names in names_by_brackets.items())
    return f"{flag.head}: {flag.sentence.removesuffix('.')}: {cells}."


def flags_of_cell(record: Record, name: str, stages: Collection[str] = ()) -> Iterator[FlaggedCell]:
    """Yield each flag of a cell. `stages` are the stages of generation whose speed a table shows."""
    if record.status != "ok":
        values = {"status": words_of_status(record), "reason": reason_of_error(record.error or "")}
        yield FlaggedCell(FAILED, name, values)
    elif misses_budget(record):
        yield FlaggedCell(MISSED, name, {"miss": words_of_miss(record)})
    yield from _misfits(record, name)
    yield from _ended_early(record, name)
    yield from _of_latency(record, name)
    if stages:
        yield from flags_of_speed(record, name, stages)


def words_of_miss(record: Record) -> str:
    """Return 'requested 30.0 %, budget 28.9 %, achieved 28.1 %', or the same for the quantity of a budget."""
    show, measured, of = quantity_of_column("ratio").show, record.measured, record.cell.ratio_of
    requested = record.cell.ratio
    if budget := measured.budget:
        request = "" if requested is None else f"requested {show(1 - requested)}, "
        return f"{request}budget {show(budget.share)} of {QUANTITIES[of]}, achieved {show(budget.stays)}"
    counted = "" if of == "all" else f" of the {of}"
    request = "" if requested is None else f"requested {show(requested)}{counted}, "
    return f"{request}budget {show(measured.ratio_budget or 0.0)}, achieved {show(measured.ratio or 0.0)}"


def _misfits(record: Record, name: str) -> Iterator[FlaggedCell]:
    """Yield the flag of the worst of the fits that fail on held-out calibration sequences; none if all hold."""
    if every := list(find_misfits(record)):
        where, tokens, fitted, held_out = max(every, key=lambda misfit: misfit[3] / max(misfit[2], SMALL))
        more = f"; {len(every) - 1} more" if len(every) > 1 else ""
        values = {"where": where, "tokens": tokens, "fitted": fitted, "held_out": held_out, "more": more}
        yield FlaggedCell(MISFIT, name, values)


def _ended_early(record: Record, name: str) -> Iterator[FlaggedCell]:
    """Yield the flag of a search whose minutes were over before its last generation."""
    generations, planned = (record.decisions.get(key) for key in ("generations", "of_generations"))
    if generations is not None and planned is not None and generations < planned:
        minutes = record.cell.parameters.get("minutes")
        after = f" in {minutes:g} min" if minutes else ""
        yield FlaggedCell(ENDED_EARLY, name, {"generations": generations, "planned": planned, "after": after})


def _of_latency(record: Record, name: str) -> Iterator[FlaggedCell]:
    """Yield the flags of the table of a budget of latency, and of timings that contradict it."""
    budget = record.measured.budget
    if not budget or budget.of != "latency" or record.cell.latency is None:
        return
    about = record.cell.latency.about
    yield from flags_of_latencies(about, name)
    show, stays = quantity_of_column("ratio").show, budget.stays
    for point in record.measured.timed_points:
        is_of_table = point.kind == "decode" and (point.context, point.batch) == (about["depth"], 1)
        if is_of_table and point.interval is not None:
            middle, high, low = (1 / value for value in point.interval)
            if not low - MISS <= stays <= high + MISS:
                timed = f"{show(middle)}, 95 % interval {show(low)} to {show(high)}"
                yield FlaggedCell(LATENCY_OFF, name, {"stays": show(stays), "timed": timed})


def flags_of_latencies(about: Mapping[str, Any], name: str) -> Iterator[FlaggedCell]:
    """Yield the flags of a table of latencies, by its own account of the measurement; `name` is whose table it is."""
    copies = about.get("copies", ())
    words = [word for copy in copies for word in copy.get("flags", ())]
    for word in dict.fromkeys(words):
        points = f"{words.count(word)} of {len(copies)} copies of the table of latencies"
        yield FlaggedCell(OF_POINTS[word], name, {"points": points})
    machine = about.get("machine", {})
    for word in machine.get("flags", ()):
        yield FlaggedCell(OF_MACHINE[word], f"{name} (table of latencies)", machine)


def flags_of_speed(record: Record, name: str, stages: Collection[str] = tuple(STAGES)) -> Iterator[FlaggedCell]:
    """Yield why the speed of a cell at the given stages of generation is missing or in doubt."""
    speed = record.measured.speed or Speed()
    points = [point for point in record.measured.timed_points if point.kind in stages]
    failures = [speed.failed] if speed.failed is not None else []
    failures += dict.fromkeys(point.failed for point in points if point.failed is not None)
    for failure in failures:
        yield FlaggedCell(NOT_TIMED, name, {"failure": failure})
    if alone := [f"{point.kind} at batch {point.batch}" for point in points if _is_alone(point)]:
        yield FlaggedCell(ALONE, name, {"points": ", ".join(dict.fromkeys(alone))})
    for word, flag in OF_POINTS.items():
        if flagged := [_point(point, word) for point in points if word in (point.flags or ())]:
            yield FlaggedCell(flag, name, {"points": ", ".join(dict.fromkeys(flagged))})
    machine = to_plain(speed.machine) or {}
    for word in machine.get("flags", ()):
        yield FlaggedCell(OF_MACHINE[word], name, machine)


def _is_alone(point: PointTiming) -> bool:
    """Say whether a point has a time of the pruned model alone."""
    return "dense" in (point.out_of_memory or ()) and point.pruned_ms is not None


def _point(point: PointTiming, word: str) -> str:
    """Return 'decode at batch 8'; for a noisy timing with the variation of the less steady model."""
    widest = max(point.dense_cv or 0.0, point.pruned_cv or 0.0)
    beside = f" (± {quantity_of_column('kept').show(widest)})" if word == "noisy" else ""
    mode = f", {point.mode}" if point.mode is not None and point.kind == "decode" else ""
    return f"{point.kind} at batch {point.batch}{mode}{beside}"


def flags_of_records(
    records: Sequence[Record], stages: Collection[str] = (), beside: Sequence[Record] = (), where: str = ""
) -> Iterator[FlaggedCell]:
    """Yield the flags of each cell, named with its seed and draw if its label alone is not enough.

    stages  the stages of generation whose speed the table shows; flags of their speed are included
    beside  the records that a cell's name must tell it from; empty for `records`
    where   the words behind each name, such as " at 0.2"
    """
    for record, which in zip(records, suffixes_of_draws(records), strict=True):
        name = label_with_differences(record, beside or records) + which + where
        yield from flags_of_cell(record, name, stages)
        if versions := differences_of_versions(record, records):
            yield FlaggedCell(OTHER_VERSIONS, name, {"versions": versions})


def differences_of_versions(record: Record, records: Sequence[Record]) -> str:
    """Return the versions of a cell that are not its dense model's: 'torch 2.13.0, not 2.12.0'; empty without any."""
    versions = find_unlike_versions(record, find_dense_peer(record, records))
    return ", ".join(f"{package} {its}, not {dense}" for package, (its, dense) in versions.items())


def words_of_status(record: Record) -> str:
    """Return the status of a record in words: 'out of memory'."""
    return record.status.replace("_", " ")


def reason_of_error(error: str) -> str:
    """Return the message of an error, which stands above its traceback, in one line of at most REASON characters."""
    message, _, _ = error.partition("\nTraceback (most recent call last):")
    text = re.sub(r"\s+", " ", message).strip()
    return text if len(text) <= REASON else f"{text[:REASON].rstrip()} ... (the record has the rest)"


Row = Mapping[str, Any]
ONE_SEED = "Intervals and tests do not include the draw of the calibration text; with --seed 0,1,2 they do."
MEANS = (
    "Values are means over the seeds, of a perplexity by its logarithm, of peak memory the highest; ± and [low, high] "
    "include the draw of the calibration text."
)
READING = {  # how to read columns and marks, the most important first
    "no_dense": "kept is missing where no dense model was measured under the same conditions.",
    "one_seed": ONE_SEED,
    "several_seeds": MEANS,
    "half": "± beside a perplexity is half its 95 % interval.",
    "ends": "[low, high] beside a perplexity is its 95 % interval, where the sides differ in length.",
    "in_a_row": "Windows one behind the other are alike, so that their intervals are wider than of drawn ones.",
    "accuracy": "Accuracies are in %; ± is one standard error; the average weighs every task alike.",
    "standard": "Means over tasks are of those that lm-eval defines; the suite's own, as those by skill, stand apart.",
    "kept": "kept is the average as a share of the dense model's.",
    "speed": "prefill and decode are times as fast as the dense model; ± or [low, high] is the 95 % interval.",
    "then": "A label with 'then' is of a model that was pruned further; its ratio is of the dense model in total.",
}


def describe_columns(
    records: Sequence[Record], rows: Sequence[Row], about: Collection[str] = KINDS, *, seeds: bool = True
) -> list[str]:
    """Return the sentences of READING and of quantities that hold for columns, and lines for rows of draws.

    rows   the values of the records, see bench.records.frame
    about  the kinds of columns, from reports.protocol.KINDS
    seeds  whether values are means over seeds, so that a sentence says what their intervals include
    """
    columns = {name for row in rows for name, value in row.items() if value is not None}
    has_tasks, speeds = "tasks" in about, {f"{stage}_speed" for stage in STAGES}
    occurs = {
        "no_dense": has_tasks and any(row.get("average") is not None and row.get("kept") is None for row in rows),
        "accuracy": has_tasks and any(name.startswith(("task_", "score_")) for name in columns),
        "standard": has_tasks and any(map(_has_tasks_apart, records)),
        "kept": has_tasks and "kept" in columns,
        "speed": "speed" in about and not speeds.isdisjoint(columns),
        "then": any(record.cell.earlier for record in records),
    }
    words = {word for word, does_occur in occurs.items() if does_occur}
    if seeds and not {"perplexity", "positions", "kl", "tasks"}.isdisjoint(about):
        words |= words_of_seeds(records)
    if "perplexity" in about:
        words |= _words_of_perplexity(records, rows)
    lines = [sentence for word, sentence in READING.items() if word in words]
    return [
        *lines,
        *describe_quantities(columns, {*about} - {"speed"}),
        *describe_flags(_flags_of_draws(records, seeds=seeds)),
    ]


def _has_tasks_apart(record: Record) -> bool:
    """Say whether the means over the tasks of a record leave tasks out."""
    tasks = list(record.measured.task_scores)
    return keep_standard_tasks(tasks) != tasks


def describe_quantities(columns: Collection[str], about: Collection[str]) -> Iterator[str]:
    """Yield the footnotes of the quantities of the given kinds that have a column."""
    quantities = {find_quantity(name) for name in columns}
    for quantity in list_quantities():
        if quantity.kind in about and quantity in quantities and quantity.footnote:
            yield quantity.footnote


def words_of_seeds(records: Sequence[Record]) -> set[str]:
    """Return the words in READING on the seeds of pruned cells, for each calibration."""
    groups = group_by_calibration(records)
    return {"several_seeds" if len(seeds_of(group)) > 1 else "one_seed" for group in groups}


def _words_of_perplexity(records: Sequence[Record], rows: Sequence[Row]) -> set[str]:
    """Return the words in READING on the intervals of perplexities."""
    cells = [format_value(row, f"perplexity_{text}") for row in rows for text in texts_of_records(records)]
    results = [result for record in records for result in record.measured.text_scores.values()]
    occurs = {
        "half": any("±" in cell for cell in cells),
        "ends": any("[" in cell for cell in cells),
        "in_a_row": any(result.windows > 1 and not result.drawn for result in results),
    }
    return {word for word, does_occur in occurs.items() if does_occur}


def _flags_of_draws(records: Sequence[Record], *, seeds: bool) -> Iterator[FlaggedCell]:
    """Yield the flags of rows that are means of several random choices."""
    for places in group_draws(records, seeds=seeds):
        draws = [records[place] for place in places]
        name, count = draws[0].cell.label, len(seeds_of(draws))
        if len(draws) == count:
            continue
        over = f" over {count} seeds" if count > 1 else ""
        yield FlaggedCell(DRAWS if count == 1 else DRAWS_OF_SEEDS, name, {"draws": f"{len(draws)} draws{over}"})
        timed = [draw.measured.speed is not None for draw in draws]
        if timed[0] and not all(timed):
            yield FlaggedCell(ONE_TIMED, name)
        elif not timed[0] and draws[0].cell.protocol.speed_rounds > 0:
            yield FlaggedCell(TIMED_ELSEWHERE, name)
