"""Sends the cells of a run to a tracker as they end: `open_tracker`, then a `RunTracking` for the run.

A `TrackerEntry` holds what a tracker shows of a record: parameters, metrics and the learning curve. Metrics have the
names of the columns of `bench.read` (bench.records.frame), with unit and task: perplexity_wiki, answer_bpb_piqa,
decode_ms_per_token. Parameters have such names too, and all further settings have dotted names: parameters.C,
protocol.window, healing.rank, environment.versions.torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from bench.plan.kinds import to_plain
from bench.records import run_folder
from bench.records.comparability import find_dense_peer, flatten, setups_of_records
from bench.records.frame import rows_of_records
from bench.records.measured import LearningPoint
from bench.records.record import FAILED, Record
from bench.records.samples import Samples
from methods.errors import UserError, first_line_of
from methods.files import write_atomically
from reports.page import page

PROJECT = "prunebench"  # of a tracker, unless the tracker's own settings name another
PAGE = "report.html"


class Tracker(Protocol):
    """Keeps runs in one tracker."""

    @property
    def where(self) -> str:
        """Return the place that keeps the runs, in words for a message."""

    def log(self, entry: TrackerEntry, page: Path) -> bool:
        """Keep a cell with its page, in place of an earlier record of the cell.

        Returns False if this very record is kept already, and True otherwise. Raises the tracker's own errors.
        """


def require(name: str) -> None:
    """Raise UserError if the package of a tracker of reports.tracking.TRACKERS is missing."""
    if find_spec(name) is None:
        raise UserError(f"--track {name} needs the package {name}: pip install 'prunebench[{name}]'")


def open_tracker(name: str) -> Tracker:
    """Open the tracker of a name in reports.tracking.TRACKERS, and return it.

    Raises UserError if its package is missing, or if it cannot be written to.
    """
    require(name)
    try:
        with redirect_stdout(sys.stderr):
            stores = import_module("reports.tracking.stores")
            opened: Tracker = getattr(stores, f"open_{name}")(PROJECT)
            return opened
    except UserError:
        raise
    except Exception as error:  # each tracker has classes of errors of its own
        raise UserError(f"--track {name} cannot be used: {first_line_of(error)}") from None


class RunTracking:
    """Sends the records of a run, each with a page on it beside the dense model.

    A cell waits for the record of the dense model under its own conditions, since some values compare with it. The
    first error of the tracker ends the sending, and never the run.

    name     one of reports.tracking.TRACKERS
    tracker  what `open_tracker` returns for the name
    folder   the run folder
    warn     takes a line on an error, and the line on what was sent
    """

    def __init__(self, name: str, tracker: Tracker, folder: Path, warn: Callable[[str], None]) -> None:
        self._name, self._tracker, self._folder, self._warn = name, tracker, folder, warn
        self._dense = dict[str, Record]()
        self._waiting = dict[str, Record]()
        self._new = self._sent_before = 0
        self._ended = False

    def cell(self, key: str) -> None:
        """Read the record of a cell that has ended, and send all cells that need not wait."""
        with self._warn_of_errors():
            self.take(key, run_folder.find_cell(self._folder, key)[1])

    def take(self, key: str, record: Record) -> None:
        """Take the record of a cell, and send all cells that need not wait."""
        if record.cell.method == "dense" and record.status == "ok":
            self._dense[key] = record
        self._waiting[key] = record
        for each, waiting in list(self._waiting.items()):
            if self._dense_of(waiting):
                self._send(each, self._waiting.pop(each))

    def finish(self) -> None:
        """Send the cells that have waited for a dense model in vain, and report how many cells were sent."""
        for key in list(self._waiting):
            self._send(key, self._waiting.pop(key))
        if not self._ended:
            remark = (
                f"; {self._sent_before} {'was' if self._sent_before == 1 else 'were'} there already"
                if self._sent_before
                else ""
            )
            noun = "cell" if self._new == 1 else "cells"
            self._warn(f"{self._name}: {self._new} {noun} sent to {self._tracker.where}{remark}")

    def _send(self, key: str, record: Record) -> None:
        if self._ended:
            return
        with self._warn_of_errors(), redirect_stdout(sys.stderr), TemporaryDirectory() as scratch:
            dense = self._dense_of(record)
            path = Path(scratch) / PAGE
            beside = {each: peer for each, peer in self._dense.items() if peer is dense} | {key: record}
            samples = self._samples(beside)
            write_atomically(path, page.render_page(list(beside.values()), samples=samples))
            sent = self._tracker.log(entry_of(key, record, dense, self._folder.name, samples), path)
            self._new, self._sent_before = self._new + sent, self._sent_before + (not sent)

    def _dense_of(self, record: Record) -> Record | None:
        """Return the dense cell of the record's own setup, as in a report; None if it has not come yet."""
        *setups, own = setups_of_records([*self._dense.values(), record])
        return find_dense_peer(
            record, [dense for dense, setup in zip(self._dense.values(), setups, strict=True) if setup == own]
        )

    @contextmanager
    def _warn_of_errors(self) -> Iterator[None]:
        """End the sending, but not the run, with a line on any error of the block."""
        try:
            yield
        except Exception as error:  # each tracker has classes of errors of its own
            self._ended = True
            rest = "no more is sent; the records are kept, and the same command sends what is missing"
            self._warn(f"{self._name}: {first_line_of(error)}; {rest}")

    def _samples(self, records: Mapping[str, Record]) -> Samples:
        """Return the samples of records by their keys, in their order."""
        folders = [run_folder.folder_of_samples(self._folder, key) for key in records]
        return Samples(folders, list(records.values()))


