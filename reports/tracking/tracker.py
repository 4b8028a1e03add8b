"""Sends the cells of a run to a tracker as they end: `open_tracker`, then a `RunTracking` for the run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from bench.records import run_folder
from bench.records.comparability import dense_peer, setups
from bench.records.record import Record
from bench.records.samples import Samples
from methods.errors import UserError, first_line
from methods.files import write_atomically
from reports.page import page
from reports.tracking.entry import TrackerEntry, entry

PROJECT = "prunebench"  # of a tracker, unless the user has named another as that tracker takes it
PAGE = "report.html"


class Tracker(Protocol):
    """Keeps runs in one tracker."""

    @property
    def where(self) -> str:
        """Return where the runs are kept, for a line on it."""

    def log(self, entry: TrackerEntry, page: Path) -> bool:
        """Keep a cell with its page, in place of what was kept of an earlier record of the cell.

        Returns whether that was needed: False where this very record is kept already. Raises the tracker's own errors.
        """


def require(name: str) -> None:
    """Raise UserError where the package of one of reports.tracking.TRACKERS is missing."""
    if find_spec(name) is None:
        raise UserError(f"--track {name} needs the package {name}: pip install 'prunebench[{name}]'")


def open_tracker(name: str) -> Tracker:
    """Open one of reports.tracking.TRACKERS.

    Raises UserError where its package is missing, and where it cannot be written to.
    """
    require(name)
    try:
        with redirect_stdout(sys.stderr):
            opened: Tracker = import_module(f"reports.tracking.{name}").open_store(PROJECT)
            return opened
    except UserError:
        raise
    except Exception as error:  # each tracker has classes of errors of its own
        raise UserError(f"--track {name} cannot be used: {first_line(error)}") from None


class RunTracking:
    """Sends the records of a run, each with a page on it beside the dense model.

    A cell waits for the record of its own dense model under its own conditions, beside which some of its figures stand.
    The first error of the tracker ends the sending, and never the run.

    name     one of reports.tracking.TRACKERS
    tracker  what `open_tracker` returns for it
    folder   of the run
    told     is told of an error, in a line
    """

    def __init__(self, name: str, tracker: Tracker, folder: Path, told: Callable[[str], None]) -> None:
        self._name, self._tracker, self._folder, self._told = name, tracker, folder, told
        self._dense = dict[str, Record]()
        self._waiting = dict[str, Record]()
        self._new = self._known = 0
        self._ended = False

    def cell(self, key: str) -> None:
        """Read the record of a cell that has ended, and send what can be sent."""
        with self._errors_told():
            self.take(key, run_folder.cell(self._folder, key)[1])

    def take(self, key: str, record: Record) -> None:
        """Take the record of a cell, and send what can be sent."""
        if record.cell["method"] == "dense" and record.status == "ok":
            self._dense[key] = record
        self._waiting[key] = record
        for each, one in list(self._waiting.items()):
            if self._dense_of(one):
                self._send(each, self._waiting.pop(each))

    def finish(self) -> None:
        """Send the cells that have waited for a dense model in vain, and say what was sent."""
        for key in list(self._waiting):
            self._send(key, self._waiting.pop(key))
        if not self._ended:
            known = f"; {self._known} {'was' if self._known == 1 else 'were'} there already" if self._known else ""
            noun = "cell" if self._new == 1 else "cells"
            self._told(f"{self._name}: {self._new} {noun} sent to {self._tracker.where}{known}")

    def _send(self, key: str, record: Record) -> None:
        if self._ended:
            return
        with self._errors_told(), redirect_stdout(sys.stderr), TemporaryDirectory() as scratch:
            dense = self._dense_of(record)
            path = Path(scratch) / PAGE
            write_atomically(path, self._page(key, record, dense))
            sent = self._tracker.log(entry(key, record, dense, self._folder.name), path)
            self._new, self._known = self._new + sent, self._known + (not sent)

    def _dense_of(self, record: Record) -> Record | None:
        """Return the dense cell of the record's own setup, as in a report; None where it has not come yet."""
        *found, own = setups([*self._dense.values(), record])
        return dense_peer(record, [one for one, setup in zip(self._dense.values(), found, strict=True) if setup == own])

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        """End the sending with a line where something raises, and not the run."""
        try:
            yield
        except Exception as error:  # each tracker has classes of errors of its own
            self._ended = True
            rest = "no more is sent; the records are kept, and the same command sends what is missing"
            self._told(f"{self._name}: {first_line(error)}; {rest}")

    def _page(self, key: str, record: Record, dense: Record | None) -> str:
        beside = {each: one for each, one in self._dense.items() if one is dense} | {key: record}
        folders = [run_folder.samples_folder(self._folder, each) for each in beside]
        return page.page(list(beside.values()), samples=Samples(folders, list(beside.values())))
