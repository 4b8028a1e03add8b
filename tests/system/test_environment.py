"""The description of a machine: complete here, absent where something is missing, and nothing private in it."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest
import torch

from bench.system import environment
from bench.system.environment import describe, peak_memory_bytes, reset_peak_memory

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads files of the Linux kernel")


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_describes_this_machine():
    found = describe(CPU, torch.float32)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["python"] == platform.python_version()
    assert (found["device"], found["dtype"], found["threads"]) == ("cpu", "float32", 1)
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["logical_cores"] >= found.get("physical_cores", 1) >= 1
    assert found["memory_bytes"] > 2**28
    assert "gpu" not in found
    assert abs(datetime.now(UTC) - datetime.fromisoformat(found["date"])) < timedelta(minutes=1)


def test_how_threads_wait_is_said_where_that_is_known(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "123")
    found = describe(CPU, torch.float32)
    assert found["gomp_spincount"] == "123"
    assert "omp_wait_policy" not in found


def test_nothing_private():
    text = json.dumps(describe(CPU, torch.float32))
    assert str(Path.home()) not in text
    assert str(environment.CHECKOUT) not in text
    assert platform.node() not in text.split('"')
    assert platform.release() not in text
    assert getpass.getuser() not in text.split('"')


@LINUX
def test_reads_cpu_and_cores(monkeypatch):
    text = "".join(
        f"processor : {n}\nmodel name\t: Example CPU @ 2 GHz\nphysical id\t: 0\nsiblings : 4\ncore id\t\t: {n // 2}\n\n"
        for n in range(4)
    )
    monkeypatch.setattr(environment, "_read", lambda path: text)
    found = describe(CPU, torch.bfloat16)
    assert (found["cpu"], found["physical_cores"]) == ("Example CPU @ 2 GHz", 2)


def test_what_cannot_be_found_out_is_absent(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "CHECKOUT", tmp_path)
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(environment, "_read", lambda path: "")
    monkeypatch.setattr(environment, "_output", lambda *command: None)
    found = describe(CPU, torch.float32)
    assert {"commit", "dirty", "physical_cores"} & set(found) == set()
    assert list(found["versions"]) == ["torch"]
    assert None not in found.values()


def test_commit_and_dirty(monkeypatch, tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(environment, "CHECKOUT", tmp_path)
    found = describe(CPU, torch.float32)
    assert (found["commit"], found["dirty"]) == (git(tmp_path, "rev-parse", "HEAD"), False)
    (tmp_path / "a").write_text("2")
    assert describe(CPU, torch.float32)["dirty"] is True


def test_an_installed_package_does_not_take_the_commit_of_the_repository_around_it(monkeypatch, tmp_path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "another project", "--allow-empty")
    inside = tmp_path / "venv" / "site-packages"
    inside.mkdir(parents=True)
    monkeypatch.setattr(environment, "CHECKOUT", inside)
    assert "commit" not in describe(CPU, torch.float32)


@pytest.mark.parametrize("command", [("no-such-program",), (sys.executable, "-c", "raise SystemExit(3)")])
def test_a_command_that_is_missing_or_fails_gives_nothing(command):
    assert environment._output(*command) is None


def test_peak_memory_grows_with_what_is_used():
    before = peak_memory_bytes(CPU)
    block = bytearray(b"x") * (before + 2**26)  # touches every page
    assert peak_memory_bytes(CPU) >= before + 2**26
    del block


@LINUX
def test_peak_memory_starts_anew():
    block = bytearray(b"x") * 2**28
    high = peak_memory_bytes(CPU)
    del block
    reset_peak_memory(CPU)
    assert peak_memory_bytes(CPU) < high - 2**27


@LINUX
def test_peak_memory_is_of_this_process_and_not_of_its_parent():
    block = bytearray(b"x") * (3 * 2**28)  # more than importing torch takes
    code = "import torch; from bench.system import environment as e; print(e.peak_memory_bytes(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=environment.CHECKOUT, capture_output=True, check=True)
    assert 2**25 < int(done.stdout) < len(block)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can")
def test_freed_memory_is_kept_and_used_again():
    code = (
        "import resource, torch; from bench.speed.memory import keep_freed\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10): three = [torch.ones(2**22) for _ in range(3)]; del three\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults(); fresh = faults(); keep_freed(); faults(); print(fresh, faults())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=environment.CHECKOUT, capture_output=True, check=True)
    fresh, kept = map(int, done.stdout.split())
    assert kept < 2**22 * 4 / 4096  # less than one tensor's pages
    assert 10 * kept < fresh  # however large the pages of this machine are


def test_cuda_is_described_by_its_properties_and_driver(monkeypatch):
    class Properties:
        name = "Example GPU"
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(environment, "_output", lambda *command: "570.1\n570.1" if command[0] == "nvidia-smi" else None)
    found = describe(torch.device("cuda", 0), torch.bfloat16)
    expected = {"gpu": "Example GPU", "gpu_memory_bytes": 80 * 2**30, "gpu_driver": "570.1", "cuda": "12.8"}
    assert expected.items() <= found.items()
    assert (found["device"], found["dtype"]) == ("cuda:0", "bfloat16")


def test_cuda_peak_is_of_the_allocator(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    device = torch.device("cuda", 1)
    assert peak_memory_bytes(device) == 123
    reset_peak_memory(device)
    assert calls == [device]
