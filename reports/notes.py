"""What stands under a table: how to read it, by which protocol it was measured, and why a cell has no figures.

Every sentence follows from the records; one that would not be true or not be needed is not written. If the cells of a
run do not agree, each version is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from bench.records.columns import texts
from bench.records.drawn_cells import draws
from bench.records.record import Record, amount, is_accuracy, label, ratio_of, requested_ratio
from methods.counted import QUANTITIES
from reports import doubts, healing_notes, speed_notes
from reports.blocks import draws_apart, name_beside, seeds_named, seeds_of
from reports.doubts import Doubt
from reports.metrics import METRICS, binary, metric, short, shown

Row = Mapping[str, Any]
COMPARED = {  # what is a comparison with the dense model, and the figure that it compares
    "kept": "average",
}
CALIBRATION = ("calibration", "calibration_sequences", "calibration_length")  # fields of the protocol
EVERYTHING = ("perplexity", "kl", "checks", "tasks", "speed")  # kinds of columns, of which the protocol speaks
BOS = {"every window": "each begins with BOS", "none": "no BOS"}
ONE_SEED = "one seed: intervals and tests do not include the draw of the calibration text; with --seed 0,1,2 they do."
MEANS = (
    "several seeds: means over them, of a perplexity by its logarithm, of peak memory the highest; ± and [low, high] "
    "include the draw of the calibration: Student's interval over the seeds and the cells' own one are added in "
    "squares, as are standard errors."
)
REASON = 300  # the longest reason that is shown, in characters; the record holds all of it


def conditions(records: Sequence[Record]) -> list[str]:
    """Return where rows were measured, every place that occurs, in one order: device, dtype, threads; profile."""
    threads = {
        one.environment["threads"]
        for one in records
        if one.cell["device"] == "cpu" and one.environment.get("threads") is not None
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
    """Name the processors of the cells of a CPU, where there are several."""
    found = [one.environment.get("cpu") for one in records if one.cell["device"] == "cpu"]
    several = sorted({str(name) for name in found if name})
    return f" ({_either(several)})" if len(several) > 1 else ""


def _either(values: Iterable[Any]) -> str:
    """List each value once: 'H100 or H200'."""
    return " or ".join(dict.fromkeys(map(str, values)))


def ratio(records: Sequence[Record]) -> str:
    """Return 'ratio 0.3: 11 of 30 layers, 95.6 M parameters', or that parameters decide; empty for dense.

    Of a budget it is 'budget macs=0.8: 78.9 % of the MACs per token, in whole layers'.
    """
    pruned = [record for record in records if record.cell["method"] != "dense"]
    if not pruned:
        return ""
    requested = requested_ratio(pruned[0])
    if requested is None:
        return "ratio fixed by the method's parameters"
    budgets = {_budget(record) for record in pruned if not {"ratio_budget", "budget"}.isdisjoint(record.measured)}
    asked = amount(requested, ratio_of(pruned[0].cell))
    return asked + (f": {budgets.pop()}" if len(budgets) == 1 else "")


def _budget(record: Record) -> str:
    """Return the budget in parameters and, where the request was rounded to whole layers, in layers."""
    measured = record.measured
    if asked := measured.get("budget"):
        rounded = ", in whole layers" if record.cell["match"] == "layers" else ""
        return f"{METRICS['ratio'].show(asked['share'])} of {QUANTITIES[asked['of']]}{rounded}"
    removed = measured["ratio_budget"] * measured["dense_parameters"]
    left = f"{METRICS['parameters'].show(measured['dense_parameters'] - removed)} parameters"
    total = measured.get("dense_layers")
    if record.cell["match"] == "exact" or not total:
        return left
    layers = removed / (measured["dense_parameters_without_embeddings"] / total)
    whole = abs(layers - round(layers)) < 0.05  # layers of one model can differ; then they are not counted
    return f"{round(layers)} of {total} layers, {left}" if whole else left


def exceptions(records: Sequence[Record], stages: Collection[str] = (), beside: Sequence[Record] = ()) -> Iterator[str]:
    """Yield a sentence for each cell that missed its budget or has no figures, named with its seed and draw if need be.

    stages  of generation, whose speed the table shows: what is in doubt about it is said too
    beside  from which a name has to tell a cell, as that of its row does; the records themselves where it is empty
    """
    differing = dict[str, None]()
    for record, which in zip(records, draws_apart(records), strict=True):
        name = name_beside(record, beside or records) + which
        if record.status != "ok":
            yield f"{name}: {status(record)}: {reason(record.error or '')}"
        for doubt in doubts.doubts_of_cell(record, name, stages):
            yield doubt.sentence
        if versions := doubts.differing_versions(record, records):
            doubt = Doubt(doubts.OTHER_VERSIONS, name_beside(record, records) + which, {"versions": versions})
            differing[doubt.sentence] = None
    yield from differing


def status(record: Record) -> str:
    """Return the status as a reader would write it."""
    return record.status.replace("_", " ")


def reason(error: str) -> str:
    """Return an error in one line: what stands above its traceback."""
    message, _, _ = error.partition("\nTraceback (most recent call last):")
    text = re.sub(r"\s+", " ", message).strip()
    return text if len(text) <= REASON else f"{text[:REASON].rstrip()} ... (the record has the rest)"


def protocol(
    records: Sequence[Record],
    rows: Sequence[Row],
    about: Collection[str] = EVERYTHING,
    *,
    calibration: bool = True,
    seeds: bool = True,
) -> list[str]:
    """Say how to read the columns of some kinds, and how their figures came about; each sentence once.

    rows         the figures of the records, see bench.records.columns
    calibration  whether all cells share it
    seeds        whether figures are means over the seeds of the calibration; it is said what intervals have of them
    """
    measured = [record.measured for record in records]
    pruned = [record for record in records if record.cell["method"] != "dense"]
    kinds: dict[str, Iterable[str]] = {
        "perplexity": [*chain.from_iterable(map(_perplexity, measured)), *_perplexity_spread(records, rows)],
        "kl": _divergence(rows),
        "checks": _checks(rows),
        "tasks": [*chain.from_iterable(map(_tasks, measured)), *_accuracy_spread(rows)],
        "speed": chain.from_iterable(map(speed_notes.protocol, records)),
    }
    calibrations = _calibrations(pruned)
    drawn = [MEANS if len(seeds_of(several)) > 1 else ONE_SEED for several in calibrations if seeds]
    sentences = [
        *chain.from_iterable(said for kind, said in kinds.items() if kind in about),
        *(_incomparable(rows) if "tasks" in about else ()),
        *(_calibration(several) for several in calibrations if calibration),
        *(sentence for sentence in drawn if not {"perplexity", "kl", "tasks"}.isdisjoint(about)),
        *healing_notes.notes([record.cell for record in records]),
        *_draws(records, seeds=seeds),
    ]
    return list(dict.fromkeys(sentences))


def _perplexity(measured: dict[str, Any]) -> Iterator[str]:
    for text, result in measured.get("perplexity", {}).items():
        name, windows = metric(f"perplexity_{text}").label, result["windows"]
        yield (
            f"{name}: {windows:,} {_plural('window', windows)} of {result['window']:,} tokens, {_lie(result)}"
            f"stride {result['stride']:,}, {BOS.get(result['bos'], result['bos'])}, {result['tokens']:,} tokens scored"
            f"{', of every document of the text' if result.get('whole') else ''}."
        )


def _lie(result: dict[str, Any]) -> str:
    """Say how the windows lie in their text, with a comma behind it."""
    if result["windows"] == 1:
        return ""
    return "drawn from the text, " if result["drawn"] else "one behind the other, whose intervals are wider, "


def _perplexity_spread(records: Sequence[Record], rows: Sequence[Row]) -> Iterator[str]:
    """Yield what stands behind a perplexity, in the forms that occur."""
    cells = [shown(row, f"perplexity_{text}") for row in rows for text in texts(records)]
    if any("±" in cell for cell in cells):
        yield "± of a perplexity is half the 95 % interval."
    if any("[" in cell for cell in cells):
        yield "[low, high] of a perplexity is the 95 % interval, where its sides differ in length."


def _divergence(rows: Sequence[Row]) -> Iterator[str]:
    if any(row.get("kl") is not None for row in rows):
        yield "KL: divergence of the next token from the dense model's on held-out text, in nats per token."


def _checks(rows: Sequence[Row]) -> Iterator[str]:
    if any(row.get("copying") is not None for row in rows):
        yield "copying, counting, repetition, distinct 2-grams: of greedy continuations."


def _tasks(measured: dict[str, Any]) -> Iterator[str]:
    """Yield which metric, documents and shots tasks have; what all tasks share is said once."""
    results = {short(name): result for name, result in measured.get("tasks", {}).items()}
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
    if any(row.get("answer_bpb") is not None for row in rows):
        yield (
            "bpb: bits per byte of the right answer, ± one standard error, every document and every task weighing "
            "alike; how likely that answer is, which follows perplexity more than what is chosen."
        )
    if any(row.get("kept") is not None for row in rows):
        yield "kept: the average as a share of the dense model's."


def _documents(result: dict[str, Any]) -> str:
    every = "all " if result["documents"] == result.get("available") else ""
    return f"{every}{result['documents']:,} {_plural('document', result['documents'])}"


def _shots(result: dict[str, Any]) -> str:
    return f"{result['fewshot']}-shot"


def _grouped(results: dict[str, dict[str, Any]], say: Callable[[dict[str, Any]], str]) -> str:
    """Say 'acc_norm, but acc for winogrande'; where nothing holds for most tasks, each with its names."""
    groups: dict[str, list[str]] = {}
    for task, result in results.items():
        groups.setdefault(say(result), []).append(task)
    most = max(groups, key=lambda said: len(groups[said]))
    usual = [most] if len(groups[most]) > len(results) / 2 else []
    rest = [f"{said} for {', '.join(names)}" for said, names in groups.items() if said not in usual]
    return ", but ".join([*usual, *([", ".join(rest)] if rest else [])])


def _incomparable(rows: Sequence[Row]) -> Iterator[str]:
    """Yield why a comparison with the dense model is missing although the cell itself was measured."""
    missing = [
        METRICS[column].label
        for column, source in COMPARED.items()
        if any(row.get(source) is not None and row.get(column) is None for row in rows)
    ]
    if missing:
        yield f"{', '.join(missing)}: missing where no dense cell was measured under the same conditions."


def _calibrations(records: Sequence[Record]) -> list[list[Record]]:
    """Return the records in groups that share a calibration but for its seed."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        asked = record.cell["protocol"]
        groups.setdefault(tuple(asked[name] for name in CALIBRATION), []).append(record)
    return list(groups.values())


