"""The lines under a table: flags of cells, their healing, how to read columns, and how speed was measured.

A flag is a fixed word with a fixed sentence. A legend has a line for each flag that occurs, and in it each cell with
its values in brackets. A line that is not true or not needed is not written. If the cells of a run do not agree, each
version is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from bench.plan.cell import base_of_ratio, label_of_cell, words_of_amount
from bench.records.comparability import find_dense_peer, find_unlike_versions, group_draws
from bench.records.frame import MISS, SMALL, STAGES, find_misfits, main_timing, misses_budget, texts_of_records
from bench.records.measured import is_accuracy
from bench.records.quantities import find_quantity, format_value, list_quantities, quantity_of_column
from bench.records.quantity import format_bytes, shorten_name
from bench.records.record import Record, requested_ratio
from methods.counted import QUANTITIES
from reports.groups import (
    Cell,
    label_with_differences,
    names_of_seeds,
    recipe_of_cell,
    seeds_of,
    suffixes_of_draws,
    words_of_recipe_differences,
)


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
    "The perplexity grows at least tenfold in one step of the ratio.",
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
FLAGS = (  # the most important first
    *(FAILED, MISSED, MISFIT, ENDED_EARLY, LATENCY_OFF, NOT_TIMED, ALONE),
    *OF_POINTS.values(),
    *OF_MACHINE.values(),
    OTHER_VERSIONS,
    *(SEEDS_DISAGREE, CLIFF, ORDERS_DISAGREE, WORSE_THAN_RANDOM, NOT_ABOVE_RANDOM),
)


def describe_flags(flagged: Iterable[FlaggedCell]) -> list[str]:
    """Return a line for each flag that occurs, in the order of FLAGS: its sentence, and its cells with their values.

    Cells with the same values share the brackets.
    """
    cells: dict[Flag, dict[str, list[str]]] = {}
    for flag, brackets, name in dict.fromkeys((cell.flag, cell.brackets, cell.name) for cell in flagged):
        cells.setdefault(flag, {}).setdefault(brackets, []).append(name)
    return [_line(flag, cells[flag]) for flag in FLAGS if flag in cells]


def _line(flag: Flag, names_by_brackets: Mapping[str, Sequence[str]]) -> str:
    cells = ", ".join(f"{', '.join(names)}{brackets}" for brackets, names in names_by_brackets.items())
    return f"{flag.head}: {flag.sentence.removesuffix('.')}: {cells}."


def flags_of_cell(record: Record, name: str, stages: Collection[str] = ()) -> Iterator[FlaggedCell]:
    """Yield each flag of a cell. `stages` are the stages of generation whose speed a table shows."""
    if record.status != "ok":
        values = {"status": words_of_status(record), "reason": reason_of_error(record.error or "")}
        yield FlaggedCell(FAILED, name, values)
    elif misses_budget(record):
        yield FlaggedCell(MISSED, name, {"miss": _miss(record)})
    yield from _misfits(record, name)
    yield from _ended_early(record, name)
    yield from _of_latency(record, name)
    if stages:
        yield from flags_of_speed(record, name, stages)


def _miss(record: Record) -> str:
    """Return 'requested 30.0 %, budget 28.9 %, achieved 28.1 %', or the same for the quantity of a budget."""
    show, measured, of = quantity_of_column("ratio").show, record.measured, base_of_ratio(record.cell)
    requested = requested_ratio(record)
    if budget := measured.get("budget"):
        wanted = "" if requested is None else f"requested {show(1 - requested)}, "
        return f"{wanted}budget {show(budget['share'])} of {QUANTITIES[of]}, achieved {show(budget['stays'])}"
    counted = "" if of == "all" else f" of the {of}"
    wanted = "" if requested is None else f"requested {show(requested)}{counted}, "
    return f"{wanted}budget {show(measured['ratio_budget'])}, achieved {show(measured['ratio'])}"


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
        minutes = record.cell["parameters"].get("minutes")
        after = f" in {minutes:g} min" if minutes else ""
        yield FlaggedCell(ENDED_EARLY, name, {"generations": generations, "planned": planned, "after": after})


def _of_latency(record: Record, name: str) -> Iterator[FlaggedCell]:
    """Yield the flags of the table of a budget of latency, and of timings that contradict it."""
    budget = record.measured.get("budget")
    if not budget or budget["of"] != "latency":
        return
    about = record.cell["latency"]["about"]
    yield from flags_of_latencies(about, name)
    show, stays = quantity_of_column("ratio").show, budget["stays"]
    for point in record.measured.get("speed", {}).get("points", []):
        is_of_table = point["kind"] == "decode" and (point["context"], point["batch"]) == (about["depth"], 1)
        if is_of_table and "speedup" in point:
            low, high = 1 / point["speedup_high"], 1 / point["speedup_low"]
            if not low - MISS <= stays <= high + MISS:
                timed = f"{show(1 / point['speedup'])}, 95 % interval {show(low)} to {show(high)}"
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
    speed = record.measured.get("speed", {})
    points = [point for point in speed.get("points", []) if point["kind"] in stages]
    failures = [speed["failed"]] if "failed" in speed else []
    failures += dict.fromkeys(point["failed"] for point in points if "failed" in point)
    for failure in failures:
        yield FlaggedCell(NOT_TIMED, name, {"failure": failure})
    if alone := [f"{point['kind']} at batch {point['batch']}" for point in points if _is_alone(point)]:
        yield FlaggedCell(ALONE, name, {"points": ", ".join(dict.fromkeys(alone))})
    for word, flag in OF_POINTS.items():
        if flagged := [_point(point, word) for point in points if word in point.get("flags", ())]:
            yield FlaggedCell(flag, name, {"points": ", ".join(dict.fromkeys(flagged))})
    machine = speed.get("machine", {})
    for word in machine.get("flags", ()):
        yield FlaggedCell(OF_MACHINE[word], name, machine)


def _is_alone(point: Mapping[str, Any]) -> bool:
    """Say whether a point has a time of the pruned model alone."""
    return "dense" in point.get("out_of_memory", ()) and "pruned_ms" in point


def _point(point: Mapping[str, Any], word: str) -> str:
    """Return 'decode at batch 8'; for a noisy timing with the variation of the less steady model."""
    widest = max((value for name, value in point.items() if name.endswith("_cv")), default=0.0)
    beside = f" (± {quantity_of_column('kept').show(widest)})" if word == "noisy" else ""
    mode = f", {point['mode']}" if "mode" in point and point["kind"] == "decode" else ""
    return f"{point['kind']} at batch {point['batch']}{mode}{beside}"


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


KINDS = {"lora": "LoRA of rank {rank}", "full": "all parameters"}
LOSSES = {"next-token": "for the next token", "kl": "towards the dense model's predictions"}


def notes_of_healing(cells: Iterable[Cell]) -> list[str]:
    """Return sentences on the recipes by which cells were healed, and on chains of cells; each sentence once."""
    everything = list(cells)
    notes = []
    for cell in everything:
        if recipe := recipe_of_cell(cell):
            which = words_of_recipe_differences(cell, everything)
            notes.append(f"healed{which}: {words_of_recipe(recipe)}{'' if which else '; the same for every method'}.")
    if any(cell.get("earlier") for cell in everything):
        notes.append("then: pruned further, from the model in front of it; ratios are of the dense model in total.")
    return list(dict.fromkeys(notes))


def words_of_recipe(recipe: Cell) -> str:
    """Return a recipe in words: 'LoRA of rank 8, for the next token, 4,096 tokens of wiki, batches of 8 x 256, ...'."""
    passes = "" if recipe["passes"] == 1 else f", {recipe['passes']:,} passes"
    return (
        f"{KINDS[recipe['kind']].format(**recipe)}, {LOSSES[recipe['loss']]}, {recipe['tokens']:,} tokens of "
        f"{shorten_name(recipe['text'])}{passes}, batches of {recipe['batch']} x {recipe['length']}, learning "
        "rate up to "
        f"{recipe['learning_rate']:g}, seed {recipe['seed']}"
    )


Row = Mapping[str, Any]
COMPARED = {  # columns that compare with the dense model, and the column that they compare
    "kept": "average",
}
CALIBRATION = ("calibration", "calibration_sequences", "calibration_length")  # fields of the protocol
EVERYTHING = ("perplexity", "kl", "checks", "tasks", "speed")  # kinds of columns that `describe_columns` explains
BOS = {"every window": "each begins with BOS", "none": "no BOS"}
ONE_SEED = "one seed: intervals and tests do not include the draw of the calibration text; with --seed 0,1,2 they do."
MEANS = (
    "several seeds: means over them, of a perplexity by its logarithm, of peak memory the highest; ± and [low, high] "
    "include the draw of the calibration: Student's interval over the seeds and the cells' own one are added in "
    "squares, as are standard errors."
)
REASON = 300  # the longest reason that is shown, in characters; the record holds all of it


def conditions_of(records: Sequence[Record]) -> list[str]:
    """Return the conditions of rows: device, dtype and threads; then the profile. Each has every value that occurs."""
    threads = {
        record.environment["threads"]
        for record in records
        if record.cell["device"] == "cpu" and record.environment.get("threads") is not None
    }
    where = [
        _either(sorted(map(_device, records))) + _processors(records),
        _either(sorted(record.cell["dtype"] for record in records)),
        *([f"{_either(sorted(threads))} {'thread' if threads == {1} else 'threads'}"] if threads else []),
    ]
    return [", ".join(where), _either(sorted(record.cell["protocol"]["profile"] for record in records))]


def _device(record: Record) -> str:
    return str(record.environment.get("gpu") or record.cell["device"])


def _processors(records: Sequence[Record]) -> str:
    """Return the processors of cells on a CPU if there are several, in brackets; otherwise nothing."""
    names = [record.environment.get("cpu") for record in records if record.cell["device"] == "cpu"]
    several = sorted({str(name) for name in names if name})
    return f" ({_either(several)})" if len(several) > 1 else ""


def _either(values: Iterable[Any]) -> str:
    """Return each value once: 'H100 or H200'."""
    return " or ".join(dict.fromkeys(map(str, values)))


def words_of_ratio(records: Sequence[Record]) -> str:
    """Return the title of a ratio: 'ratio 0.3: 11 of 30 layers, 95.6 M parameters'.

    For a budget it is 'budget macs=0.8: 78.9 % of the MACs per token, in whole layers'. A method whose parameters
    decide has a sentence that says so; the dense model alone has an empty title.
    """
    pruned = [record for record in records if record.cell["method"] != "dense"]
    if not pruned:
        return ""
    requested = requested_ratio(pruned[0])
    if requested is None:
        return "ratio fixed by the method's parameters"
    budgets = {_budget(record) for record in pruned if not {"ratio_budget", "budget"}.isdisjoint(record.measured)}
    amount = words_of_amount(requested, base_of_ratio(pruned[0].cell))
    return amount + (f": {budgets.pop()}" if len(budgets) == 1 else "")


def _budget(record: Record) -> str:
    """Return the budget in parameters; in layers too if the request was rounded to whole layers."""
    measured = record.measured
    if budget := measured.get("budget"):
        rounded = ", in whole layers" if record.cell["match"] == "layers" else ""
        return f"{quantity_of_column('ratio').show(budget['share'])} of {QUANTITIES[budget['of']]}{rounded}"
    removed = measured["ratio_budget"] * measured["dense_parameters"]
    left = f"{quantity_of_column('parameters').show(measured['dense_parameters'] - removed)} parameters"
    total = measured.get("dense_layers")
    if record.cell["match"] == "exact" or not total:
        return left
    layers = removed / (measured["dense_parameters_without_embeddings"] / total)
    whole = abs(layers - round(layers)) < 0.05  # layers of one model can differ; then they are not counted
    return f"{round(layers)} of {total} layers, {left}" if whole else left


def words_of_status(record: Record) -> str:
    """Return the status of a record in words: 'out of memory'."""
    return record.status.replace("_", " ")


def reason_of_error(error: str) -> str:
    """Return the message of an error, which stands above its traceback, in one line of at most REASON characters."""
    message, _, _ = error.partition("\nTraceback (most recent call last):")
    text = re.sub(r"\s+", " ", message).strip()
    return text if len(text) <= REASON else f"{text[:REASON].rstrip()} ... (the record has the rest)"


def describe_columns(
    records: Sequence[Record],
    rows: Sequence[Row],
    about: Collection[str] = EVERYTHING,
    *,
    calibration: bool = True,
    seeds: bool = True,
) -> list[str]:
    """Return sentences on how to read columns, and how their values were measured; each sentence once.

    rows         the values of the records, see bench.records.frame
    about        the kinds of columns, from EVERYTHING
    calibration  whether all cells share a calibration, so that a sentence names it
    seeds        whether values are means over seeds, so that a sentence says what their intervals include
    """
    measured = [record.measured for record in records]
    pruned = [record for record in records if record.cell["method"] != "dense"]
    kinds: dict[str, Iterable[str]] = {
        "perplexity": [
            *chain.from_iterable(map(_perplexity, measured)),
            *_perplexity_spread(records, rows),
            *describe_quantities("perplexity", rows),
        ],
        "kl": describe_quantities("kl", rows),
        "checks": describe_quantities("checks", rows),
        "tasks": [
            *chain.from_iterable(map(_tasks, measured)),
            *_accuracy_spread(rows),
            *describe_quantities("tasks", rows),
            *_kept(rows),
        ],
        "answers": describe_quantities("answers", rows),
        "speed": chain.from_iterable(map(describe_speed, records)),
    }
    calibrations = _calibrations(pruned)
    drawn = describe_seeds(records) if seeds else []
    sentences = [
        *chain.from_iterable(texts for kind, texts in kinds.items() if kind in about),
        *(_incomparable(rows) if "tasks" in about else ()),
        *(_calibration(several) for several in calibrations if calibration),
        *(sentence for sentence in drawn if not {"perplexity", "kl", "tasks"}.isdisjoint(about)),
        *notes_of_healing([record.cell for record in records]),
        *_draws(records, seeds=seeds),
    ]
    return list(dict.fromkeys(sentences))


def _perplexity(measured: dict[str, Any]) -> Iterator[str]:
    for text, result in measured.get("perplexity", {}).items():
        name, windows = quantity_of_column(f"perplexity_{text}").heading, result["windows"]
        yield (
            f"{name}: {windows:,} {_plural('window', windows)} of {result['window']:,} tokens, "
            f"{_placement_of_windows(result)}stride {result['stride']:,}, {BOS.get(result['bos'], result['bos'])}, "
            f"{result['tokens']:,} tokens scored"
            f"{', of every document of the text' if result.get('whole') else ''}."
        )


def _placement_of_windows(result: dict[str, Any]) -> str:
    """Return whether windows were drawn from the text or follow each other, with a comma; empty for a single window."""
    if result["windows"] == 1:
        return ""
    return "drawn from the text, " if result["drawn"] else "one behind the other, whose intervals are wider, "


def _perplexity_spread(records: Sequence[Record], rows: Sequence[Row]) -> Iterator[str]:
    """Yield the meaning of the interval behind a perplexity, for each form that occurs."""
    cells = [format_value(row, f"perplexity_{text}") for row in rows for text in texts_of_records(records)]
    if any("±" in cell for cell in cells):
        yield "± of a perplexity is half the 95 % interval."
    if any("[" in cell for cell in cells):
        yield "[low, high] of a perplexity is the 95 % interval, where its sides differ in length."


def describe_quantities(kind: str, rows: Sequence[Row]) -> Iterator[str]:
    """Yield the footnotes of the quantities of a kind that any row has a value of."""
    columns = {name for row in rows for name, value in row.items() if value is not None}
    quantities = {find_quantity(name) for name in columns}
    for quantity in list_quantities():
        if quantity.kind == kind and quantity in quantities and quantity.footnote:
            yield quantity.footnote


def _tasks(measured: dict[str, Any]) -> Iterator[str]:
    """Yield the metric, documents and shots of tasks; a value that most tasks share is written once."""
    results = {shorten_name(name): result for name, result in measured.get("tasks", {}).items()}
    for name, result in results.items():
        if not is_accuracy(result):
            yield f"{name}: {result['main']}, {_documents(result)}, {_shots(result)}; not in the average."
    results = {name: result for name, result in results.items() if is_accuracy(result)}
    if not results:
        return
    metrics = _grouped(results, lambda result: str(result["main"]))
    documents = _grouped(results, _documents)
    shots = _grouped(results, _shots)
    yield f"accuracies in %, per task: {metrics}; {documents}; {shots}."


def _accuracy_spread(rows: Sequence[Row]) -> Iterator[str]:
    spreads = {name for row in rows for name, value in row.items() if name.endswith("_stderr") and value is not None}
    if any(name.startswith(("task_", "score_")) for name in spreads):
        yield "± of a task or the average is one standard error; the average weighs every task alike."


def _kept(rows: Sequence[Row]) -> Iterator[str]:
    if any(row.get("kept") is not None for row in rows):
        yield "kept: the average as a share of the dense model's."


def _documents(result: dict[str, Any]) -> str:
    every = "all " if result["documents"] == result.get("available") else ""
    return f"{every}{result['documents']:,} {_plural('document', result['documents'])}"


def _shots(result: dict[str, Any]) -> str:
    return f"{result['fewshot']}-shot"


def _grouped(results: dict[str, dict[str, Any]], say: Callable[[dict[str, Any]], str]) -> str:
    """Return 'acc_norm, but acc for winogrande'; if no words hold for most tasks, each with the names of its tasks."""
    groups: dict[str, list[str]] = {}
    for task, result in results.items():
        groups.setdefault(say(result), []).append(task)
    most = max(groups, key=lambda words: len(groups[words]))
    usual = [most] if len(groups[most]) > len(results) / 2 else []
    rest = [f"{words} for {', '.join(names)}" for words, names in groups.items() if words not in usual]
    return ", but ".join([*usual, *([", ".join(rest)] if rest else [])])


def _incomparable(rows: Sequence[Row]) -> Iterator[str]:
    """Yield why a comparison with the dense model is missing although the cell was measured."""
    missing = [
        quantity_of_column(column).heading
        for column, source in COMPARED.items()
        if any(row.get(source) is not None and row.get(column) is None for row in rows)
    ]
    if missing:
        yield f"{', '.join(missing)}: missing where no dense cell was measured under the same conditions."


def describe_seeds(records: Sequence[Record]) -> list[str]:
    """Return whether intervals include the draw of the calibration text, for each calibration of the pruned cells."""
    pruned = [record for record in records if record.cell["method"] != "dense"]
    return list(dict.fromkeys(MEANS if len(seeds_of(several)) > 1 else ONE_SEED for several in _calibrations(pruned)))


def _calibrations(records: Sequence[Record]) -> list[list[Record]]:
    """Return the records in groups that share a calibration, whatever its seed."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        protocol = record.cell["protocol"]
        groups.setdefault(tuple(protocol[name] for name in CALIBRATION), []).append(record)
    return list(groups.values())


