"""How fast a disk gives weights, and for how many tokens a sweep computes as long as it reads."""

from __future__ import annotations

import errno
import math
import os

import pytest

from bench.doctor import machine


@pytest.mark.parametrize(
    ("flops", "each", "rate", "tokens"),
    [(4e14, 2, 3e9, 133_333), (4e14, 2, 25e9, 16_000), (8e10, 4, 3e9, 53)],  # those of a fast card, by disk and by bus
)
def test_reading_is_hidden_where_computing_takes_as_long(flops, each, rate, tokens, monkeypatch):
    monkeypatch.setattr(machine, "rate_of_reading", lambda folder: rate)
    found = machine.check_disk(flops, each, "bfloat16")
    P, T = 7e9, found.found["hidden_from_tokens"]
    assert 2 * P * T / flops == pytest.approx(each * P / rate)  # seconds of computing, and of reading
    assert f"from {tokens:,} tokens of a sweep on, bfloat16" in found.figure
    assert found.status == "ok"


def test_all_that_is_written_is_read_from_a_file_that_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "SIZE", 2**16)
    monkeypatch.setattr(machine, "BLOCK", 2**12)
    let_go = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *of: let_go.append(of[3]), raising=False)
    assert 0 < machine.rate_of_reading(tmp_path) < math.inf
    assert let_go == [os.POSIX_FADV_DONTNEED]
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_no_fault_of_the_machine(monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(machine, "rate_of_reading", full)
    found = machine.check_disk(1e12, 2, "bfloat16")
    assert found.status == "not here"
    assert found.figure == "268 MB cannot be written and read: No space left on device"
