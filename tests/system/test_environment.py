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
from made_machine import a_gpu

from bench.system import environment
from bench.system.environment import describe

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
def test_the_processor_is_named_as_the_kernel_names_it(monkeypatch):
    monkeypatch.setattr(environment, "_read", lambda path: "processor : 0\nmodel name\t: Example CPU @ 2 GHz\n\n")
    assert describe(CPU, torch.bfloat16)["cpu"] == environment.name_of_processor(CPU) == "Example CPU @ 2 GHz"


def test_what_cannot_be_found_out_is_absent(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise FileNotFoundError("/proc")

    monkeypatch.setattr(environment, "CHECKOUT", tmp_path)
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(environment, "_read", lambda path: "")
    monkeypatch.setattr(environment, "_output", lambda *command: None)
    for name in ("cpu_count", "virtual_memory"):
        monkeypatch.setattr(environment.psutil, name, refuse)
    found = describe(CPU, torch.float32)
    assert {"commit", "dirty", "physical_cores", "memory_bytes"} & set(found) == set()
    assert list(found["versions"]) == ["torch"]
    assert None not in found.values()


@pytest.mark.parametrize("error", [AssertionError("Torch not compiled with CUDA enabled"), RuntimeError("No driver")])
def test_a_gpu_that_is_not_here_is_absent(monkeypatch, error):
    def refuse(device):
        raise error

    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    found = describe(torch.device("cuda", 0), torch.bfloat16)
    assert (found["device"], found["cpu"]) == ("cuda:0", environment.name_of_processor(CPU))
    assert {name for name in found if name.startswith(("gpu", "cuda"))} == set()


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


def test_cuda_is_described_by_its_properties_and_driver(monkeypatch):
    class Properties:
        name = "Example GPU"
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    card = a_gpu(nvmlDeviceGetApplicationsClock=1)
    monkeypatch.setattr(environment.gpu, "find_gpus", lambda devices: ([card], None))
    monkeypatch.setattr(environment, "_output", lambda *command: "570.1\n570.1" if command[0] == "nvidia-smi" else None)
    found = describe(torch.device("cuda", 0), torch.bfloat16)
    expected = {"gpu": "Example GPU", "gpu_memory_bytes": 80 * 2**30, "gpu_driver": "570.1", "cuda": "12.8"}
    expected |= {"float32_products": "highest", "cuda_alloc_conf": "expandable_segments:True"}
    expected |= {"gpu_power_limit_w": 700.0, "gpu_highest_sm_mhz": 1980, "gpu_mig": False}
    assert expected.items() <= found.items()
    assert "gpu_set_sm_mhz" not in found  # which the driver does not tell
    assert (found["device"], found["dtype"]) == ("cuda:0", "bfloat16")
