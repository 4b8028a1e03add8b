"""Writes files so that they are whole or absent, and hashes them."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from methods.errors import Unwritable

WRITING = ".writing-"  # begins the name of a file that is not whole yet
LONGEST = 50  # characters of the final name in it, so that no such name is too long where the final one is not


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write to a temporary neighbour, flush it to the disk, and rename it to `path`. Raises Unwritable.

    A new file has the permissions of the umask. A file that replaces another one takes over its permissions.

    content  text or bytes, or a function that writes them to the path that it is given
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{WRITING}{path.name[:LONGEST]}.{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as file:
                mode = (path if path.exists() else temporary).stat().st_mode & 0o777
                if not callable(content):
                    file.write(content.encode() if isinstance(content, str) else content)
            if callable(content):
                content(temporary)
            with temporary.open("r+b") as file:  # `content` may have put another file in its place
                os.fsync(file.fileno())
            temporary.chmod(mode)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise Unwritable(f"{path} cannot be written: {error.strerror}; the same command goes on once it can") from error


def _flush_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that a rename in it survives a power cut. Only POSIX systems can."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def hash_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
