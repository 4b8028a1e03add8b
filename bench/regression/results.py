"""Reads what a comparison needs of a cell: sizes, answers, likelihoods of windows, speed-ups and conditions.

`CellResults` holds no path and no host. A text goes by its file's name, and its content by a hash.

    record, samples -> CellResults -> bench.regression.compare, bench.regression.baseline
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.plan.protocol import name_of_samples
from bench.records import run_folder
from bench.records.comparability import (
    CONDITIONS,
    conditions_of_gate,
    find_dense_peer,
    identity_of_cell,
    name_of_identity,
    setups_of_records,
)
from bench.records.measured import ANSWER_BPB, Measured, RangeScore, TaskScore, TextScore, is_accuracy_metric
from bench.records.record import Record, name_of_model
from bench.records.samples import Sample, SampleFiles, pair_whole, sample_of_table
from bench.regression.pairs import Windows, to_windows
from methods.console import say
from methods.errors import UserError

SIZES = ("parameters", "weight_bytes", "kv_bytes_per_token", "state_bytes", "macs_per_token")
MOST_NATS = 700  # per token; a float still holds its exponential
NLL_DIGITS = 4  # behind the point, of a window's nats: the order of sums changes less
BITS_DIGITS = 4  # likewise of a document's bits per byte
SHARED_WITH_DENSE = tuple(row.name for row in CONDITIONS if "task" in row.gate.split() and not row.pruned)


@dataclass(frozen=True)
class Answers(Sample):
    """Holds a value of each answer to one task; an accuracy is from 0 to 1, mostly 1 and 0 for right and wrong.

    prompting  what all prompts share: the number of examples, the hash of a chat template, and the system text
    """

    metric: str = ""
    version: Any = None
    fewshot: int = 0
    prompting: tuple[Any, ...] = ()

    @property
    def is_accuracy(self) -> bool:
        """Say whether the values are accuracies."""
        return is_accuracy_metric(self.metric)

    def is_comparable(self, answers: Answers) -> bool:
        """Say whether other answers to the task are right or wrong by the same metric, as these are."""
        same = (self.metric, self.version, self.fewshot) == (answers.metric, answers.version, answers.fewshot)
        return same and self.is_accuracy and self.is_right_or_wrong and answers.is_right_or_wrong

    @property
    def unprompted(self) -> Answers:
        """Return the same answers with documents as units, without their prompts."""
        return replace(self, units=self.documents)


@dataclass(frozen=True)
class CellResults:
    """Holds the values and conditions of one cell that a comparison needs.

    identity         label, ratio, seed, and the draw of a random method; cells of equal identity are a pair
    status           "ok", or the word for why there is nothing else
    conditions       by the names of bench.records.comparability.GATE; one that does not apply is absent
    about            model, commit: for a reader
    speed            (speed-up, low, high) by the name of the timed size
    untested         tasks that have no value per document
    bits             bits per byte of the right answer, of each task with choices or one reference
    flips            of each task 1 for an answer that is right where the dense cell's is wrong, or the reverse; else 0
    requested_tasks  the protocol's tasks, where the cell has no values
    """

    identity: dict[str, Any]
    status: str
    conditions: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, Answers] = field(default_factory=dict)
    texts: dict[str, Windows] = field(default_factory=dict)
    speed: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    untested: tuple[str, ...] = ()
    bits: dict[str, Answers] = field(default_factory=dict)
    requested_tasks: tuple[str, ...] = ()
    flips: dict[str, Answers] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the identity as messages write it: 'laco at 0.1, seed 0'."""
        return name_of_identity(self.identity)


def results_of_run(run: Path, warn: Callable[[str], None] = say) -> dict[str, CellResults]:
    """Return the results of every cell of a run by its name. Raises UserError where two cells have the same name.

    warn  gets a line on each record that is left out
    """
    results_by_name: dict[str, CellResults] = {}
    files = SampleFiles()
    records = run_folder.read_records(run, warn)
    for key, record in records.items():
        results = results_of_cell(record, run, key, files)
        if results.name in results_by_name:
            models = list(dict.fromkeys(map(name_of_model, records.values())))
            which = f"of {' and '.join(models)}" if len(models) > 1 else "which other settings set apart"
            raise UserError(f"{run} has several cells {results.name!r}, {which}; name one as RUN/CELL")
        results_by_name[results.name] = results
    return add_flips(results_by_name)


