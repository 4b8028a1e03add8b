"""Pairs two cells, metric by metric, and tests whether they differ.

Results. `CellResults` holds what a comparison needs of a cell: sizes, answers, likelihoods of windows, speed-ups and
conditions. It holds no path and no host. A text goes by its file's name, and its content by a hash.

    record, samples -> CellResults -> bench.regression.pairs, bench.regression.gate, bench.regression.baseline

Rows. Each metric of two cells gives a row: what the second cell has more, with its interval over the same documents and
windows. bench.regression.gate judges the rows, by chance or against margins.

    CellResults, CellResults -> [ComparedRow]   by the tests of bench.stats

Contrasts. The pairs of cells in a table are tested, and the p values are adjusted for the number of pairs (Holm).

perplexity   Student's test on the windows that both models scored (bench.stats.clusters.paired_perplexity)
average      McNemar's exact test on the documents that both models answered, where every task has as many and each
             answer is right or wrong; else, as for bits per byte of the right answer, a normal test on the paired
             differences, every task weighing alike

Two methods with several calibration seeds are compared seed by seed, at the seeds that both have, of two at least. The
test is then Student's, of the mean difference. It takes in the draw of the calibration beside that of the windows or
documents (bench.stats.draws).

A pair without samples, or with samples of other windows or documents, is tested by the intervals of its two values as
if they were independent. That shows less, since models err on the same documents. Without `intervals` such a pair is
not tested.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.plan.protocol import name_of_text
from bench.records import run_folder
from bench.records.comparability import GATE, conditions_of_gate, identity_of_cell, name_of_identity
from bench.records.frame import STAGES
from bench.records.measured import ANSWER_BPB, is_accuracy, is_accuracy_metric
from bench.records.record import Record, metric_of_task, name_of_model
from bench.records.sample_tables import OF_WINDOWS, is_finite_throughout
from bench.records.samples import Sample, SampleFiles, Samples, find_alike
from bench.stats import clusters, draws
from bench.stats import intervals as stats
from bench.stats.intervals import NORMAL_95, Difference
from methods.console import say
from methods.errors import UserError

SIZES = ("parameters", "weight_bytes", "kv_bytes_per_token", "macs_per_token")
MOST_NATS = 700  # per token; a float still holds its exponential
NLL_DIGITS = 4  # behind the point, of a window's nats: the order of sums changes less
BITS_DIGITS = 4  # likewise of a document's bits per byte


@dataclass(frozen=True)
class Answers:
    """Holds the answers to one task.

    values      a figure per document, of an accuracy from 0 to 1, mostly 1 and 0 for right and wrong
    documents   a hash of all documents in their order
    ids         a hash of each document
    """

    metric: str
    values: NDArray[np.float64]
    documents: str
    version: Any
    fewshot: int
    ids: tuple[str, ...] = ()

    @property
    def is_accuracy(self) -> bool:
        """Return whether the values are accuracies."""
        return is_accuracy_metric(self.metric)

    @property
    def right_or_wrong(self) -> bool:
        """Return whether every value is 1 or 0 for right or wrong."""
        return self.is_accuracy and bool(np.isin(self.values, (0, 1)).all())

    @property
    def unprompted(self) -> Answers:
        """Return the same answers with ids of the documents alone, without their prompts."""
        ids = tuple(document.partition(":")[0] for document in self.ids)
        return replace(self, documents=_digest(ids), ids=ids) if ids else self


@dataclass(frozen=True)
class Windows:
    """Holds nats and scored tokens of each window of a text, and the hash of the tokens and of those that are scored.

    in_a_row  whether the windows follow each other, or else are drawn
    """

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    sha256: str
    in_a_row: bool

    @property
    def perplexity(self) -> float:
        """Return the perplexity per token; infinite where a float cannot hold it."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.nll.sum() / self.tokens.sum()))


