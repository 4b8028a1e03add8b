"""Makes of each record a row of values, as a dictionary or in a data frame; what was not measured is missing.

Columns. Each quantity of bench.records.quantities has one, and docs/quantities.md explains them. NAME_low and NAME_high
are its 95 % interval, NAME_stderr is its standard error. Besides these there are, for a task K and a metric M:

model .. profile                  model, label, method, requested_ratio (missing for the dense model and for methods
                                  whose parameters alone decide; of a budget the share that was to go), ratio_of (what
                                  that is a share of: all, decoder, layers, or the quantity of a budget), seed, draw
                                  (the seed of a random choice), match, device, dtype, profile
status, error, flags              flags: "missed_ratio", "no_dense_cell", "other_versions" (than the dense cell's),
                                  "misfit" (a fit that does not hold on held-out sequences), a space between
ratio_budget, macs_budget ..      what was asked for: shares of the dense model's, of what goes and of what stays
task_K_metric, task_K_documents   which metric that is, and over how many documents
task_K_chance, average_chance     the accuracy of guesses, where it is known and the main metric is acc or acc_norm
task_K_M, task_K_M_stderr         every other metric

An accuracy of acc or acc_norm has Wilson's interval. A mean over tasks is missing unless each was measured, and `kept`
unless tasks, metrics and documents are the dense cell's. Flips (bench.records.flips) and losses of skills
(bench.records.skill_losses) need the samples of both cells, and what is written (bench.records.written) its own.
Speeds are those of the first batch and size that were asked for. A highest memory is what is allocated on GPUs, and on
a CPU that of the process. Columns of healing are missing where no cell was healed.

Misfits. A compensation and LaCo-LS fit to sequences; a record says how well each fit holds on others.

Each fit notes error_before, error_after and error_held_out, ||y - z||^2 / ||z||^2 over the tokens that are no attention
sinks, and the same over the sinks (methods/least_squares.py). error_held_out is that of a solution of three quarters of
the sequences, over the last quarter.

Guesses. Tasks are left out on which the dense model's accuracy may be that of guesses.

An accuracy is above guessing where all of its 95 % interval is: Wilson's of a task, 1.96 standard errors of an average.
The accuracy of guesses is the mean over the documents of 1 / choices (bench.records.answers).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench.data.skills import SOURCES
from bench.data.task_sources import OFFLINE, BySkill
from bench.records.comparability import (
    find_dense_peer,
    find_unlike_versions,
    group_by_setup,
)
from bench.records.flips import KINDS as FLIPS
from bench.records.flips import find_flips
from bench.records.measured import ANSWER_BPB, Measured, TaskMetric, TaskScore
from bench.records.quantities import quantities_of_part
from bench.records.quantity import Quantity
from bench.records.record import Record, name_of_model, peak_of_stage
from bench.records.samples import Samples
from bench.records.skill_losses import LossFinder, tasks_by_skill
from bench.records.speed_results import PointTiming
from bench.records.written import find_share_of_written, name_of_written_task
from bench.stats.intervals import NORMAL_95, Contrast, average_stderr, wilson
from methods.counted import MISSED, QUANTITIES

if TYPE_CHECKING:
    import pandas as pd


MOST_BY_SKILL = 10  # tasks by skill that have columns of their own where tables and figures have one for each task
MISS = MISSED  # the largest share of the dense model by which a method may miss its budget unmarked
STAGES = {"prefill": "length", "decode": "context"}  # and the size, in tokens, that belongs to each


def rows_of_records(records: Sequence[Record], samples: Samples | None = None) -> list[dict[str, Any]]:
    """Return a row for each record, in their order; what was not measured is None or absent.

    samples  of the records, in their order; without them no row has flips, losses of skills and what is written
    """
    rows: dict[int, dict[str, Any]] = {}
    for group in group_by_setup(records).values():
        averaged = keep_standard_tasks(tasks_with_accuracies(group))
        fields = [quantity.field for quantity in quantities_of_part("answers")]
        answered = {field: keep_standard_tasks(tasks_with_answers(group, field)) for field in fields}
        whole = _whole(group)
        for record in group:
            row = _row(record, find_dense_peer(record, group), averaged, answered)
            rows[id(record)] = row | whole if record.cell.method == "dense" else row
    if samples is not None:
        _add_flips(rows, records, samples)
        _add_losses(rows, records, samples)
        _add_written(rows, records, samples)
    return [rows[id(record)] for record in records]


def _whole(group: Sequence[Record]) -> dict[str, float]:
    """Return the dense model's columns for the budgets of its group, since it keeps all of their quantities."""
    budgets = {record.measured.budget.of for record in group if record.measured.budget is not None}
    return {f"{of}_stays": 1.0 for of in sorted(budgets)}


