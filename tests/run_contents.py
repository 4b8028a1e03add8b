"""Reads what two runs of the same cells have to leave alike."""

from __future__ import annotations

import json
from pathlib import Path

TIMINGS = ("seconds", "prune_seconds", "search_seconds", "peak_memory")


def contents(folder: Path) -> dict[str, object]:
    """What a run has left but its report and its lock: records without environment and timings; samples as bytes."""
    found: dict[str, object] = {}
    for path in sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md" and path.name != ".lock"
    ):
        name = path.relative_to(folder).as_posix()
        found[name] = path.read_bytes() if path.suffix == ".parquet" else None
        if path.parent.name == "cells":
            plain = json.loads(path.read_text())
            del plain["environment"]
            for stage in (plain, *plain["decisions"].get("earlier", ())):
                stage["measured"] = {key: value for key, value in stage["measured"].items() if key not in TIMINGS}
            found[name] = plain
    return found