@dataclass(frozen=True)
class CellResults:
    """Holds the values and conditions of one cell that a comparison needs.

    identity         label, ratio, seed, and the draw of a random method; cells of equal identity are a pair
    status           "ok", or the word for why there is nothing else
    conditions       by the names of bench.records.comparability.GATE; one that does not apply is absent
    about            model, commit: for a reader
    speed            (speed-up, low, high) by the name of the timed size
    untested         tasks that have no value per document
    bits             bits per byte of the right answer, of each task with choices
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
    return results_by_name


def results_of_cell(record: Record, run: Path, key: str, files: SampleFiles | None = None) -> CellResults:
    """Return the results of one cell, with its samples. Raises UserError where those are missing or damaged."""
    measured = record.measured
    if record.status != "ok":
        return CellResults(
            identity_of_cell(record), record.status, requested_tasks=tuple(record.cell["protocol"].get("tasks", ()))
        )
    folder, files = run_folder.folder_of_samples(run, key), files or SampleFiles()
    tasks, bits = dict[str, Answers | None](), dict[str, Answers]()
    for name, task in measured.get("tasks", {}).items():
        table = _table((record, folder, files), name, task["documents"])
        frame, metric = table.to_pandas(), str(task["main"])
        figures, likely = _column(frame, metric), _column(frame, ANSWER_BPB)
        tasks[name] = _answers_of_task(task, name, frame, metric, figures) if is_finite_throughout(figures) else None
        if is_finite_throughout(likely):
            bits[name] = _answers_of_task(task, name, frame, ANSWER_BPB, likely.round(BITS_DIGITS))
    texts: dict[str, Windows] = {}
    for name, text in measured.get("perplexity", {}).items():
        if Path(name).name in texts:
            raise UserError(f"{run}: two texts are called {Path(name).name}; give them different file names")
        table = _table((record, folder, files), f"perplexity-{name_of_text(name)}", text["windows"], OF_WINDOWS)
        texts[Path(name).name] = _windows(text, table.to_pandas(), f"{run}: {key}: the samples of {name}")
    about = {"model": record.cell.get("display_name"), "commit": record.environment.get("commit")}
    return CellResults(
        identity_of_cell(record),
        "ok",
        conditions_of_gate(record),
        {name: value for name, value in about.items() if value is not None},
        _sizes(measured),
        {name: answers for name, answers in tasks.items() if answers is not None},
        texts,
        dict(_speeds(measured)),
        tuple(name for name, answers in tasks.items() if answers is None),
        bits,
    )


def _column(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Return a column of samples as numbers; a single nan where the column is missing or empty."""
    return frame[name].to_numpy(dtype=float) if name in frame and len(frame) else np.array([np.nan])


