"""Reads what a cell leaves for a comparison: sizes, answers, likelihoods of windows, speed-ups, conditions.

    record, samples -> CellResults -> bench.regression.compared_rows, bench.regression.gate, bench.regression.baseline

Holds no path and no host: texts go by their file's name and what they contain by a hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.records import run_folder
from bench.records.columns import STAGES
from bench.records.comparability import gate_conditions, identity, name_of
from bench.records.record import ANSWER_BPB, Record, display_name, is_accuracy_metric, text_name
from bench.records.sample_tables import OF_WINDOWS, are_figures
from bench.records.samples import SampleFiles
from bench.system.console import say
from methods.errors import UserError

SIZES = ("parameters", "weight_bytes", "kv_bytes_per_token", "macs_per_token")
MOST_NATS = 700  # per token, whose exponential a float still holds
NLL_DIGITS = 4  # behind the point, of a window's nats: what differs by less is the order of sums
BITS_DIGITS = 4  # likewise of a document's bits per byte


@dataclass(frozen=True)
class Answers:
    """Hold the answers to one task.

    values      a figure per document, of an accuracy from 0 to 1, mostly 1 and 0 for right and wrong
    documents   a hash of what was asked, in its order; ids a hash of each document
    """

    metric: str
    values: NDArray[np.float64]
    documents: str
    version: Any
    fewshot: int
    ids: tuple[str, ...] = ()

    @property
    def is_accuracy(self) -> bool:
        return is_accuracy_metric(self.metric)

    @property
    def right_or_wrong(self) -> bool:
        return self.is_accuracy and bool(np.isin(self.values, (0, 1)).all())

    @property
    def unprompted(self) -> Answers:
        """Return the same with documents told apart by what they are, and not by how they were asked."""
        ids = tuple(document.partition(":")[0] for document in self.ids)
        return replace(self, documents=_digest(ids), ids=ids) if ids else self


@dataclass(frozen=True)
class Windows:
    """Hold nats and scored tokens of each window of a text, and the hash of the tokens with what is scored of them.

    in_a_row  whether the windows follow each other, or else are drawn
    """

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    sha256: str
    in_a_row: bool

    @property
    def perplexity(self) -> float:
        with np.errstate(over="ignore"):
            return float(np.exp(self.nll.sum() / self.tokens.sum()))


@dataclass(frozen=True)
class CellResults:
    """Hold what one cell leaves for a comparison.

    identity    label, ratio, seed, and the draw of a random method: what pairs it with another
    status      "ok", or the word for why there is nothing else
    conditions  by the names of bench.records.comparability.GATE; what does not apply is absent
    about       model, commit: for a reader
    bits        bits per byte of the right answer, of each task with choices
    untested    tasks that have no figure per document
    asked       tasks that a cell without figures was asked for
    speed       (speed-up, low, high) by what was timed
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
    asked: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return name_of(self.identity)


def of_run(run: Path, told: Callable[[str], None] = say) -> dict[str, CellResults]:
    """Read the results of every cell by its name. Raises UserError where two cells have the same name.

    told  is told of each record that is left out, in a line
    """
    found: dict[str, CellResults] = {}
    files = SampleFiles()
    records = run_folder.records(run, told)
    for key, record in records.items():
        results = of_cell(record, run, key, files)
        if results.name in found:
            models = list(dict.fromkeys(map(display_name, records.values())))
            which = f"of {' and '.join(models)}" if len(models) > 1 else "which other settings set apart"
            raise UserError(f"{run} has several cells {results.name!r}, {which}; name one as RUN/CELL")
        found[results.name] = results
    return found


