"""Runs llmcompressor in a process of the Python that has it, since it needs other versions than vLLM and this one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.inference.engine_process import SHOWN_LETTERS, EngineFailed, EngineProcess, find_cause

NAME = "llmcompressor"
SCRIPT = ("-m", "bench.inference.quantise_script")


def read_version(python: str, *, silence: int) -> str:
    """Return the version of llmcompressor that an interpreter has. Raises EngineFailed where it has none."""
    return _run(python, (), silence=silence).strip()


def quantise(python: str, folder: Path, to: Path, scheme: str, *, silence: int) -> None:
    """Write the model of a folder, its linear layers quantised, to the new folder `to`. Raises EngineFailed.

    scheme   a key of bench.inference.quantise_script.SCHEMES
    silence  seconds after which the process is ended
    """
    _run(python, (str(folder), str(to), scheme), silence=silence)


def _run(python: str, words: Sequence[str], *, silence: int) -> str:
    """Return what the script prints. Raises EngineFailed."""
    process = EngineProcess(python, [*SCRIPT, *words], os.environ)
    try:
        output, complaints = process.process.communicate(timeout=silence)
        code, written = process.process.returncode, complaints.decode("utf-8", "replace")
        if code:
            last = find_cause(written) or " ".join(written.split())
            raise process.failure_of_end(code, written, last[-SHOWN_LETTERS:], NAME)
    except subprocess.TimeoutExpired:
        raise EngineFailed("timed_out", f"{NAME} took longer than {silence} s, and was ended") from None
    finally:
        process.end()
    return output.decode("utf-8", "replace")
