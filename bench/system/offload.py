"""Keeps the folder in which states of cells wait: those of one cell in a folder of their own, which goes with the cell.

Its name says which run and which cell, so that what a killed attempt has left goes when the cell begins again. The
files in it have no name where the system allows that (methods.model.layer_store), and are gone with the process.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from methods.errors import UserError, first_line
from methods.files import WRITING

STATES = ".states-"  # begins the names of those folders


def check(folder: Path) -> None:
    """Raise UserError where states cannot be put into a folder."""
    if not folder.is_dir():
        raise UserError(f"--offload {folder} is no folder; name one on a disk that has room for states")
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=WRITING):
            pass
    except OSError as error:
        raise UserError(f"--offload {folder} takes no files: {first_line(error)}; name another folder") from None


@contextmanager
def of_cell(folder: Path, run: Path, key: str) -> Iterator[Path]:
    """Make the folder for the states of a cell of a run, without what is left there, and remove it at the end.

    Raises UserError where the folder in which it is made is none, or takes no files.
    """
    check(folder)
    name = hashlib.sha256(f"{platform.node()} {run.resolve()} {key}".encode()).hexdigest()[:16]
    place = folder / f"{STATES}{name}"
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir()
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