def _calibration(records: Sequence[Record]) -> str:
    asked = records[0].cell["protocol"]
    return (
        f"calibration: {asked['calibration_sequences']} sequences of {asked['calibration_length']} tokens of "
        f"{asked['calibration']}, {seeds_named(seeds_of(records))}; the same for every method."
    )


def _draws(records: Sequence[Record], *, seeds: bool) -> Iterator[str]:
    for shared in draws(records, seeds=seeds):
        first, *others = (records[number] for number in shared)
        several = len({record.cell["seed"] for record in (first, *others)})
        if others and several == 1:
            yield (
                f"{label(first.cell)}: mean of {len(shared)} draws, of a perplexity by its logarithm, of peak memory "
                f"the highest; its ± and [low, high] are the standard deviation between the draws"
                f"{_timed_draw(first, others)}."
            )
        elif len(shared) > several:
            yield f"{label(first.cell)}: {len(shared)} draws over {several} seeds{_timed_draw(first, others)}."


def _timed_draw(first: Record, others: Sequence[Record]) -> str:
    """Say which of several draws was timed, where not all were."""
    if "speed" in first.measured:
        return ", but of its speed, for which one draw alone is timed" * any("speed" not in o.measured for o in others)
    return "; the draw that is timed is not among them" * (first.cell["protocol"]["speed_rounds"] > 0)


def _plural(noun: str, number: int) -> str:
    return noun if number == 1 else f"{noun}s"


def environment(records: Sequence[Record]) -> Iterator[str]:
    """Yield where the cells ran, as in 'torch: 2.13.0'; several values where they ran under several."""
    found: dict[str, list[str]] = {}
    for record in records:
        flat = {name: value for name, value in record.environment.items() if name != "versions"}
        for name, value in flat.items():
            found.setdefault(name.removesuffix("_bytes").replace("_", " "), []).append(_fact(name, value))
        for package, version in record.environment.get("versions", {}).items():
            found.setdefault(package, []).append(version)
    for name, values in found.items():
        distinct = sorted(set(values))
        if name == "date" and len(distinct) > 1:
            distinct = [f"{distinct[0]} to {distinct[-1]}"]
        yield f"{name}: {', '.join(distinct)}"


def _fact(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return binary(float(str(value))) if name.endswith("_bytes") else str(value)