def frame_of_records(records: Sequence[Record], samples: Samples | None = None) -> pd.DataFrame:
    """Return the rows of the records as a data frame, with the columns that the head of this file lists."""
    import pandas as pd

    rows = rows_of_records(records, samples)
    columns = {}
    for name in columns_of_rows(rows):
        columns[name] = _column([row.get(name) for row in rows])
    return pd.DataFrame(columns)


def columns_of_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return all columns in the order of the fullest row, so that a failed cell does not set the order."""
    return list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))


def columns_with_values(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """Return those of the columns in which any row has a value."""
    filled = {name for row in rows for name, value in row.items() if value is not None}
    return [name for name in names if name in filled]


def removes_too_little(record: Record) -> bool:
    """Say whether a cell removed too much less than its budget, so that its values flatter it."""
    by = budget_miss(record.measured)
    return by is not None and by < -MISS


def misses_budget(record: Record) -> bool:
    """Say whether a cell missed its budget by more than MISS, so that it is marked."""
    by = budget_miss(record.measured)
    return by is not None and abs(by) > MISS


def budget_miss(measured: Measured) -> float | None:
    """Return the achieved minus the budgeted ratio, as a share of the dense model's; None where there was no budget."""
    if measured.budget is not None:
        return measured.budget.share - measured.budget.stays
    ratio, budget = measured.ratio, measured.ratio_budget
    return None if ratio is None or budget is None else ratio - budget


def column_of_amount(of: str) -> str:
    """Return the column of the ratio that was removed, or of a budget's quantity the share that stays."""
    return f"{of}_stays" if of in QUANTITIES else "ratio"


def texts_of_records(records: Sequence[Record]) -> list[str]:
    """Return the texts with a perplexity, in the protocol's order."""
    names = [name for record in records for name in record.measured.text_scores]
    return _in_order_of_protocol(names, [record.cell.protocol.texts for record in records])


def ranges_of_records(records: Sequence[Record]) -> list[str]:
    """Return the ranges of positions with a perplexity, text by text, the first positions first."""
    return list(dict.fromkeys(name for record in records for name in record.measured.range_scores))


def tasks_of_records(records: Sequence[Record]) -> list[str]:
    """Return the tasks with a result, in the protocol's order."""
    names = [name for record in records for name in record.measured.task_scores]
    return _in_order_of_protocol(names, [record.cell.protocol.tasks for record in records])


def tasks_with_accuracies(records: Sequence[Record]) -> list[str]:
    """Return the tasks with an accuracy in any record, in the protocol's order."""
    names = {name for record in records for name in _accuracies(record)}
    return [name for name in tasks_of_records(records) if name in names]


def keep_standard_tasks(tasks: Sequence[str]) -> list[str]:
    """Return the tasks that a mean over tasks is of: those that lm-eval defines, or all where it defines none.

    The suite's own come in several forms of the same documents, and would weigh more than all of the rest.
    """
    return [task for task in tasks if not isinstance(OFFLINE.get(task), BySkill)] or list(tasks)


def keep_shown_tasks(records: Sequence[Record]) -> list[str]:
    """Return the tasks with a result that tables show one by one: without those by skill, where these are many."""
    tasks = tasks_of_records(records)
    not_by_skill = [task for task in tasks if task not in SOURCES]
    return tasks if len(tasks) - len(not_by_skill) <= MOST_BY_SKILL else not_by_skill


def columns_of_quantity(quantity: Quantity, records: Sequence[Record]) -> list[str]:
    """Return the columns of a quantity: one, or one for each text or task that has it in any record."""
    if not quantity.is_each:
        return [quantity.name]
    if quantity.part == "text":
        return [quantity.name.format(text) for text in texts_of_records(records)]
    if quantity.part == "positions":
        return [quantity.name.format(name) for name in ranges_of_records(records)]
    tasks = tasks_with_answers(records, quantity.field) if quantity.path else tasks_with_accuracies(records)
    return [quantity.name.format(task) for task in tasks]


