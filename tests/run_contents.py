"""Reads what two runs of the same cells have to leave alike."""

from __future__ import annotations

import json
from pathlib import Path

TIMINGS = ("seconds", "prune_seconds", "search_seconds", "peak_memory", "speed")
OF_HEALING = ("seconds", "tokens_per_second")


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
                stage["measured"] = timeless(stage["measured"])
            found[name] = plain
    return found


def timeless(measured: dict) -> dict:
    """What was measured, without seconds, also those of healing, and peaks."""
    found = {key: value for key, value in measured.items() if key not in TIMINGS}
    if "healing" in found:
        curve = [{key: one[key] for key in one if key != "seconds"} for one in found["healing"]["curve"]]
        healing = {key: one for key, one in found["healing"].items() if key not in OF_HEALING}
        found["healing"] = healing | {"curve": curve}
    return found