def _calibration(records: Sequence[Record]) -> str:
    protocol = records[0].cell["protocol"]
    return (
        f"calibration: {protocol['calibration_sequences']} sequences of {protocol['calibration_length']} tokens of "
        f"{protocol['calibration']}, {names_of_seeds(seeds_of(records))}; the same for every method."
    )


def _draws(records: Sequence[Record], *, seeds: bool) -> Iterator[str]:
    for shared in group_draws(records, seeds=seeds):
        first, *rest = (records[number] for number in shared)
        several = len({record.cell["seed"] for record in (first, *rest)})
        if rest and several == 1:
            yield (
                f"{label_of_cell(first.cell)}: mean of {len(shared)} draws, of a perplexity by its logarithm, "
                "of peak memory "
                f"the highest; its ± and [low, high] are the standard deviation between the draws"
                f"{_words_of_timed_draw(first, rest)}."
            )
        elif len(shared) > several:
            yield (
                f"{label_of_cell(first.cell)}: {len(shared)} draws over {several} "
                f"seeds{_words_of_timed_draw(first, rest)}."
            )


def _words_of_timed_draw(first: Record, draws: Sequence[Record]) -> str:
    """Return words on which of several draws was timed; empty if all were, or if speed was not to be measured."""
    if "speed" in first.measured:
        return ", but of its speed, for which one draw alone is timed" * any("speed" not in o.measured for o in draws)
    return "; the draw that is timed is not among them" * (first.cell["protocol"]["speed_rounds"] > 0)