def tasks_with_answers(records: Sequence[Record], field: str = ANSWER_BPB) -> list[str]:
    """Return the tasks with a field, such as the right answer's bits per byte, in any record, in their order."""
    tasks = [record.measured.task_scores for record in records]
    names = {name for results in tasks for name, task in results.items() if getattr(task, field) is not None}
    return [name for name in tasks_of_records(records) if name in names]


def column_of_task(name: str, task: TaskScore) -> str:
    """Return the column of a task's main metric; that of its bits per byte where it has no other."""
    if task.main == ANSWER_BPB:
        return f"{ANSWER_BPB}_{name}"
    return f"{'task' if task.is_accuracy else 'score'}_{name}"


def columns_of_tasks(records: Sequence[Record], tasks: Sequence[str] | None = None) -> list[str]:
    """Return the columns of the main metrics of tasks, accuracies first.

    tasks  None for all of the records, in the protocol's order
    """
    names = tasks_of_records(records) if tasks is None else tasks
    results = [(name, record.measured.task_scores.get(name)) for name in names for record in records]
    columns = dict.fromkeys(column_of_task(name, result) for name, result in results if result)
    return sorted(columns, key=lambda column: not column.startswith("task_"))


def _in_order_of_protocol(names: Sequence[str], orders: Sequence[Sequence[str]]) -> list[str]:
    return [name for name in dict.fromkeys([*chain(*orders), *names]) if name in names]


