"""A file's hash is remembered as long as the file is the same, and no longer."""

from __future__ import annotations

import os
import time

import pytest

from bench.data import file_hashes
from bench.data.file_hashes import sha256_of_file
from methods.files import hash_file

LONG_AGO = time.time() - 60


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Give what was hashed by reading, in a cache of its own, and files that count as settled."""
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    found: list[str] = []

    def noted(path):
        found.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(file_hashes, "hash_file", noted)
    monkeypatch.setattr(file_hashes, "SETTLED", -1.0)
    return found


def test_a_file_is_read_once_until_it_changes_in_any_way(tmp_path, read):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"first")
    first = sha256_of_file(file)
    assert [sha256_of_file(file), read] == [first, ["weights.safetensors"]]
    os.utime(file, (LONG_AGO, LONG_AGO))
    sha256_of_file(file)
    assert len(read) == 2
    times = file.stat().st_mtime_ns
    file.write_bytes(b"other")  # of one size, with the time of before put back
    os.utime(file, ns=(times, times))
    assert sha256_of_file(file) == hash_file(file) != first
    file.replace(tmp_path / "moved")
    file.write_bytes(b"first")
    assert [sha256_of_file(file), len(read)] == [first, 4]
    (tmp_path / "linked").symlink_to(file)
    assert [sha256_of_file(tmp_path / "linked"), len(read)] == [first, 4]


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, read, monkeypatch):
    monkeypatch.setattr(file_hashes, "SETTLED", 3600.0)
    (tmp_path / "new").write_bytes(b"a")
    sha256_of_file(tmp_path / "new")
    sha256_of_file(tmp_path / "new")
    assert len(read) == 2
    assert not (tmp_path / "cache").exists()


def test_a_hash_that_is_not_whole_and_a_cache_that_cannot_be_written_cost_time_alone(tmp_path, read):
    file = tmp_path / "weights"
    file.write_bytes(b"a")
    sha256_of_file(file)
    (place,) = (tmp_path / "cache" / "hashes").iterdir()
    place.write_text("not a hash")
    assert sha256_of_file(file) == hash_file(file)
    place.unlink()
    place.parent.rmdir()
    place.parent.write_text("")  # where a folder would have to be
    assert sha256_of_file(file) == hash_file(file)
    assert len(read) == 3
