"""Measures how fast a disk gives weights, and for how many tokens a sweep computes as long as it reads.

A sweep over the layers of a model of P parameters reads b P bytes, in a dtype of b bytes, and computes 2 P T FLOP for T
tokens. At B bytes/s and F FLOP/s reading is hidden behind computing from

    T = b F / (2 B)

on, whatever the model.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from bench.data import assets
from bench.doctor.finding import Finding

SIZE, BLOCK = 2**28, 2**22  # bytes that are read, and at once


def check(flops: float, bytes_each: int, dtype: str) -> Finding:
    """Say how fast weights come from the folder of the models; `flops` is what a product reaches in a second."""
    what, folder = "weights in files", assets.cache_folder()
    try:
        rate = read_rate(folder if folder.is_dir() else Path(tempfile.gettempdir()))
    except OSError as error:
        return Finding("not here", what, f"{SIZE / 1e6:,.0f} MB cannot be written and read: {error.strerror}")
    tokens = bytes_each * flops / (2 * rate)
    figure = f"{rate / 1e9:.1f} GB/s read; hidden behind computing from {tokens:,.0f} tokens of a sweep on, {dtype}"
    return Finding("ok", what, figure, {"read_bytes_per_second": rate, "hidden_from_tokens": tokens})


def read_rate(folder: Path) -> float:
    """Return the bytes per second at which a new file is read that the page cache does not hold. Raises OSError.

    Where the system has no call that lets go of cached pages, or the folder lies in memory, it is memory's rate.
    """
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        block = os.urandom(BLOCK)
        for _ in range(SIZE // BLOCK):
            file.write(block)
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(BLOCK):
            pass
        return SIZE / (time.perf_counter() - start)
