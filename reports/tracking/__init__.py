"""Sends records to experiment trackers: one run of a tracker for each cell, which has the cell's key.

record -> tracker.TrackerEntry (parameters, metrics, learning curve) -> mlflow, trackio or wandb

A tracker reads records as a report does. `run --track` alone imports the modules of this package.
"""

from __future__ import annotations

TRACKERS = ("mlflow", "trackio", "wandb")
