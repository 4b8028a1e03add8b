"""Sends records to experiment trackers: one run of a tracker for each cell, found again by the cell's key.

record -> entry.TrackerEntry (parameters, metrics, learning curve) -> mlflow, trackio or wandb

A tracker reads records as a report does. Nothing here is imported unless `run --track` asks for it.
"""

from __future__ import annotations

TRACKERS = ("mlflow", "trackio", "wandb")