def add_flips(cells: Mapping[str, CellResults]) -> dict[str, CellResults]:
    """Return the cells of a run by their names, each with its flips if its dense cell is among them."""
    dense_cells = [cell for cell in cells.values() if cell.identity["label"] == "dense"]
    by_name = {}
    for name, cell in cells.items():
        same_seed = [dense for dense in dense_cells if dense.identity["seed"] == cell.identity["seed"]]
        dense = next(iter(same_seed or dense_cells), None)
        by_name[name] = replace(cell, flips=_flips(dense, cell)) if dense else cell
    return by_name


def _flips(dense: CellResults, cell: CellResults) -> dict[str, Answers]:
    """Return the flips of each task that both cells answered on the same documents under the same conditions."""
    if any(dense.conditions.get(name) != cell.conditions.get(name) for name in SHARED_WITH_DENSE):
        return {}
    flips = {}
    for task, answers in cell.tasks.items():
        both = pair_whole(dense.tasks.get(task), answers)
        if both is not None and both.first.is_comparable(both.second):
            flips[task] = replace(both.second, values=np.abs(both.differences))
    return flips


def results_of_named_cell(run: Path, name: str) -> CellResults:
    """Return the results of a cell of a run by its key, the start of one, or its label, with its flips.

    They are absent where the samples of the dense cell are missing or damaged. Raises UserError for those of the cell.
    """
    key, record = run_folder.find_cell(run, name)
    cell = results_of_cell(record, run, key)
    records = run_folder.read_records(run, run_folder.ignore_warning)
    setups = dict(zip(records, setups_of_records(list(records.values())), strict=True))
    peers = {peer: records[peer] for peer in records if setups[peer] == setups[key]}
    dense = find_dense_peer(records[key], list(peers.values()))
    if dense is None:
        return cell
    try:
        dense_cell = results_of_cell(dense, run, next(peer for peer in peers if peers[peer] is dense))
    except UserError:
        return cell
    return add_flips({"dense": dense_cell, "cell": cell})["cell"]


def results_of_cell(record: Record, run: Path, key: str, files: SampleFiles | None = None) -> CellResults:
    """Return the results of one cell, with its samples.

    Raises UserError where those are missing or damaged, and where a ratio is not that of the record's counts.
    """
    measured = record.measured
    if record.status != "ok":
        return CellResults(identity_of_cell(record), record.status, requested_tasks=tuple(record.cell.protocol.tasks))
    _refuse_other_ratio(measured, f"{run}: {key}: ")
    folder, files = run_folder.folder_of_samples(run, key), files or SampleFiles()
    cell = results_of_measured(
        measured,
        lambda name: _table((record, folder, files), name),
        identity=identity_of_cell(record),
        conditions=conditions_of_gate(record),
        where=(str(run), f"{run}: {key}: "),
    )
    about = {"model": record.display_name, "commit": record.environment.get("commit")}
    return replace(cell, about={name: value for name, value in about.items() if value is not None})


