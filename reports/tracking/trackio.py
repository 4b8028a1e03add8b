"""Keeps cells in trackio's store on this machine (TRACKIO_DIR): a run for each, whose name is the cell's key.

`trackio sync` sends a project of that store elsewhere; nothing here does.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from methods.errors import UserError
from reports.tracking.entry import TrackerEntry

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # variables by which trackio writes elsewhere


class TrackioStore:
    """Keeps runs in one project of trackio."""

    def __init__(self, project: str, place: Path) -> None:
        self._project, self._place = project, place

    @property
    def where(self) -> str:
        """Return the project and the folder that has it."""
        return f"the project {self._project} in {self._place}"

    def log(self, entry: TrackerEntry, page: Path) -> bool:
        """Keep a cell, see reports.tracking.tracker.Tracker."""
        import trackio

        for known in self._runs():
            if known.name == entry.key:
                if (known.config or {}).get("environment.date") == entry.date:
                    return False
                known.delete()
        options: dict[str, Any] = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
        config = dict(entry.parameters) | {"name": entry.name}
        with _errors_raised(), _without_hub(), redirect_stdout(StringIO()):
            run = trackio.init(self._project, entry.key, entry.group, config=config, **options)
            try:
                run.log_artifact(page, name=f"report-{entry.key}", type="report")
                for step, point in [*entry.curve, (entry.last_step, entry.metrics)]:
                    run.log(dict(point), step=step)
            finally:
                trackio.finish()
        return True

    def _runs(self) -> list[Any]:
        import trackio

        try:
            return list(trackio.Api().runs(self._project))
        except ValueError:  # there is no such project yet
            return []


def open_store(project: str) -> TrackioStore:
    """Open trackio's store on this machine. Raises UserError where the environment names another place."""
    if named := [name for name in REMOTE if os.environ.get(name)]:
        raise UserError(
            f"--track trackio writes to this machine's store, and {named[0]} names another place; unset it, and send "
            f"the project afterwards: trackio sync --project {project} --space-id ..."
        )
    import trackio.utils

    return TrackioStore(project, Path(trackio.utils.TRACKIO_DIR))


@contextmanager
def _errors_raised() -> Iterator[None]:
    """Raise the first error that trackio only warns of. Raises RuntimeError."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    if said := [str(one.message) for one in found if one.category is UserWarning]:
        raise RuntimeError(said[0])


@contextmanager
def _without_hub() -> Iterator[None]:
    """Keep trackio from asking the hub who the user is, which it does whatever the store."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
