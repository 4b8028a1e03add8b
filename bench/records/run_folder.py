"""From what stands on a command line to records: a run folder, RUN/CELL, or a run and what names one of its cells."""

from __future__ import annotations

from pathlib import Path

from bench.records.record import InvalidRecord, Record, load
from methods.errors import UserError


def paths(run: Path) -> dict[str, Path]:
    """{key: file} of a run folder's records. Raises UserError where it is none."""
    found = {path.stem: path for path in sorted((run / "cells").glob("*.json"))}
    if not found:
        raise UserError(f"{run} is no run folder: it has no cells/*.json")
    return found


def records(run: Path) -> dict[str, Record]:
    """{key: record} of a run folder. Raises UserError where it is none, or a record cannot be read."""
    try:
        return {key: load(path) for key, path in paths(run).items()}
    except InvalidRecord as error:
        raise UserError(str(error)) from None


def cell(run: Path, wanted: str) -> tuple[str, Record]:
    """The one cell of `run` whose key is `wanted`, else whose label, else whose key starts so. Raises UserError."""
    known = paths(run)
    try:
        if wanted in known:
            return wanted, load(known[wanted])
    except InvalidRecord as error:
        raise UserError(str(error)) from None
    every = records(run)
    found = [key for key, record in every.items() if record.cell.get("label") == wanted]
    found = found or [key for key in every if key.startswith(wanted)]
    if len(found) != 1:
        which = f"names {len(found)} cells" if found else "is no cell"
        raise UserError(f"{wanted!r} {which} of {run}; it has {', '.join(found or every)}")
    return found[0], every[found[0]]


def split(named: str) -> tuple[Path, str] | None:
    """RUN/CELL as run and cell, RUN being the longest start of it that is a run folder, since a label may hold a slash.

    CELL may also be the file, RUN/cells/CELL.json. None where no start of it is a run folder.
    """
    cuts = [position for position, character in enumerate(named) if character == "/"]
    for cut in reversed(cuts):
        folder, wanted = Path(named[:cut] or "/"), named[cut + 1 :]
        if wanted and (folder / "cells").is_dir():
            return folder, wanted
        if wanted and folder.name == "cells" and folder.is_dir():
            return folder.parent, wanted.removesuffix(".json")
    return None


def load_run(folder: Path) -> list[Record]:
    """All valid records of a run folder, by file name. Raises InvalidRecord at the first that is not."""
    return [load(path) for path in sorted((folder / "cells").glob("*.json"))]
