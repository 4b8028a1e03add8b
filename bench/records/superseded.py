"""Moves records out of the way of reports, with their samples: to the folder superseded/ of their run."""

from __future__ import annotations

import shutil
from pathlib import Path

SUPERSEDED = "superseded"


def move(folder: Path, key: str, to: Path | None = None, new_key: str = "") -> None:
    """Move a record and its samples from a run folder to another one, by default to its superseded/."""
    to = to or folder / SUPERSEDED
    for kind, ending in (("samples", ""), ("cells", ".json")):
        source, target = folder / kind / f"{key}{ending}", to / kind / f"{new_key or key}{ending}"
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            source.replace(target)
