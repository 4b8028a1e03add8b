"""Keeps cells in MLflow, trackio, or Weights & Biases, with a run for each cell.

MLflow: a run has the cell's key as a tag, in the experiment that MLFLOW_EXPERIMENT_NAME names. MLFLOW_TRACKING_URI
names the store; by default it is MLflow's own, a SQLite file in the working directory.

trackio: the name of a run is the cell's key. The store is on this machine (TRACKIO_DIR). `trackio sync` can send a
project of it to another place; this module does not.

Weights & Biases: the id of a run is the cell's key, in the project that WANDB_PROJECT names. WANDB_MODE=offline writes
to the folder wandb and sends nothing; `wandb sync` sends it later. Neither the machine's name nor its load is sent.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from methods.errors import UserError
from reports.tracking.tracker import TrackerEntry

KEY, DATE = "prunebench.cell", "prunebench.date"  # tags
LONGEST = 6000  # characters of a parameter that MLflow takes
MOST = 100  # parameters that MLflow takes at once
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


class MlflowStore:
    """Keeps runs in one experiment of MLflow."""

    def __init__(self, client: Any, experiment: Any) -> None:
        self._client, self._experiment = client, experiment

    @property
    def where(self) -> str:
        """Return the experiment and the store that has it."""
        return f"the experiment {self._experiment.name} in {self._client.tracking_uri}"

    def log(self, entry: TrackerEntry, page: Path) -> bool:
        """Keep a cell with its page, and say whether this record is new (reports.tracking.tracker.Tracker)."""
        from mlflow.entities import Metric, Param

        earlier_runs = self._client.search_runs(
            [self._experiment.experiment_id], filter_string=f"tags.`{KEY}` = '{entry.key}'"
        )
        whole = [run for run in earlier_runs if run.data.tags.get(DATE) == entry.date and run.info.status != "RUNNING"]
        for run in earlier_runs:
            if run not in whole:
                self._client.delete_run(run.info.run_id)
        if whole:
            return False
        tags = {KEY: entry.key, DATE: entry.date, "prunebench.run_folder": entry.group}
        run = self._client.create_run(self._experiment.experiment_id, tags=tags, run_name=entry.name)
        number, now = run.info.run_id, run.info.start_time
        parameters = [Param(_name(name), _text(value)) for name, value in entry.parameters.items()]
        for first in range(0, len(parameters), MOST):
            self._client.log_batch(number, params=parameters[first : first + MOST])
        for step, point in [*entry.curve, (entry.last_step, entry.metrics)]:
            self._client.log_batch(number, [Metric(_name(name), value, now, step) for name, value in point.items()])
        self._client.log_artifact(number, str(page))
        self._client.set_terminated(number, "FAILED" if entry.failed else "FINISHED")
        return True


def open_mlflow(project: str) -> MlflowStore:
    """Return MLflow's store with the experiment of the environment, or else `project`. Raises MLflow's errors."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # the import has set their levels
        logging.getLogger(name).setLevel(logging.WARNING)
    client = MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or project
    experiment = client.get_experiment_by_name(name) or client.get_experiment(client.create_experiment(name))
    return MlflowStore(client, experiment)


def _name(name: str) -> str:
    """Return a name with an underscore for each character that MLflow does not take."""
    return re.sub(r"[^A-Za-z0-9_.: -]", "_", name)


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:LONGEST]


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
        """Keep a cell with its page, and say whether this record is new (reports.tracking.tracker.Tracker)."""
        import trackio

        for earlier in self._runs():
            if earlier.name == entry.key:
                if (earlier.config or {}).get("environment.date") == entry.date:
                    return False
                earlier.delete()
        options: dict[str, Any] = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
        config = dict(entry.parameters) | {"name": entry.name}
        with _raise_errors(), _without_hub(), redirect_stdout(StringIO()):
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


def open_trackio(project: str) -> TrackioStore:
    """Return trackio's store on this machine. Raises UserError if the environment names another place."""
    if named := [name for name in REMOTE if os.environ.get(name)]:
        raise UserError(
            f"--track trackio writes to this machine's store, and {named[0]} names another place; unset it, and send "
            f"the project afterwards: trackio sync --project {project} --space-id ..."
        )
    import trackio.utils

    return TrackioStore(project, Path(trackio.utils.TRACKIO_DIR))


@contextmanager
def _raise_errors() -> Iterator[None]:
    """Raise the first error that trackio only warns of. Raises RuntimeError."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    if messages := [str(warning.message) for warning in caught if warning.category is UserWarning]:
        raise RuntimeError(messages[0])


@contextmanager
def _without_hub() -> Iterator[None]:
    """Keep trackio from asking the hub who the user is, as it does even for a store on this machine."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


OFFLINE = "offline"


class WandbRuns:
    """Keeps runs in one project of Weights & Biases."""

    def __init__(self, project: str, mode: Literal["online", "offline"], folder: Path) -> None:
        self._project, self._mode, self._folder = project, mode, folder

    @property
    def where(self) -> str:
        """Return the project, and in offline mode the folder."""
        return f"the project {self._project}" + (f" in {self._folder}, offline" if self._mode == OFFLINE else "")

    def log(self, entry: TrackerEntry, page: Path) -> bool:
        """Keep a cell with its page, and say whether this record is new (reports.tracking.tracker.Tracker).

        Online, a cell is always written again, to the same run. Offline runs cannot be read; a run that was written
        after the record was made counts as that of the record.
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
        written = datetime.fromisoformat(entry.date).timestamp() if entry.date else 0
        files = self._folder.glob(f"offline-run-*/run-{entry.key}.wandb")
        return any(file.stat().st_mtime >= written for file in files)


def open_wandb(project: str) -> WandbRuns:
    """Return the store of Weights & Biases by its environment variables. Raises UserError if it has no key online."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    settings = wandb.setup(_settings()).settings
    mode = settings.mode
    if mode not in ("offline", "online"):
        raise UserError(f"--track wandb takes WANDB_MODE online or offline; got {mode}")
    try:
        if mode == "online" and not wandb.login():
            raise wandb.errors.UsageError("there is no key")
    except wandb.errors.UsageError:
        raise UserError("--track wandb has no key: `wandb login`, or set WANDB_MODE=offline") from None
    return WandbRuns(settings.project or project, mode, Path(settings.wandb_dir))


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