def results_of_measured(
    measured: Measured,
    read_table: Callable[[str], Any],
    *,
    identity: dict[str, Any],
    conditions: dict[str, Any],
    where: tuple[str, str],
) -> CellResults:
    """Return the results of measured values with their samples.

    read_table  returns the pyarrow.Table of a task, or of a text or range by the name of its samples
    identity    as CellResults has it, and so are the conditions
    where       the beginning of a message about two texts, and of one about the samples of a text

    Raises UserError for two texts of one name, and for impossible values of windows.
    """
    chat = (conditions.get("chat_template"), conditions.get("system"))
    tasks, bits = dict[str, Answers | None](), dict[str, Answers]()
    for name, task in measured.task_scores.items():
        table = read_table(name)
        if task.main != ANSWER_BPB:
            tasks[name] = _answers_of_task(task, name, table, (task.main, chat))
        likely = _answers_of_task(task, name, table, (ANSWER_BPB, chat))
        bits |= {name: replace(likely, values=likely.values.round(BITS_DIGITS))} if likely else {}
    texts: dict[str, Windows] = {}
    for name, text in measured.scores_of_windows.items():
        if Path(name).name in texts:
            raise UserError(f"{where[0]}: two texts are called {Path(name).name}; give them different file names")
        table = read_table(name_of_samples(name))
        texts[Path(name).name] = _windows(text, table, f"{where[1]}the samples of {name}")
    return CellResults(
        identity=identity,
        status="ok",
        conditions=conditions,
        sizes=_sizes(measured),
        tasks={name: answers for name, answers in tasks.items() if answers is not None},
        texts=texts,
        speed=dict(_speeds(measured)),
        untested=tuple(name for name, answers in tasks.items() if answers is None),
        bits=bits,
    )


def _refuse_other_ratio(measured: Measured, where: str) -> None:
    """Raise UserError where a ratio is not that of the counts beside it: 1 minus what is left of the dense model."""
    for ratio, count in (("ratio", "parameters"), ("ratio_without_embeddings", "parameters_without_embeddings")):
        recorded, pruned, dense = (getattr(measured, name) for name in (ratio, count, f"dense_{count}"))
        if recorded is None or pruned is None or not dense:
            continue
        if not math.isclose(recorded, 1 - pruned / dense, abs_tol=1e-6):
            raise UserError(f"{where}{ratio} is {1 - pruned / dense:g} by {count} and {recorded:g} in the record")


def _sizes(measured: Measured) -> dict[str, int]:
    """Return the sizes by name; that of the multiply-accumulates has their context, since they depend on it."""
    sizes = {name: getattr(measured, name) for name in SIZES}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    if "macs_per_token" in sizes:
        macs, context = sizes.pop("macs_per_token"), measured.macs_context
        sizes["macs_per_token" if context is None else f"macs_per_token in {context}"] = macs
    return sizes


def _answers_of_task(task: TaskScore, name: str, table: Any, about: tuple[str, tuple[Any, Any]]) -> Answers | None:
    """Return the values of a metric of a task with their documents; None where a document has no value.

    about  the metric, and the chat of the prompts: the hash of its template and its system text
    """
    (metric, chat), version, fewshot = about, task.version, task.fewshot
    sample = sample_of_table(table, name, metric)
    return Answers(sample.units, sample.values, (), metric, version, fewshot, (fewshot, *chat)) if sample else None


def _windows(text: TextScore | RangeScore, table: Any, where: str) -> Windows:
    """Return the windows of a text. Raises UserError for impossible values; its message begins with `where`."""
    sample = sample_of_table(table, "", "nll")
    windows = to_windows(sample, text) if sample else None
    if windows is None or (np.abs(windows.values) >= MOST_NATS * np.array(windows.tokens)).any():
        raise UserError(f"{where} have windows without tokens or of more than {MOST_NATS} nats per token")
    return replace(windows, values=windows.values.round(NLL_DIGITS))


def _table(cell: tuple[Record, Path, SampleFiles], name: str) -> Any:
    """Return the pyarrow.Table of one task or text of a cell: its record, the folder of its samples, and their reader.

    Raises UserError where the table is missing, damaged, or does not fit the record.
    """
    record, folder, files = cell
    table = files.table(record, folder, name)
    if table is None:
        missing = folder / f"{name}.parquet"
        raise UserError(f"{missing} is missing: a comparison needs the samples of the run, not its records alone")
    return table


def _speeds(measured: Measured) -> list[tuple[str, tuple[float, float, float]]]:
    speeds = []
    for point in measured.timed_points:
        if point.interval is not None:
            mode = f", {point.mode}" if point.mode is not None else ""
            speeds.append((f"{point.kind} {point.tokens}, batch {point.batch}{mode}", point.interval))
    return speeds
