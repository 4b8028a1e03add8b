"""One run at a time in a folder.

The lock is the system's own (flock, through filelock), so that it is gone with its owner however that ended: killed, or
with the machine. A JSON file beside it says who that is, for the one who is refused.

    .lock         locked while a run goes on; stays, since a lock that is removed can be held twice
    .owner.json   {pid, host, started}; there only while a run goes on, or after one that was killed
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from bench.errors import UserError
from bench.record import write_atomically

LOCK, OWNER = ".lock", ".owner.json"


@contextmanager
def held(folder: Path) -> Iterator[str | None]:
    """Hold the folder; yields a line about an earlier owner that did not come to its end, if there was one.

    Raises UserError, naming the owner, where another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{folder} is in use by {_owner(folder) or 'another run'}; wait for it, end it, or name another --out"
        ) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be locked: {error.strerror}; name another with --out") from None
    try:
        dead = _owner(folder)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        who = {"pid": os.getpid(), "host": platform.node(), "started": started}
        write_atomically(folder / OWNER, json.dumps(who) + "\n")
        yield f"{dead} did not come to its end; going on from there" if dead else None
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _owner(folder: Path) -> str | None:
    """Who the owner's file names, in words; None where there is none or it cannot be read."""
    try:
        who = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"the run with process {who['pid']:d} on {who['host']}, started {who['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None