def _row(
    record: Record, dense: Record | None, averaged: Sequence[str], answered: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return the row of a record.

    averaged  the tasks that the average is over
    answered  for each field of a task the tasks that its mean is over
    """
    measured = record.measured
    row = _identity(record) | _amounts(measured) | _values("size", measured)
    for text, score in measured.text_scores.items():
        row |= _values("text", score, text)
    for name, range_score in measured.range_scores.items():
        row |= _values("positions", range_score, name)
    row |= _values("checks", measured.checks) if measured.checks is not None else {}
    for task, result in measured.task_scores.items():
        row |= _task(column_of_task(task, result), result)
    for quantity in quantities_of_part("answers"):
        row |= _answers(quantity, measured.task_scores, answered[quantity.field])
    row |= _average(_accuracies(record), _accuracies(dense) if dense else {}, averaged)
    row |= _speed(record) | _values("cost", measured)
    row |= _values("healing", measured.healing) if measured.healing is not None else {}
    if (to_prune := peak_of_stage(measured, "prune")) is not None:
        row["prune_memory_bytes"] = to_prune
    row["peak_memory_bytes"] = peak_of_stage(measured)
    flags = [
        *["missed_ratio"] * misses_budget(record),
        *["no_dense_cell"] * (dense is None),
        *["other_versions"] * bool(find_unlike_versions(record, dense)),
        *["misfit"] * any(find_misfits(record)),
    ]
    return row | {"flags": " ".join(flags) or None}


def _values(part: str, result: object, name: str = "") -> dict[str, Any]:
    """Return the columns of all quantities of a part, from the result that has them as fields.

    name  of the text or task whose result it is
    """
    row: dict[str, Any] = {}
    for quantity in quantities_of_part(part):
        row |= _value(quantity, result, name)
    return row


def _value(quantity: Quantity, result: object, name: str = "") -> dict[str, Any]:
    """Return the columns of a quantity: its value, and the ends of its interval or its standard error."""
    column, value = quantity.name.format(name), getattr(result, quantity.field)
    if quantity.spread == "stderr":
        return {column: value and value.value, f"{column}_stderr": value and value.stderr}
    ends = ("_low", "_high") if quantity.spread == "interval" else ()
    return {column: value} | {f"{column}{end}": getattr(result, f"{quantity.field}{end}") for end in ends}


def _identity(record: Record) -> dict[str, Any]:
    cell = record.cell
    return {
        "model": name_of_model(record),
        "label": cell.label,
        "method": cell.method,
        "requested_ratio": cell.ratio,
        "ratio_of": None if cell.ratio is None else cell.ratio_of,
        "seed": cell.seed,
        "draw": cell.draw,
        "match": cell.match,
        "device": cell.device,
        "dtype": cell.dtype,
        "profile": cell.protocol.profile,
        "status": record.status,
        "error": record.error,
        "flags": None,  # keeps its place; set when the rest of the row is known
    }


def _amounts(measured: Measured) -> dict[str, Any]:
    """Return what was removed beside what was asked for."""
    row: dict[str, Any] = {
        "ratio": measured.ratio,
        "ratio_budget": measured.ratio_budget,
        "miss": budget_miss(measured),
    }
    if budget := measured.budget:
        row |= {f"{budget.of}_stays": budget.stays, f"{budget.of}_budget": budget.share}
    return row


def interval_of_answers(task: TaskScore) -> tuple[float, float] | None:
    """Return Wilson's 95 % interval of a task's accuracy; None where the main metric is no share of right answers."""
    right, documents = task.main_metric.value * task.documents, task.documents
    if task.main in ("acc", "acc_norm") and documents and abs(right - round(right)) < 1e-6:  # else no count of answers
        return wilson(round(right), documents)
    return None


def _task(column: str, task: TaskScore) -> dict[str, Any]:
    main, documents = task.main, task.documents
    value, stderr = task.main_metric.value, task.main_metric.stderr
    low, high = interval_of_answers(task) or (None, None)
    row = {
        column: value,
        f"{column}_stderr": stderr,
        f"{column}_low": low,
        f"{column}_high": high,
        f"{column}_metric": main,
        f"{column}_documents": documents,
    }
    if low is not None and task.chance is not None:
        row[f"{column}_chance"] = task.chance
    for name, metric in task.metrics.items():
        row[f"{column}_{name}"] = metric.value
        row[f"{column}_{name}_stderr"] = metric.stderr
    return row


def _accuracies(record: Record) -> dict[str, TaskScore]:
    return {name: task for name, task in record.measured.task_scores.items() if task.is_accuracy}


def _answers(quantity: Quantity, tasks: Mapping[str, TaskScore], names: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a quantity of each task that has it, and of its mean over the named tasks."""
    answers = {name: getattr(task, quantity.field) for name, task in tasks.items()}
    answers = {name: answer for name, answer in answers.items() if answer is not None}
    row: dict[str, Any] = {}
    for name in answers:
        row |= _value(quantity, tasks[name], name)
    if quantity.over_tasks and names:
        row |= _mean(quantity.field, answers, names)
    return row


def _mean(column: str, results: Mapping[str, TaskMetric], names: Sequence[str]) -> dict[str, float | None]:
    """Return the unweighted mean over the named tasks with its standard error; None unless each has a result."""
    row: dict[str, float | None] = {column: None, f"{column}_stderr": None}
    if not names or any(name not in results for name in names):
        return row
    row[column] = fmean(results[name].value for name in names)
    stderrs = [results[name].stderr for name in names]
    errors = [stderr for stderr in stderrs if stderr is not None]
    if len(errors) == len(names):
        row[f"{column}_stderr"] = average_stderr(errors)
    return row


def _average(
    measured: Mapping[str, TaskScore], dense: Mapping[str, TaskScore], names: Sequence[str]
) -> dict[str, float | None]:
    """Return the unweighted average over the named tasks and its share of the dense model's."""
    row = _mean("average", {name: task.main_metric for name, task in measured.items()}, names) | {"kept": None}
    average = row["average"]
    if average is None:
        return row
    by_task = [measured[task].chance for task in names]
    chances = [chance for chance in by_task if chance is not None]
    if len(chances) == len(names):
        row["average_chance"] = fmean(chances)
    if all(measured[task].is_answered_like(dense.get(task)) for task in names):
        baseline = fmean(dense[task].main_metric.value for task in names)
        row["kept"] = average / baseline if baseline else None
    return row


def _add_flips(rows: Mapping[int, dict[str, Any]], records: Sequence[Record], samples: Samples) -> None:
    """Add the columns of flips to the rows of pruned cells, {id of a record: row}, of each task and their means."""
    place_by_id = {id(record): place for place, record in enumerate(records)}
    for group in group_by_setup(records).values():
        metrics: dict[int, dict[str, dict[str, TaskMetric]]] = {}
        for record in group:
            dense = find_dense_peer(record, group) if record.cell.method != "dense" else None
            if dense is not None:
                places = place_by_id[id(dense)], place_by_id[id(record)]
                metrics[id(record)] = _flips(record, dense, samples, places)
        for kind in FLIPS:
            every = dict.fromkeys(chain.from_iterable(by_kind[kind] for by_kind in metrics.values()))
            tasks = keep_standard_tasks(list(every))
            for key, by_kind in metrics.items():
                for task, metric in by_kind[kind].items():
                    rows[key] |= {f"{kind}_{task}": metric.value, f"{kind}_{task}_stderr": metric.stderr}
                rows[key] |= _mean(kind, by_kind[kind], tasks) if tasks else {}


def _flips(
    record: Record, dense: Record, samples: Samples, places: tuple[int, int]
) -> dict[str, dict[str, TaskMetric]]:
    """Return the flips of a cell by kind and task, of tasks that it and its dense cell answered alike.

    places  of the dense cell and of this one among the records of the samples
    """
    flips: dict[str, dict[str, TaskMetric]] = {kind: {} for kind in FLIPS}
    answered = _accuracies(dense)
    for task, score in _accuracies(record).items():
        if score.is_answered_like(answered.get(task)):
            for kind, metric in find_flips(samples, *places, task, score.main).items():
                flips[kind][task] = metric
    return flips


def _add_losses(rows: Mapping[int, dict[str, Any]], records: Sequence[Record], samples: Samples) -> None:
    """Add what pruned cells lose of each skill to their rows, {id of a record: row}, and what dense ones have of it."""
    place_by_id, finder = {id(record): place for place, record in enumerate(records)}, LossFinder(records, samples)
    for group in group_by_setup(records).values():
        tasks = tasks_by_skill(group)
        for record in group if tasks else ():
            dense = find_dense_peer(record, group)
            if dense is None:
                continue
            first, second = place_by_id[id(dense)], place_by_id[id(record)]
            for column, contrast in finder.find(tasks, first, first, second).items():
                if column.startswith("skill_above_") == (record is dense):
                    rows[id(record)] |= _columns_of_contrast(column, contrast)


def _columns_of_contrast(column: str, contrast: Contrast) -> dict[str, float | None]:
    """Return the columns of an estimate, its interval and its standard error."""
    ends = {"": contrast.estimate, "_low": contrast.low, "_high": contrast.high, "_stderr": contrast.stderr}
    return {f"{column}{end}": value for end, value in ends.items()}


def _add_written(rows: Mapping[int, dict[str, Any]], records: Sequence[Record], samples: Samples) -> None:
    """Add to the rows, {id of a record: row}, how many answers of each task are chosen right and written right too."""
    for place, record in enumerate(records):
        accuracies = _accuracies(record)
        for task, score in accuracies.items():
            written = accuracies.get(name_of_written_task(task) or "")
            if written is not None and written.available == score.available:
                share = find_share_of_written(samples, place, task, (score.main, written.main))
                column = f"written_{task}"
                rows[id(record)] |= (
                    {column: share.value, f"{column}_low": share.low, f"{column}_high": share.high} if share else {}
                )


def main_timing(record: Record, stage: str) -> PointTiming | None:
    """Return the point of "prefill" or "decode" at the first batch and first size; None where it was not timed."""
    protocol = record.cell.protocol
    for point in record.measured.timed_points:
        if point.kind == stage and [point.batch, point.tokens] == [
            protocol.batches[0],
            *getattr(protocol, stage)[:1],
        ]:
            return point if point.pruned_ms is not None else None
    return None


def tokens_of_point(point: PointTiming) -> int:
    """Return the tokens that one timed call computes, over all sequences of its batch."""
    return point.batch * (point.tokens if point.kind == "prefill" else 1)


def _speed(record: Record) -> dict[str, float | None]:
    """Return the speed beside the dense model, timed in turns with this one, and the absolute speed."""
    row: dict[str, float | None] = {}
    for stage in STAGES:
        point = main_timing(record, stage)
        if point is not None and point.pruned_ms is not None:
            row[f"{stage}_speed"] = point.speedup
            row |= {f"{stage}_speed_low": point.speedup_low, f"{stage}_speed_high": point.speedup_high}
            if stage == "prefill":
                row["prefill_tokens_per_second"] = 1000 * tokens_of_point(point) / point.pruned_ms
            else:
                row["decode_ms_per_token"] = point.pruned_ms
    return row


def _column(values: list[Any]) -> pd.Series[Any]:
    """Return a column of a data frame: whole numbers stay whole beside missing ones, and other numbers are floats."""
    import pandas as pd

    kinds = {type(value) for value in values if value is not None}
    if kinds == {int}:
        return pd.Series(values, dtype="Int64")
    return pd.Series(values, dtype="float64" if kinds and kinds <= {int, float} else "object")


FAR = 2.0  # a held-out error is far above the fitted one from this multiple of it on
SMALL = 0.01  # a share of the squared state that may be missed, whatever the fitted ones are


def fits_of_record(record: Record) -> list[dict[str, Any]]:
    """Return the errors of each fit, in the order in which the fits were made: windows, then a compensation."""
    compensation = record.decisions.get("compensation", {})
    lists = record.decisions.get("errors"), compensation.get("cuts"), compensation.get("refitted")
    return [fit for fits in lists for fit in fits or [] if "error_after" in fit]


def find_misfits(record: Record) -> Iterator[tuple[str, str, float, float]]:
    """Yield (where, which tokens, fitted error, held-out error) of each fit that does not hold on other sequences."""
    for fit in fits_of_record(record):
        for tokens, errors in (("tokens", fit), ("attention sinks", fit.get("sinks", {}))):
            held_out = errors.get("error_held_out")
            if held_out is not None and held_out > max(FAR * errors["error_after"], SMALL):
                yield _place_of_fit(fit), tokens, errors["error_after"], held_out


def _place_of_fit(fit: dict[str, Any]) -> str:
    """Say where a fit was made: at a boundary, in a sublayer, or for a window of layers."""
    if "window" in fit:
        first, last = fit["window"]
        return f"for layers {first} to {last}"
    if "part" in fit:
        return f"of {fit['part']} {fit['layer']}"
    return f"for {', '.join(fit['removed'])}"


def may_be_guessed(row: Mapping[str, Any], column: str) -> bool:
    """Say whether a row's accuracy in a column is not shown to be above guessing; False where it is not known."""
    value, chance = row.get(column), row.get(f"{column}_chance")
    if value is None or chance is None:
        return False
    low = row.get(f"{column}_low")
    if low is None:
        low = value - NORMAL_95 * (row.get(f"{column}_stderr") or 0.0)
    return bool(low <= chance)


def drop_guessed_tasks(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Return the records without the tasks on which their dense model may guess, and a sentence on each such task.

    Where a setup has no dense cell, all of its tasks stay.
    """
    kept, sentences = list[Record](), dict[str, None]()
    left_out: dict[int, set[str]] = {}
    for group in group_by_setup(records).values():
        dense = [record for record in group if record.cell.method == "dense" and record.status == "ok"]
        guessed = {
            name: row
            for record, row in zip(dense, rows_of_records(dense), strict=True)
            for name in _tasks_of_guesses(record, row)
        }
        left_out |= {id(record): set(guessed) for record in group}
        for name, row in guessed.items():
            column = f"task_{name}"
            low, high = (100 * row[f"{column}_{end}"] for end in ("low", "high"))
            sentences[
                f"{name} is left out: the dense {name_of_model(group[0])} has {100 * row[column]:.1f} % "
                f"[{low:.1f}, {high:.1f}], and guesses have {100 * row[f'{column}_chance']:.1f} %"
            ] = None
    for record in records:
        tasks = record.measured.task_scores
        stay = {name: task for name, task in tasks.items() if name not in left_out[id(record)]}
        kept.append(record if stay == tasks else replace(record, measured=replace(record.measured, tasks=stay)))
    return kept, list(sentences)


def _tasks_of_guesses(record: Record, row: Mapping[str, Any]) -> list[str]:
    """Return the tasks of a cell in which its accuracy may be that of guesses."""
    tasks = record.measured.task_scores
    return [name for name, task in tasks.items() if may_be_guessed(row, column_of_task(name, task))]
