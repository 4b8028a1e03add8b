"""Moves records out of the way of reports, with their samples: to the folder superseded/ of their run."""

from __future__ import annotations

import shutil
from pathlib import Path

SUPERSEDED = "superseded"
BESIDE = ("models", "kept", "partial")  # folders of what a cell has beside its record and samples (bench.run.store)


def move(folder: Path, key: str, to: Path | None = None) -> None:
    """Move a record and its samples from a run folder to another one, by default to its superseded/.

    Elsewhere the cell goes on to count, and takes its models and what it has left with it.
    """
    beside = BESIDE if to else ()
    to = to or folder / SUPERSEDED
    for kind, ending in (*((kind, "") for kind in beside), ("samples", ""), ("cells", ".json")):
        source, target = folder / kind / f"{key}{ending}", to / kind / f"{key}{ending}"
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            source.replace(target)
