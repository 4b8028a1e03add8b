"""Says which names in records a command follows: `Trust`, made from the command's own flags.

A cell that is made again names a model, texts and tasks, and says whether code that comes with the model may run.
Nobody knows who wrote the record, and so a record grants nothing. Without a flag a command takes what comes with this
suite, and what lies in the run's own folder, as far as no code of it would run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.data import assets, programs, task_files, task_loading
from bench.data.mixture import is_own_text, task_of_text, texts_of_calibration
from bench.data.task_sources import GROUPS, OFFLINE
from bench.plan.cell import Cell
from bench.plan.run_spec import RunSpec
from methods.errors import UserError


@dataclass(frozen=True)
class Trust:
    """Says which names the records of a run may have.

    run          its folder
    remote_code  whether code that comes with a model may run, where the record says that it did
    names        models, texts, tasks and documents beside those of this suite, as records write them or as paths
    programs     whether programs that a model writes may run, where a task asks for them
    """

    run: Path
    remote_code: bool = False
    names: tuple[str, ...] = ()
    programs: bool = False

    @classmethod
    def of_run(cls, spec: RunSpec, folder: Path) -> Trust:
        """Return the trust of a run in the records of its folder: they may name what its own flags name."""
        names = [name for protocol, _ in spec.protocols() for _, name in _names_of_calibration(protocol.calibration)]
        return cls(folder, spec.trust_remote_code, (*spec.models, *names), spec.confirm_run_unsafe_code)

    def refuse(self, cell: Cell, *, measured: bool = False) -> None:
        """Raise UserError where the `cell` of a record names what the user does not; no such thing is opened before.

        measured  whether the cell is measured too, and not only made, so that its other texts and its tasks are read
        """
        kinds, flags = list[str](), list[str]()
        for kind, name in _names_of_cell(cell, measured):
            if kind == "task":
                task_loading.refuse_undefined(name)  # which no flag allows, as the path of a definition
            if not self.allows(kind, name):
                kinds.append(f"a {kind}")
                flags.append(_flag(name))
        if cell.trust_remote_code and not self.remote_code:
            kinds.append("code of its model")
            flags.append("--trust-remote-code")
        for what, flag in self._code_of_tasks(cell) if measured and not kinds else ():
            kinds.append(what)
            flags.append(f"--{flag}")
        if measured and not self.programs and any(task in programs.SOURCES for task in cell.protocol.tasks):
            kinds.append("programs that a model writes")
            flags.append(f"--{programs.FLAG}")
        if kinds:
            what, how = " and ".join(dict.fromkeys(kinds)), " ".join(dict.fromkeys(flags))
            raise UserError(
                f"the record of {cell.label} names {what}, which it cannot allow itself; look at it, then add {how}"
            )

    def _code_of_tasks(self, cell: Cell) -> Iterator[tuple[str, str]]:
        """Yield what the files of a cell's tasks would run and the user does not let run, each with its flag."""
        allowed = {programs.FLAG: self.programs, task_files.REMOTE_CODE: self.remote_code}
        for _, path, _ in cell.protocol.task_files:
            code = task_files.list_code(task_files.read_task_file(Path(path)))
            yield from ((what, flag) for what, flag in code.items() if not allowed[flag])

    def refuse_text(self, text: str) -> None:
        """Raise UserError where records may not name this text."""
        if not self.allows("text", text):
            raise UserError(f"the record names a text, which it cannot allow itself; add {_flag(text)}")

    def refuse_outside(self, path: Path) -> None:
        """Raise UserError for a path that leads out of the folder of the run, as a link may."""
        place = _place(str(path))
        if place is None or not place.is_relative_to(self.run.resolve()):
            raise UserError(f"{path} leads out of the folder of its run, which no flag allows; copy what is there")

    def allows(self, kind: str, name: str) -> bool:
        """Say whether records may have this name; `kind` is the word of messages, as in 'model' or 'text'."""
        if name in OWN.get(kind, ()) or name in self.names:
            return True
        if kind == "task" or name.startswith("hub:") or (place := _place(name)) is None:
            return False
        return place.is_relative_to(self.run.resolve()) or any(_place(given) == place for given in self.names)


OWN: dict[str, Mapping[str, Any]] = {"model": assets.MODELS, "text": assets.TEXTS, "task": OFFLINE}


def _names_of_cell(cell: Cell, measured: bool) -> Iterator[tuple[str, str]]:
    """Yield what a cell names, each with its kind."""
    protocol = cell.protocol
    yield "model", cell.model
    calibrated_on = list(_names_of_calibration(protocol.calibration))
    yield from calibrated_on
    for task, path, *_ in protocol.task_data:
        if measured or ("task", task) in calibrated_on:
            yield "file of documents", path
    if not measured:
        return
    for text in protocol.texts:
        yield "text", text
    for stage in cell.stages:
        if stage.healing:
            yield "text", stage.healing.text
            if stage.healing.teacher:
                yield "model", stage.healing.teacher
    for task in task_files.without_tasks_of_files(protocol.tasks, protocol.task_files):
        yield "task", task
    for _, path, _ in protocol.task_files:
        yield "file of a task", path


def _names_of_calibration(calibration: str) -> Iterator[tuple[str, str]]:
    """Yield the texts and the tasks that a calibration reads, each with its kind."""
    for text in texts_of_calibration(calibration):
        if task := task_of_text(text):
            yield from (("task", name) for name in GROUPS.get(task, (task,)))
        elif not is_own_text(text):
            yield "text", text


def _flag(name: str) -> str:
    """Return the flag by which the user lets records name this, as a shell takes it."""
    return f"--trust {shlex.quote(name) if name.isprintable() else repr(name)}"


def _place(name: str) -> Path | None:
    """Return where a name leads to if it is that of a file or folder, links followed; None where it is none."""
    with suppress(OSError, ValueError, RuntimeError):  # of a name that no path can have, or of links in a circle
        return Path(name).resolve(strict=True)
    return None
