"""Knows the elements of arrays of Slurm's jobs: what each has in its part, and which id the queue has given it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.engines.slurm_node import read
from bench.engines.slurm_queue import Needs
from methods.files import write_atomically


@dataclass
class Element:
    """Is one job in the queue.

    id       that the queue has given it; None where it was not submitted
    earlier  whether an earlier run has submitted it
    unseen   looks in a row at which it was not in the queue
    """

    key: str
    part: Path
    needs: Needs
    id: str | None = None
    earlier: bool = False
    unseen: int = 0

    @property
    def is_measured(self) -> bool:
        """Say whether its cell has a record, which is written after everything else."""
        return (self.part / "cells" / f"{self.key}.json").is_file()

    def look_anew(self) -> None:
        """List its folders, so that a file system over a network asks its server for files that were missing."""
        for folder in (self.part, self.part / "cells"):
            with contextlib.suppress(OSError):
                list(folder.iterdir())


class Submitted:
    """Keeps in a file which id each element was given, by its key, for a run that comes after one that was killed.

    The ids of an array are written at once, so that one is known as soon as others are.
    """

    def __init__(self, file: Path, cluster: str) -> None:
        self._file, self._cluster = file, cluster
        self._known: dict[str, Mapping[str, str]] = read(file) or {}

    def ids(self) -> dict[str, str]:
        """Return the ids that this cluster has given."""
        return {key: known["id"] for key, known in self._known.items() if known["cluster"] == self._cluster}

    def add(self, ids: Mapping[str, str]) -> None:
        """Write down the ids of an array."""
        self._known |= {key: {"cluster": self._cluster, "id": name} for key, name in ids.items()}
        self._write()

    def forget(self, key: str) -> None:
        """Let nothing be known of an element, which is submitted anew."""
        if self._known.pop(key, None):
            self._write()

    def _write(self) -> None:
        write_atomically(self._file, json.dumps(self._known))
