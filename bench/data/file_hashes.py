"""Remembers the sha256 of large files, so that a machine reads each of them once and not for every cell.

    <cache>/hashes/<name>   the sha256 of one state of a file; the name is made of its path, device, inode, size, and
                            the times of its last change of content and of inode, to the nanosecond

Whoever writes to a file changes one of these, so that an old hash is not found any more. A file that was changed within
the last seconds is read again, since a second change within one tick of the clock would leave its times as they are.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from bench.data.assets import folder_of_cache
from methods.errors import Unwritable
from methods.files import hash_file, write_atomically

SETTLED = 5.0  # seconds since the last change, many times the tick of any file system's clock


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file. The file is read unless it is unchanged since it was read before."""
    path = path.resolve()
    place = folder_of_cache() / "hashes" / _state(path)
    with suppress(OSError, ValueError):
        if re.fullmatch("[0-9a-f]{64}", stored := place.read_text(encoding="ascii")):
            return stored
    sha256 = hash_file(path)
    if place.name == _state(path) and _is_settled(path.stat()):
        with suppress(Unwritable):  # a cache that cannot be written to costs time alone
            write_atomically(place, sha256)
    return sha256


def _state(path: Path) -> str:
    """Return a name for the present state of a file."""
    now = path.stat()
    facts = (str(path), now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _is_settled(now: os.stat_result) -> bool:
    return time.time() - max(now.st_mtime, now.st_ctime) > SETTLED
