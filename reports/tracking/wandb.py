"""Keeps cells in Weights & Biases: a run for each, whose id is the cell's key, in the project that WANDB_PROJECT names.

WANDB_MODE=offline writes to the folder wandb and sends nothing, until `wandb sync` does. Neither the name of the
machine nor what else it does is sent.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from methods.errors import UserError
from reports.tracking.entry import TrackerEntry

OFFLINE = "offline"


class WandbRuns:
    """Keeps runs in one project of Weights & Biases."""

    def __init__(self, project: str, mode: Literal["online", "offline"], folder: Path) -> None:
        self._project, self._mode, self._folder = project, mode, folder

    @property
    def where(self) -> str:
        """Return the project, and the folder where nothing is sent."""
        return f"the project {self._project}" + (f" in {self._folder}, offline" if self._mode == OFFLINE else "")

    def log(self, entry: TrackerEntry, page: Path) -> bool:
        """Keep a cell, see reports.tracking.tracker.Tracker.

        What is online is written again, to the same run. What is offline cannot be read; a run that was written after
        the record was made is that of the record.
        """
        import wandb

        if self._mode == OFFLINE and self._is_written(entry):
            return False
        run = wandb.init(
            project=self._project,
            id=entry.key,
            name=entry.name,
            group=entry.group,
            resume="allow",
            mode=self._mode,
            settings=_settings(),
        )
        try:
            run.config.update(dict(entry.parameters), allow_val_change=True)
            for step, point in [*entry.curve, (entry.last_step, entry.metrics)]:
                run.log(dict(point), step=step)
            run.summary.update(dict(entry.metrics))
            report = wandb.Artifact(f"report-{entry.key}", "report")
            report.add_file(str(page), name=page.name)
            run.log_artifact(report)
        finally:
            run.finish(exit_code=int(entry.failed))
        return True

    def _is_written(self, entry: TrackerEntry) -> bool:
        made = datetime.fromisoformat(entry.date).timestamp() if entry.date else 0
        found = self._folder.glob(f"offline-run-*/run-{entry.key}.wandb")
        return any(file.stat().st_mtime >= made for file in found)


def open_store(project: str) -> WandbRuns:
    """Open Weights & Biases as its environment variables say. Raises UserError where it is online without a key."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    found = wandb.setup(_settings()).settings
    mode = found.mode
    if mode not in ("offline", "online"):
        raise UserError(f"--track wandb takes WANDB_MODE online or offline; got {mode}")
    try:
        if mode == "online" and not wandb.login():
            raise wandb.errors.UsageError("there is no key")
    except wandb.errors.UsageError:
        raise UserError("--track wandb has no key: `wandb login`, or set WANDB_MODE=offline") from None
    return WandbRuns(found.project or project, mode, Path(found.wandb_dir))


def _settings() -> Any:
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        host="",
        disable_git=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
