"""Keeps a run folder for one run at a time.

    .lock         locked while a run goes on; stays, since a lock that is removed can be held twice
    .owner.json   {pid, host, started} of the run that goes on, or of one that was killed

The lock is the system's own (flock, through filelock), so that it is gone with its owner however that ended: killed, or
with the machine. A file system without it is refused, since filelock would make do with a file that a killed owner
leaves for ever. .owner.json tells the one who is refused who that is.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from bench.engines.engine import InUse
from bench.records import packed_run
from methods.errors import UserError
from methods.files import write_atomically

LOCK, OWNER = ".lock", ".owner.json"


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Remove the lock and the empty folders that a run has made which is refused before it has written anything."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    locked = (folder / LOCK).exists()
    try:
        yield
    except InUse:
        raise
    except UserError:
        with suppress(OSError):
            if not locked and not (folder / "cells").exists():
                (folder / LOCK).unlink(missing_ok=True)
            for path in new:
                path.rmdir()
        raise


@contextmanager
def held(folder: Path, patience: float = 0.0) -> Iterator[str | None]:
    """Own the folder; yields a line about an earlier owner that did not finish, if there was one.

    patience  seconds to wait for another owner, as for one whose end is not known everywhere yet

    Raises InUse, naming the owner, where another run holds it, and UserError where the run in it is packed, or where it
    cannot be made or locked, as on a file system without locks, or is removed within.
    """
    if packed_run.is_packed(folder):
        raise UserError(
            f"{folder} is a packed run; `python -m bench pack {folder} --unpack` lets it go on, or name another --out"
        )
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_lockless(folder)
        lock.acquire(timeout=patience)
    except Timeout:
        raise InUse(
            f"{folder} is in use by {_owner(folder) or 'another run'}; wait for it, end it, or name another --out"
        ) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be made or locked: {error.strerror}; name another with --out") from None
    try:
        dead = _owner(folder)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        who = {"pid": os.getpid(), "host": platform.node(), "started": started}
        write_atomically(folder / OWNER, json.dumps(who) + "\n")
        yield f"{dead} did not come to its end; going on from there" if dead else None
    except Exception as error:
        refuse_removed(folder, error)
        raise
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def refuse_removed(folder: Path, error: Exception | None = None) -> None:
    """Raise UserError, as what has led to `error`, where a folder that is held is there no more."""
    if not (folder / LOCK).exists():
        raise UserError(f"{folder} was removed while the run went on; the same command begins anew") from error


def _refuse_lockless(folder: Path) -> None:
    """Refuse a folder whose file system has no flock, by unlocking there what is not locked."""
    if os.name != "posix":  # where filelock has another lock of the system
        return
    import fcntl

    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_UN)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            raise UserError(
                f"{folder} lies on a file system without locks (flock), which a run needs to have its folder for "
                "itself; mount it with them, as Lustre with -o flock, or name another --out"
            ) from None


def is_own(folder: Path) -> bool:
    """Say whether the owner's file names this process."""
    try:
        who = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return bool((who["pid"], who["host"]) == (os.getpid(), platform.node()))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _owner(folder: Path) -> str | None:
    """Say in words who the owner's file names; None where there is none or it cannot be read."""
    try:
        who = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"the run with process {who['pid']:d} on {who['host']}, started {who['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None