def _plural(noun: str, number: int) -> str:
    return noun if number == 1 else f"{noun}s"


def describe_environment(records: Sequence[Record]) -> Iterator[str]:
    """Yield the environment of the cells, as in 'torch: 2.13.0', with every value that occurs."""
    values_by_name: dict[str, list[str]] = {}
    for record in records:
        flat = {name: value for name, value in record.environment.items() if name != "versions"}
        for name, value in flat.items():
            values_by_name.setdefault(name.removesuffix("_bytes").replace("_", " "), []).append(_fact(name, value))
        for package, version in record.environment.get("versions", {}).items():
            values_by_name.setdefault(package, []).append(version)
    for name, values in values_by_name.items():
        distinct = sorted(set(values))
        if name == "date" and len(distinct) > 1:
            distinct = [f"{distinct[0]} to {distinct[-1]}"]
        yield f"{name}: {', '.join(distinct)}"


def _fact(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format_bytes(float(str(value))) if name.endswith("_bytes") else str(value)


CAPTURED = ", each step captured once and replayed"


def describe_speed(record: Record) -> Iterator[str]:
    """Yield how the speed in the main table was measured."""
    protocol = record.cell["protocol"]
    for stage, size in STAGES.items():
        point = main_timing(record, stage)
        if point:
            what = "a prompt of" if stage == "prefill" else "one token behind a context of"
            how = ", compiled" if protocol["compile"] else CAPTURED if point.get("mode") == "graph" else ""
            rounds, turns = protocol["speed_rounds"], "times as fast as dense, both in turns for up to"
            interval = "; ± or [low, high] is the 95 % interval" if "speedup" in point else ""
            yield (
                f"{stage}: {turns if interval else 'timed alone for'} {rounds} rounds; {what} "
                f"{point[size]:,} tokens, batch {point['batch']}, {protocol['cache']} cache{how}{interval}."
            )


def describe_throughput(record: Record, called: str) -> Iterator[str]:
    """Yield the most tokens per second that each model reached in decoding, over the batches on a GPU."""
    steps = [point for point in record.measured.get("speed", {}).get("points", ()) if point.get("mode") == "graph"]
    for context in dict.fromkeys(point["context"] for point in steps):
        swept = [point for point in steps if point["context"] == context]
        if len({point["batch"] for point in swept}) > 1:
            rates = [
                f"{name} {_rate(best, name):,.0f} at batch {best['batch']}"
                for name in ("dense", "pruned")[: 1 if record.cell["method"] == "dense" else 2]
                if (best := max(_timed(swept, name), key=partial(_rate, name=name), default=None))
            ]
            yield f"{called}: most tokens/s behind {context:,} tokens: {', '.join(rates)}."


def describe_equal_memory(record: Record, dense: Record, called: str) -> Iterator[str]:
    """Yield the tokens per second of both models in the memory that the dense model takes at its fastest batch.

    Only measured batches count.

    dense  the cell of the dense model; it holds the memory that the dense model takes alone
    """
    steps = [point for point in record.measured.get("speed", {}).get("points", ()) if point.get("mode") == "graph"]
    taken, takes = _reserved(record), _reserved(dense)
    for context in dict.fromkeys(point["context"] for point in steps):
        swept = [point for point in steps if point["context"] == context]
        if len({point["batch"] for point in swept}) < 2:
            continue
        known = [point for point in _timed(swept, "dense") if (context, point["batch"]) in takes]
        if not (best := max(known, key=lambda point: _rate(point, "dense"), default=None)):
            continue
        room = takes[context, best["batch"]]
        fitting = [p for p in _timed(swept, "pruned") if taken.get((context, p["batch"]), room + 1) <= room]
        if most := max(fitting, key=lambda point: _rate(point, "pruned"), default=None):
            yield (
                f"{called}: tokens/s behind {context:,} tokens in {format_bytes(room)}: dense "
                f"{_rate(best, 'dense'):,.0f} at batch {best['batch']}, pruned {_rate(most, 'pruned'):,.0f} at batch "
                f"{most['batch']}."
            )


def _reserved(record: Record) -> dict[tuple[int, int], int]:
    """Return {(context, batch): bytes that a model alone reserved for captured steps}."""
    points = record.measured.get("speed", {}).get("memory", {}).get("points", ())
    held = "peak_reserved_bytes"
    return {(p["context"], p["batch"]): p[held] for p in points if p.get("mode") == "graph" and held in p}


def _rate(point: dict[str, Any], name: str) -> float:
    """Return the tokens per second of a decode step, over all sequences."""
    rate: float = 1000 * point["batch"] / point[f"{name}_ms"]
    return rate


def _timed(points: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [point for point in points if f"{name}_ms" in point]