def _sizes(measured: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes by name; that of the multiply-accumulates has their context, since they depend on it."""
    sizes = {name: measured[name] for name in SIZES if name in measured}
    if "macs_per_token" in sizes:
        macs, context = sizes.pop("macs_per_token"), measured.get("macs_context")
        sizes["macs_per_token" if context is None else f"macs_per_token in {context}"] = macs
    return sizes


def _answers_of_task(
    task: Mapping[str, Any], name: str, table: pd.DataFrame, metric: str, values: NDArray[np.float64]
) -> Answers:
    """Return the values of a metric of a task with their documents."""
    hashes = [column for column in ("doc_hash", "prompt_hash", "target_hash") if column in table]
    ids = tuple(":".join(map(str, row)) for row in table[hashes].itertuples(index=False))
    ids = ids if hashes else tuple(f"{name} {number}" for number in range(len(table)))
    return Answers(metric, values, _digest(ids), task.get("version"), task.get("fewshot", 0), ids)


def _digest(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _windows(text: Mapping[str, Any], table: pd.DataFrame, where: str) -> Windows:
    """Return the windows of a text. Raises UserError for impossible values; its message begins with `where`."""
    nll, tokens = table["nll"].to_numpy(dtype=float), table["tokens"].to_numpy(dtype=np.int64)
    if not ((tokens > 0).all() and (np.abs(nll) < MOST_NATS * tokens).all()):
        raise UserError(f"{where} have windows without tokens or of more than {MOST_NATS} nats per token")
    return Windows(nll.round(NLL_DIGITS), tokens, text["sha256"], not text["drawn"])


def _table(cell: tuple[Record, Path, SampleFiles], name: str, rows: int, needed: Sequence[str] = ()) -> Any:
    """Return the pyarrow.Table of one task or text of a cell.

    cell    its record, the folder of its samples, and their reader
    rows    the number of rows that the record names
    needed  columns that it has to have

    Raises UserError where the table is missing, damaged, not that of the record, of another number of rows, or without
    a needed column.
    """
    record, folder, files = cell
    table = files.table(record, folder, name)
    if table is None:
        missing = folder / f"{name}.parquet"
        raise UserError(f"{missing} is missing: a comparison needs the samples of the run, not its records alone")
    if table.num_rows != rows:
        raise UserError(
            f"the samples {name} of {folder} have {table.num_rows} rows, and the record {rows}; copy the run again"
        )
    if lacking := [column for column in needed if column not in table.column_names]:
        raise UserError(f"the samples {name} of {folder} lack the column {lacking[0]!r}; copy the run again")
    return table


def _speeds(measured: Mapping[str, Any]) -> list[tuple[str, tuple[float, float, float]]]:
    speeds = []
    for point in measured.get("speed", {}).get("points", ()):
        if "speedup_low" in point:
            mode = f", {point['mode']}" if "mode" in point else ""
            name = f"{point['kind']} {point[STAGES[point['kind']]]}, batch {point['batch']}{mode}"
            speeds.append((name, (point["speedup"], point["speedup_low"], point["speedup_high"])))
    return speeds


BITS = ("bits", "bits of a task")
OF_A_TASK = ("metric", "documents", "task_version", "fewshot")
FIELDS = (*dict.fromkeys(name for names in GATE.values() for name in names), *OF_A_TASK, "text")


def parse_allowed(text: str) -> tuple[str, ...]:
    """Return the fields of a text: 'torch,cpu' -> ('torch', 'cpu'). Raises UserError for a name that is no field."""
    names = tuple(filter(None, (piece.strip() for piece in text.split(","))))
    for name in names:
        if name not in FIELDS:
            raise UserError(f"{name!r} is no field that may differ; there are {', '.join(FIELDS)}")
    return names


@dataclass(frozen=True)
class ComparedRow:
    """Holds one metric of two cells.

    kind            "size", "accuracy" and "bits" (over the documents of all tasks), "task" and "bits of a task", "text"
                    or "speed"; bits are those per byte of the right answer
    before, after   its figures; None where a cell lacks it
    difference      a share for accuracy and task, a ratio for text and speed, else as the figure; None where there is
                    nothing to pair
    lost, gained    documents that only the first, only the second cell gets right
    is_accuracy     whether a task's figures are one, so that more is better
    differs         conditions in which the cells differ, as (field, words)
    """

    kind: str
    metric: str
    before: float | None
    after: float | None
    difference: Difference | None = None
    lost: int | None = None
    gained: int | None = None
    count: int = 0
    is_accuracy: bool = False
    differs: tuple[tuple[str, str], ...] = ()

    @property
    def task(self) -> str:
        """Return the task of a row of a task; its metric is the task's name with that of the value."""
        return self.metric.rpartition(" ")[0]

    @property
    def change(self) -> float:
        """Return the change in shares, bits or the logarithm of a ratio; above 0 the second cell is better."""
        return self.changes[0]

    @property
    def changes(self) -> tuple[float, float, float]:
        """Return (change, low, high): `change` with its 95 % interval."""
        assert self.difference is not None
        interval = (self.difference.estimate, self.difference.low, self.difference.high)
        if self.kind in ("accuracy", "task"):
            return interval
        if self.kind in BITS:
            return -interval[0], -interval[2], -interval[1]
        with np.errstate(divide="ignore"):
            a, b, c = np.log(interval).tolist()
        return (-a, -c, -b) if self.kind == "text" else (a, b, c)

    def detectable(self, level: float, margin: float = 0.0) -> float | None:
        """Return the smallest true change that the row's test shows at this level with the probability POWER.

        It is in the scale of `change`, and None where nothing is tested or no change is shown that often.

        margin  the least measured change that counts
        """
        difference = self.difference
        if difference is None:
            return None
        if self.lost is not None and self.gained is not None and difference.stderr is None:
            return stats.detectable_share(self.count, (self.lost + self.gained) / self.count, level, margin=margin)
        return (
            None
            if difference.stderr is None
            else stats.detectable_effect(difference.stderr, difference.freedom, level, margin)
        )


def compare_cells(before: CellResults, after: CellResults, allowed: Collection[str] = ()) -> list[ComparedRow]:
    """Return a row for every metric that either cell has. Conditions that are `allowed` to differ are ignored."""
    rows = []
    for name in dict.fromkeys([*after.sizes, *before.sizes]):
        differs = _conditions("size", before, after, allowed)
        rows.append(ComparedRow("size", name, before.sizes.get(name), after.sizes.get(name), differs=differs))
    rows += [*_task_rows(before, after, allowed), *_bits_rows(before, after, allowed)]
    for name in dict.fromkeys([*after.texts, *before.texts]):
        rows.append(_text(name, before, after, allowed))
    for name in dict.fromkeys([*after.speed, *before.speed]):
        rows.append(_speed(name, before, after, allowed))
    return rows


def _conditions(
    kind: str, before: CellResults, after: CellResults, allowed: Collection[str]
) -> tuple[tuple[str, str], ...]:
    """Return the conditions of a kind that differ; the calibration counts only where both cells used one."""
    old, new = before.conditions, after.conditions
    names = [name for name in GATE[kind] if name not in allowed and old.get(name) != new.get(name)]
    both = "calibration" in old and "calibration" in new
    return tuple((name, _words(old.get(name), new.get(name))) for name in names if both or name != "calibration")


def _words(before: Any, after: Any) -> str:
    """Return two values in words, as in '2.12 and 2.13'; of hashes the first digits."""
    old, new = (str("none" if value is None else value) for value in (before, after))
    return " and ".join(text[:12] if len(text) == 64 else text for text in (old, new))


def _task_rows(before: CellResults, after: CellResults, allowed: Collection[str]) -> list[ComparedRow]:
    """Return a row for the accuracy over all tasks that both cells have, then a row for each task."""
    common = _conditions("task", before, after, allowed)
    single = []
    paired: list[tuple[Answers, Answers]] = []
    for name in dict.fromkeys([*after.tasks, *before.tasks]):
        old, new = before.tasks.get(name), after.tasks.get(name)
        if old is None or new is None:
            alone = old or new
            assert alone is not None
            left, right = (None if answers is None else float(answers.values.mean()) for answers in (old, new))
            row = ComparedRow("task", f"{name} {alone.metric}", left, right, is_accuracy=alone.is_accuracy)
            single.append(replace(row, differs=_disjoint("documents", before.tasks, after.tasks, allowed)))
            continue
        differs = common + _task_differs(old, new, allowed)
        if not differs:
            old, new = _same_documents(old, new)
        if old.is_accuracy and new.is_accuracy:
            paired.append((old, new))
        single.append(_row_of_answers("task", f"{name} {old.metric}", [(old, new)], differs))
    if not paired:
        return single
    differs = tuple(dict.fromkeys(pair for row in single if row.is_accuracy for pair in row.differs))
    return [_row_of_answers("accuracy", "accuracy", paired, differs), *single]


def _bits_rows(before: CellResults, after: CellResults, allowed: Collection[str]) -> list[ComparedRow]:
    """Return a row for the answers' bits per byte over all tasks that both cells have, then a row for each."""
    common = _conditions("task", before, after, allowed)
    single, paired = list[ComparedRow](), list[tuple[Answers, Answers]]()
    for name in (name for name in after.bits if name in before.bits):
        old, new = before.bits[name], after.bits[name]
        differs = common + _task_differs(old, new, allowed)
        paired.append((old, new) if differs else _same_documents(old, new))
        single.append(_row_of_answers("bits of a task", f"{name} bpb", paired[-1:], differs))
    if paired:
        differs = tuple(dict.fromkeys(pair for row in single for pair in row.differs))
        return [_row_of_answers("bits", "answer bpb", paired, differs), *single]
    left, right = (_mean_bits(side) for side in (before, after))
    differs = _disjoint("documents", before.bits, after.bits, allowed)
    only = ComparedRow("bits", "answer bpb", left, right, differs=differs)
    return [only] if left is not None or right is not None else []


def _mean_bits(cell: CellResults) -> float | None:
    """Return the mean bits per byte over the documents of all tasks of a cell; None without any."""
    every = [answers.values for answers in cell.bits.values()]
    return float(np.concatenate(every).mean()) if every else None


def _disjoint(
    field: str, before: Mapping[str, Any], after: Mapping[str, Any], allowed: Collection[str]
) -> tuple[tuple[str, str], ...]:
    """Return the difference of a field where the cells share no text or task of a kind; else nothing."""
    if field in allowed or not before or not after or before.keys() & after.keys():
        return ()
    return ((field, f"{', '.join(before)} and {', '.join(after)}"),)


def _task_differs(before: Answers, after: Answers, allowed: Collection[str]) -> tuple[tuple[str, str], ...]:
    if "fewshot" in allowed:
        before, after = _without_prompts(before, after)
    pairs = {
        "metric": (before.metric, after.metric),
        "documents": (before.documents, after.documents),
        "task_version": (before.version, after.version),
        "fewshot": (before.fewshot, after.fewshot),
    }
    return tuple((name, _words(*pair)) for name, pair in pairs.items() if pair[0] != pair[1] and name not in allowed)


def _same_documents(before: Answers, after: Answers) -> tuple[Answers, Answers]:
    """Return both on the documents that they share. Raises UserError where they share none."""
    before, after = _without_prompts(before, after)
    if before.documents == after.documents:
        return before, after
    shared = sorted(set(before.ids) & set(after.ids))
    if not shared:
        raise UserError("the cells share no document, so that nothing can be paired")
    return _only(before, shared), _only(after, shared)


def _without_prompts(before: Answers, after: Answers) -> tuple[Answers, Answers]:
    """Return both; without prompts where their numbers of examples differ, since no prompt is equal then."""
    return (before, after) if before.fewshot == after.fewshot else (before.unprompted, after.unprompted)


def _only(answers: Answers, ids: Sequence[str]) -> Answers:
    place = {document: position for position, document in enumerate(answers.ids)}
    values = answers.values[[place[document] for document in ids]]
    return Answers(answers.metric, values, "", answers.version, answers.fewshot, tuple(ids))


def _row_of_answers(
    kind: str, metric: str, pairs: Sequence[tuple[Answers, Answers]], differs: tuple[Any, ...]
) -> ComparedRow:
    """Return a row over the documents of the pairs' tasks.

    The test is McNemar's where an answer is right or wrong, Student's for bits and accuracies of other values, and one
    by resampling for any other metric.
    """
    before, after = (np.concatenate([pair[side].values for pair in pairs]) for side in (0, 1))
    accuracy = all(answers.is_accuracy for pair in pairs for answers in pair)
    simple = all(answers.right_or_wrong for pair in pairs for answers in pair)
    figures = float(before.mean()), float(after.mean())
    if differs:
        return ComparedRow(kind, metric, *figures, count=len(after), is_accuracy=accuracy, differs=differs)
    ids = [document.partition(":")[0] for old, new in pairs for document in old.ids or new.ids]
    groups = ids if len(ids) == len(before) else list(range(len(before)))
    if kind in BITS or (accuracy and not simple):
        difference = clusters.paired_clusters(before, after, groups) if len(set(groups)) > 1 else None
        return ComparedRow(kind, metric, *figures, difference, count=len(before), is_accuracy=accuracy)
    if not simple:
        difference = clusters.paired_resampled(before, after, groups) if len(set(groups)) > 1 else None
        return ComparedRow(kind, metric, *figures, difference, count=len(before))
    if len(set(groups)) < len(groups):  # a document that comes twice is one observation
        difference = clusters.paired_clusters(before, after, groups)
    else:
        difference = stats.paired_shares(before, after)
    lost, gained, _ = stats.count_flips(before, after)
    return ComparedRow(kind, metric, *figures, difference, lost, gained, len(before), is_accuracy=True)


def _text(name: str, before: CellResults, after: CellResults, allowed: Collection[str]) -> ComparedRow:
    old, new = before.texts.get(name), after.texts.get(name)
    left, right = (None if windows is None else windows.perplexity for windows in (old, new))
    differs = _conditions("text", before, after, allowed)
    difference = None
    if old is None or new is None:
        differs = _disjoint("text", before.texts, after.texts, allowed)
    elif old.sha256 != new.sha256:
        differs += () if "text" in allowed else (("text", _words(old.sha256, new.sha256)),)
    elif not np.array_equal(old.tokens, new.tokens):
        differs += (("text", "windows of other tokens under one hash"),)
    elif not differs:
        difference = _perplexity(old, new)
    return ComparedRow("text", f"perplexity {name}", left, right, difference, differs=differs)


def _perplexity(before: Windows, after: Windows) -> Difference | None:
    """Return how the perplexities differ; None for a single window with two likelihoods, since it has no interval."""
    if len(before.nll) > 1:
        return clusters.paired_perplexity(before.nll, after.nll, before.tokens, in_a_row=before.in_a_row)
    return Difference(1.0, 1.0, 1.0, 1.0) if np.array_equal(before.nll, after.nll) else None


def _speed(name: str, before: CellResults, after: CellResults, allowed: Collection[str]) -> ComparedRow:
    """Return the row of two speed-ups over the dense model, whose measurements are independent."""
    old, new = before.speed.get(name), after.speed.get(name)
    left, right = (None if speed is None else speed[0] for speed in (old, new))
    if old is None or new is None:
        return ComparedRow("speed", f"speed, {name}", left, right)
    if differs := _conditions("speed", before, after, allowed):
        return ComparedRow("speed", f"speed, {name}", left, right, differs=differs)
    estimate, low, high = stats.ratio_of_ratios(old, new)
    return ComparedRow("speed", f"speed, {name}", left, right, Difference(estimate, low, high, float("nan")))


LEVEL = 0.05  # of a p value that counts, over all pairs
NORMAL = NormalDist()


@dataclass(frozen=True)
class Contrast:
    """Holds the test of the difference of two cells: the second beside the first.

    estimate   how many times the perplexity, or the difference of the averages
    p          two-sided, adjusted for all pairs
    test       Student's on windows, McNemar's or a normal one on documents, by the draws of several seeds beside these,
               or by the two intervals
    low, high  the 95 % interval of the estimate, not adjusted; of an average with `bounds` only
    """

    estimate: float
    p: float
    test: Literal["student", "mcnemar", "normal", "draws", "intervals"]
    low: float = math.nan
    high: float = math.nan

    @property
    def paired(self) -> bool:
        """Return whether the test pairs both models on the same windows or documents."""
        return self.test != "intervals"


Pair = tuple[int, int]  # the places of two records
Contrasts = dict[Pair, Contrast]
Records = Sequence[Record] | Mapping[int, Record]
Seeds = Mapping[int, Mapping[int, int]]  # {place that stands for a model of several seeds: {seed: its place}}
Cells = Mapping[Pair, Sequence[Pair]]  # {pair of models: the pair of their cells for each seed that both have}
Numbers = NDArray[np.float64]


def pairs_of(numbers: Sequence[int]) -> list[Pair]:
    """Return every pair (a, b), a before b in `numbers`."""
    return list(combinations(numbers, 2))


def contrast_of_perplexities(
    records: Records,
    pairs: Sequence[Pair],
    samples: Samples,
    text: str,
    *,
    intervals: bool = True,
    seeds: Seeds | None = None,
) -> Contrasts:
    """Return {pair: contrast} of cells with a finite perplexity of the text; without `intervals` only of those paired.

    seeds  of the places that stand for a model of several seeds
    """
    cells = _cells(pairs, seeds or {})
    figures = {n: records[n].measured.get("perplexity", {}).get(text, {}) for n in _places(_flat(cells))}
    known = {n for n, figure in figures.items() if math.isfinite(figure.get("perplexity", math.inf))}
    cells = {pair: sides for pair, sides in cells.items() if all(n in known for side in sides for n in side)}
    windows = {n: samples.of(n, f"perplexity-{name_of_text(text)}", "nll") for n in _places(_flat(cells))}
    conditions = {n: [figures[n].get(name) for name in ("sha256", "window", "stride")] for n in windows}
    contrasts: Contrasts = {}
    for together in _together(cells, find_alike(windows, conditions)):
        place = cells[together[0]][0][0]
        tokens, row = _known(windows, place).units.to_pylist(), not figures[place]["drawn"]
        before, after = (
            np.array([[_known(windows, cell[side]).figures for cell in cells[pair]] for pair in together])
            for side in (0, 1)
        )
        if before.shape[1] == 1:
            tested = zip(*clusters.paired_perplexities(before[:, 0], after[:, 0], tokens, in_a_row=row), strict=True)
            for pair, (estimate, low, high, p) in zip(together, tested, strict=True):
                contrasts[pair] = Contrast(float(estimate), float(p), "student", float(low), float(high))
            continue
        for pair, difference in zip(together, after - before, strict=True):
            _, stderr, freedom = clusters.ratio_stderr(difference.mean(0), tokens, in_a_row=row)
            logs = (difference.sum(1) / sum(tokens)).tolist()
            contrasts[pair] = _as_ratio(draws.mean_difference(logs, stderr, freedom), "draws")
    rest = [pair for pair in cells if intervals and pair not in contrasts]
    return _adjust_p(cells, contrasts | {pair: _from_intervals(figures, cells[pair]) for pair in rest})


def contrast_of_averages(
    records: Records,
    pairs: Sequence[Pair],
    samples: Samples,
    tasks: Sequence[str],
    metric: str = "",
    *,
    intervals: bool = True,
    bounds: bool = False,
    seeds: Seeds | None = None,
) -> Contrasts:
    """Return {pair: contrast} of cells that measured every one of the tasks: by `metric`, else by the same accuracy.

    bounds  also low and high of paired tests, two milliseconds for each (bench.stats.intervals.paired_share_interval)
    seeds   of the places that stand for a model of several seeds
    """
    contrasts: Contrasts = {}
    cells = _cells(pairs, seeds or {})
    measured = {n: records[n].measured.get("tasks", {}) for n in _places(_flat(cells))}
    whole = {
        n: results for n, results in measured.items() if all(t in results and _has(results[t], metric) for t in tasks)
    }
    mains = {n: [metric or results[task]["main"] for task in tasks] for n, results in whole.items()}
    cells = {
        pair: sides
        for pair, sides in cells.items()
        if tasks and all(a in whole and b in whole and mains[a] == mains[b] for a, b in sides)
    }
    figures = {
        n: [metric_of_task(whole[n][task], main) for task, main in zip(tasks, mains[n], strict=True)] for n in whole
    }
    answers = [
        {n: samples.of(n, task, mains[n][place]) for n in _places(_flat(cells))} for place, task in enumerate(tasks)
    ]
    by_task = [find_alike(given, mains) for given in answers]
    shared = {n: tuple(groups[n] for groups in by_task) for n in _places(_flat(cells)) if all(n in g for g in by_task)}
    alone = {sides[0]: pair for pair, sides in cells.items() if len(sides) == 1}
    for together in _together({side: [side] for side in alone}, shared):
        paired = _paired_averages(together, answers, bounds=bounds)
        contrasts |= {alone[side]: contrast for side, contrast in paired.items()}
    for pair, sides in cells.items():
        if len(sides) > 1 and all(a in shared and shared[a] == shared.get(b) for a, b in sides):
            contrasts[pair] = _over_draws(sides, answers)
    rest = [pair for pair in cells if intervals and pair not in contrasts]
    return _adjust_p(cells, contrasts | {pair: _independent_average(figures, cells[pair]) for pair in rest})


def _has(task: Mapping[str, Any], metric: str) -> bool:
    """Return whether a task was measured by a metric, or without one by an accuracy."""
    return metric_of_task(task, metric) is not None if metric else is_accuracy(task)


def _cells(pairs: Sequence[Pair], seeds: Seeds) -> Cells:
    """Return the pairs of cells of each pair, without pairs of models that have too few seeds in common.

    A single seed is too few where either model has several: its test would stand beside means of others.
    """
    cells = {}
    for a, b in pairs:
        first, second = seeds.get(a, {}), seeds.get(b, {})
        common = [(first[seed], second[seed]) for seed in first if seed in second]
        if not (first and second):
            cells[a, b] = [(a, b)]
        elif len(common) > 1 or len(first) == len(second) == len(common):
            cells[a, b] = common
    return cells


def _flat(cells: Cells) -> list[Pair]:
    return [side for sides in cells.values() for side in sides]


def _places(pairs: Sequence[Pair]) -> list[int]:
    return list(dict.fromkeys(place for pair in pairs for place in pair))


def _together(cells: Cells, groups: Mapping[int, Any]) -> Iterator[list[Pair]]:
    """Yield lists of pairs whose cells are all of one group, a list for each group and number of seeds."""
    pairs_by_group: dict[Any, list[Pair]] = {}
    for pair, sides in cells.items():
        kinds = {groups.get(place) for side in sides for place in side}
        if len(kinds) == 1 and None not in kinds:
            pairs_by_group.setdefault((kinds.pop(), len(sides)), []).append(pair)
    yield from pairs_by_group.values()


def _known(samples: Mapping[int, Sample | None], place: int) -> Sample:
    sample = samples[place]
    assert sample is not None
    return sample


def _from_intervals(figures: Mapping[int, Mapping[str, Any]], sides: Sequence[Pair]) -> Contrast | None:
    """Return the contrast of two perplexities as if independent, on logarithms; half an interval is 1.96 stderr."""
    both = [(figures[a], figures[b]) for a, b in sides]
    if any(figure.get(f"perplexity_{end}") is None for pair in both for figure in pair for end in ("low", "high")):
        return None
    logs = [math.log(second["perplexity"] / first["perplexity"]) for first, second in both]
    stderr = fmean(
        math.hypot(
            *(math.log(figure["perplexity_high"] / figure["perplexity_low"]) / (2 * NORMAL_95) for figure in pair)
        )
        for pair in both
    )
    if len(logs) > 1:
        return _as_ratio(draws.mean_difference(logs, stderr), "intervals")
    (log,), half = logs, NORMAL_95 * stderr
    return _as_ratio((log, log - half, log + half, _normal(log, stderr)), "intervals")


def _as_ratio(log_ratio: tuple[float, float, float, float], test: Literal["draws", "intervals"]) -> Contrast:
    """Return the contrast of a mean logarithm with its interval and its p."""
    *logs, p = log_ratio
    with np.errstate(over="ignore"):  # an endless interval is one
        estimate, low, high = np.exp(logs).tolist()
    return Contrast(estimate, p, test, low, high)


TaskSamples = Sequence[Mapping[int, Sample | None]]  # for each task {place: sample}


def _paired_averages(pairs: Sequence[Pair], answers: TaskSamples, *, bounds: bool) -> Contrasts:
    """Test pairs that answered the same documents of every task."""
    sizes = {len(_known(given, pairs[0][0]).figures) for given in answers}
    plain = {n for n in _places(pairs) if all(np.isin(_known(given, n).figures, (0, 1)).all() for given in answers)}
    exact = [(a, b) for a, b in pairs if len(sizes) == 1 and a in plain and b in plain]
    counted = set(exact)
    rest = [pair for pair in pairs if pair not in counted]
    return _by_mcnemar(exact, answers, bounds=bounds) | _by_normal(rest, answers)


def _tables(pairs: Sequence[Pair], answers: TaskSamples) -> tuple[list[Numbers], list[int], list[int]]:
    """Return for each task the answers, a row for each cell, and the rows of each pair's first and second cell."""
    places = _places(pairs)
    row = {place: number for number, place in enumerate(places)}
    tables = [np.stack([_known(given, place).figures for place in places]) for given in answers]
    return tables, [row[a] for a, _ in pairs], [row[b] for _, b in pairs]


def _by_mcnemar(pairs: Sequence[Pair], answers: TaskSamples, *, bounds: bool) -> Contrasts:
    """Test pairs with every document weighing alike; counts of documents are exact in float64."""
    if not pairs:
        return {}
    tables, a, b = _tables(pairs, answers)
    right = np.concatenate(tables, axis=1)
    both, total = right @ right.T, right.sum(1)
    lost, gained = total[a] - both[a, b], total[b] - both[a, b]
    n = right.shape[1]
    sides = list(zip(lost.astype(int).tolist(), gained.astype(int).tolist(), strict=True))
    ends = [stats.paired_share_interval(*side, n) if bounds else (math.nan, math.nan) for side in sides]
    results = zip(pairs, (gained - lost) / n, stats.mcnemars(lost, gained), ends, strict=True)
    return {pair: Contrast(float(estimate), float(p), "mcnemar", *end) for pair, estimate, p, end in results}


def _by_normal(pairs: Sequence[Pair], answers: TaskSamples) -> Contrasts:
    """Test pairs with every task weighing alike."""
    if not pairs:
        return {}
    tables, a, b = _tables(pairs, answers)
    apart = [table[b] - table[a] for table in tables]
    means = np.mean([difference.mean(1) for difference in apart], axis=0).tolist()
    stderrs = (
        np.sqrt(sum(difference.var(1, ddof=1) / difference.shape[1] for difference in apart)) / len(apart)
    ).tolist()
    results = zip(pairs, means, stderrs, strict=True)
    return {
        pair: Contrast(mean, _normal(mean, stderr), "normal", mean - NORMAL_95 * stderr, mean + NORMAL_95 * stderr)
        for pair, mean, stderr in results
    }


def _over_draws(sides: Sequence[Pair], answers: TaskSamples) -> Contrast:
    """Test two models of several seeds, with every task weighing alike.

    Documents that are the same at each seed are averaged over the seeds; of others each seed is a sample of its own.
    """
    differences = [[_known(given, b).figures - _known(given, a).figures for a, b in sides] for given in answers]
    values = np.mean([[difference.mean() for difference in task] for task in differences], axis=0).tolist()
    variance = 0.0
    for task, given in zip(differences, answers, strict=True):
        units = [_known(given, a).units for a, _ in sides]
        same = all(unit.equals(units[0]) for unit in units)
        several = [np.mean(task, axis=0)] if same else task
        variance += sum(difference.var(ddof=1) / len(difference) for difference in several) / len(several) ** 2
    estimate, low, high, p = draws.mean_difference(values, math.sqrt(variance) / len(differences))
    return Contrast(estimate, p, "draws", low, high)


def _independent_average(figures: Mapping[int, Sequence[Mapping[str, Any]]], sides: Sequence[Pair]) -> Contrast | None:
    """Test two averages as if independent, by the standard errors of the figures of their tasks."""
    known = {n: figures[n] for side in sides for n in side}
    if any(figure.get("stderr") is None for several in known.values() for figure in several):
        return None
    averages = {n: fmean(figure["value"] for figure in several) for n, several in known.items()}
    stderrs = {n: stats.average_stderr([figure["stderr"] for figure in several]) for n, several in known.items()}
    differences = [averages[b] - averages[a] for a, b in sides]
    stderr = fmean(math.hypot(stderrs[a], stderrs[b]) for a, b in sides)
    if len(sides) > 1:
        estimate, _, _, p = draws.mean_difference(differences, stderr)
        return Contrast(estimate, p, "intervals")
    return Contrast(differences[0], _normal(differences[0], stderr), "intervals")


def _normal(estimate: float, stderr: float) -> float:
    """Return the p value of no difference by a normal distribution."""
    return 2 * NORMAL.cdf(-abs(estimate) / stderr) if stderr else float(estimate == 0)


def _adjust_p(pairs: Iterable[Pair], contrasts: Mapping[Pair, Contrast | None]) -> Contrasts:
    """Return the contrasts in the order of the pairs, with p values adjusted for their number."""
    known = {pair: contrast for pair in pairs if (contrast := contrasts.get(pair)) is not None}
    adjusted = stats.holm([contrast.p for contrast in known.values()])
    return {pair: replace(contrast, p=p) for (pair, contrast), p in zip(known.items(), adjusted, strict=True)}


def is_shown_higher(contrasts: Contrasts, rows: Sequence[int], than: Sequence[int], *, neutral: float) -> bool:
    """Return whether each cell of `rows` is shown to have more than each of `than`; equal cells have `neutral`.

    Several cells are the draws of a random method: the claim is then for every one of them.
    """
    return all(_more(contrasts, a, b, neutral) for a in rows for b in than)


def _more(contrasts: Contrasts, a: int, b: int, neutral: float) -> bool:
    if (b, a) in contrasts:
        return contrasts[b, a].p < LEVEL and contrasts[b, a].estimate > neutral
    return (a, b) in contrasts and contrasts[a, b].p < LEVEL and contrasts[a, b].estimate < neutral
