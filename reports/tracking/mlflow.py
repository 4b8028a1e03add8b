"""Keeps cells in MLflow: a run for each, with its key as a tag, in the experiment that MLFLOW_EXPERIMENT_NAME names.

MLFLOW_TRACKING_URI says where; by default it is what MLflow itself takes, a SQLite file in the working directory.
"""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from reports.tracking.entry import TrackerEntry

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
        """Keep a cell, see reports.tracking.tracker.Tracker."""
        from mlflow.entities import Metric, Param

        known = self._client.search_runs(
            [self._experiment.experiment_id], filter_string=f"tags.`{KEY}` = '{entry.key}'"
        )
        whole = [run for run in known if run.data.tags.get(DATE) == entry.date and run.info.status != "RUNNING"]
        for run in known:
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


def open_store(project: str) -> MlflowStore:
    """Open MLflow's store; the experiment is the one of the environment, else `project`. Raises MLflow's errors."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # which their import has set
        logging.getLogger(name).setLevel(logging.WARNING)
    client = MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or project
    experiment = client.get_experiment_by_name(name) or client.get_experiment(client.create_experiment(name))
    return MlflowStore(client, experiment)


def _name(name: str) -> str:
    """Return a name of the characters that MLflow takes."""
    return re.sub(r"[^A-Za-z0-9_.: -]", "_", name)


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:LONGEST]