REQUESTED = ("requested_ratio", "seed", "draw", "ratio_budget")  # numbers of a row that are settings and not measured
SETTINGS = ("parameters", "ratio_of", "protocol", "healing", "earlier", "given", "trust_remote_code")  # of the cell
CURVE = {  # the metric of each value of a point of the learning curve
    "tokens": "heal_curve_tokens",
    "loss": "heal_curve_loss_nats_per_token",
    "heldout_loss": "heal_curve_heldout_loss_nats_per_token",
    "heldout_loss_low": "heal_curve_heldout_loss_nats_per_token_low",
    "heldout_loss_high": "heal_curve_heldout_loss_nats_per_token_high",
}


@dataclass(frozen=True)
class TrackerEntry:
    """Holds what a tracker shows of one cell.

    key         the key of the cell, which finds its run again
    name        the name of the run for readers: 'laco at 0.3'
    group       the group of runs to which it belongs: the name of the run folder
    date        the date of the record; a record of the same key and another date takes the place of this one
    failed      whether the cell has failed
    parameters  texts, numbers, booleans and lists by name
    metrics     numbers by name
    curve       (step, {name: number}) for each point of the learning curve, in order; empty without healing
    """

    key: str
    name: str
    group: str
    date: str
    failed: bool
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    curve: Sequence[tuple[int, Mapping[str, float]]]

    @property
    def last_step(self) -> int:
        """Return the step of the metrics, which is behind the learning curve."""
        return self.curve[-1][0] + 1 if self.curve else 0


def _renamed(point: LearningPoint) -> dict[str, Any]:
    """Return the values of a point of a curve by the names of the tracker."""
    values = {name: getattr(point, own) for own, name in CURVE.items()}
    return {name: value for name, value in values.items() if value is not None}


def entry_of(
    key: str, record: Record, dense: Record | None, group: str, samples: Samples | None = None
) -> TrackerEntry:
    """Return the entry of a record for a tracker; `dense` is the record that its values are compared with, if any.

    samples  of the dense record and of this one, in this order; without them there are no flips or losses of skills
    """
    records = [dense, record] if dense not in (None, record) else [record]
    row = rows_of_records(records, samples)[-1]
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
    requested = {name for name in numbers if name in REQUESTED or name.endswith("_budget")}
    parameters = {name: value for name, value in row.items() if name not in numbers or name in requested}
    settings = {name: to_plain(getattr(record.cell, name)) for name in SETTINGS}
    parameters |= flatten({name: value for name, value in settings.items() if value})
    parameters |= flatten({"environment": record.environment})
    curve = record.measured.healing.curve if record.measured.healing else ()
    return TrackerEntry(
        key=key,
        name=record.cell.title,
        group=group,
        date=str(record.environment.get("date", "")),
        failed=record.status in FAILED,
        parameters={"cell": key, "run_folder": group}
        | {name: value for name, value in parameters.items() if value not in (None, {})},
        metrics={name: value for name, value in numbers.items() if name not in requested},
        curve=[(point.step, _renamed(point)) for point in curve],
    )