def of_cell(record: Record, run: Path, key: str, files: SampleFiles | None = None) -> CellResults:
    """Read the results of one cell, with its samples. Raises UserError where those are missing or damaged."""
    measured = record.measured
    if record.status != "ok":
        return CellResults(identity(record), record.status, asked=tuple(record.cell["protocol"].get("tasks", ())))
    folder, files = run_folder.samples_folder(run, key), files or SampleFiles()
    tasks, bits = dict[str, Answers | None](), dict[str, Answers]()
    for name, task in measured.get("tasks", {}).items():
        table = _table((record, folder, files), name, task["documents"])
        frame, metric = table.to_pandas(), str(task["main"])
        figures, likely = _column(frame, metric), _column(frame, ANSWER_BPB)
        tasks[name] = _answers(task, name, frame, metric, figures) if are_figures(figures) else None
        if are_figures(likely):
            bits[name] = _answers(task, name, frame, ANSWER_BPB, likely.round(BITS_DIGITS))
    texts: dict[str, Windows] = {}
    for name, text in measured.get("perplexity", {}).items():
        if Path(name).name in texts:
            raise UserError(f"{run}: two texts are called {Path(name).name}; give them different file names")
        table = _table((record, folder, files), f"perplexity-{text_name(name)}", text["windows"], OF_WINDOWS)
        texts[Path(name).name] = _windows(text, table.to_pandas(), f"{run}: {key}: the samples of {name}")
    about = {"model": record.cell.get("display_name"), "commit": record.environment.get("commit")}
    return CellResults(
        identity(record),
        "ok",
        gate_conditions(record),
        {name: value for name, value in about.items() if value is not None},
        _sizes(measured),
        {name: found for name, found in tasks.items() if found is not None},
        texts,
        dict(_speeds(measured)),
        tuple(name for name, found in tasks.items() if found is None),
        bits,
    )


def _column(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Return a column of samples as numbers; a single nan where there is none or it is empty."""
    return frame[name].to_numpy(dtype=float) if name in frame and len(frame) else np.array([np.nan])


def _sizes(measured: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes, with the context of the multiply-accumulates in their name, since it sets them."""
    found = {name: measured[name] for name in SIZES if name in measured}
    if "macs_per_token" in found:
        macs, context = found.pop("macs_per_token"), measured.get("macs_context")
        found["macs_per_token" if context is None else f"macs_per_token in {context}"] = macs
    return found


def _answers(
    task: Mapping[str, Any], name: str, table: pd.DataFrame, metric: str, values: NDArray[np.float64]
) -> Answers:
    """Return the values of a metric of a task with the documents that they are of."""
    hashes = [column for column in ("doc_hash", "prompt_hash", "target_hash") if column in table]
    ids = tuple(":".join(map(str, row)) for row in table[hashes].itertuples(index=False))
    ids = ids if hashes else tuple(f"{name} {number}" for number in range(len(table)))
    return Answers(metric, values, _digest(ids), task.get("version"), task.get("fewshot", 0), ids)


def _digest(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _windows(text: Mapping[str, Any], table: pd.DataFrame, where: str) -> Windows:
    """Return the windows of a text. Raises UserError, which begins with `where` they stand, for what are none."""
    nll, tokens = table["nll"].to_numpy(dtype=float), table["tokens"].to_numpy(dtype=np.int64)
    if not ((tokens > 0).all() and (np.abs(nll) < MOST_NATS * tokens).all()):
        raise UserError(f"{where} have windows without tokens or of more than {MOST_NATS} nats per token")
    return Windows(nll.round(NLL_DIGITS), tokens, text["sha256"], not text["drawn"])


def _table(cell: tuple[Record, Path, SampleFiles], name: str, rows: int, needed: Sequence[str] = ()) -> Any:
    """Read the pyarrow.Table of one sample of a cell.

    cell  its record, the folder of its samples, and what reads those

    Raises UserError where it is missing, damaged, not that of the record, not of so many rows, or without a column that
    is `needed`.
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
    found = []
    for point in measured.get("speed", {}).get("points", ()):
        if "speedup_low" in point:
            mode = f", {point['mode']}" if "mode" in point else ""
            name = f"{point['kind']} {point[STAGES[point['kind']]]}, batch {point['batch']}{mode}"
            found.append((name, (point["speedup"], point["speedup_low"], point["speedup_high"])))
    return found
