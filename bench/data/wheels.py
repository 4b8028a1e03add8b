"""Fetches pinned wheels of the package index, which are not installed, and keeps those that are whole."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.data.kept_folder import is_of_a_full_disk
from methods.errors import UserError
from methods.files import sha256

NO_PIP = "No module named pip"  # as Python says it; environments of uv have none


@dataclass(frozen=True)
class Wheel:
    """Names one file of the package index."""

    package: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """Return what pip is asked for."""
        return f"{self.package}=={self.version}"


def fetched(wheel: Wheel, keep: Path, scratch: Path) -> Path:
    """Return the wheel's file in `keep`, which is downloaded unless it is there and whole."""
    file = keep / f"{wheel.sha256}.whl"
    if not (file.is_file() and sha256(file) == wheel.sha256):
        downloaded = download(wheel, scratch)
        if (got := sha256(downloaded)) != wheel.sha256:
            raise UserError(
                f"{downloaded.name} is not the pinned wheel: its sha256 should be {wheel.sha256} and is {got}"
            )
        keep.mkdir(exist_ok=True)
        downloaded.replace(file)
    return file


def download(wheel: Wheel, destination: Path) -> Path:
    """Fetch a wheel into `destination` with pip, whose progress goes to stderr, and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--retries=2", "--dest", str(destination), wheel.requirement]
    outcome = subprocess.run(command, stdout=sys.__stderr__, stderr=subprocess.PIPE, text=True, check=False)
    wheels = list(destination.glob("*.whl"))
    if outcome.returncode != 0 or len(wheels) != 1:
        lines = outcome.stderr.splitlines()
        errors = [line for line in lines if line.startswith("ERROR")]
        reason = (errors or lines or [f"pip ended with {outcome.returncode}"])[-1].removeprefix("ERROR: ")
        hint = "check the network and pip's index settings"
        if reason.endswith(NO_PIP):
            reason, hint = NO_PIP, f"install it for {sys.executable} (`python -m ensurepip` or `uv pip install pip`)"
        if is_of_a_full_disk(reason):
            place = destination.parent
            raise UserError(
                f"no space left for {wheel.requirement} in {place}, or where pip unpacks (TMPDIR); make room, or name "
                "another folder in PRUNEBENCH_CACHE"
            )
        raise UserError(
            f"cannot fetch {wheel.requirement}: {reason}; {hint}, or copy a filled cache folder to {destination.parent}"
        )
    return wheels[0]
