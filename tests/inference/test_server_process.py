"""The kept server of an engine, for which a stub of vLLM's stands: who may ask it, what ends it, and what is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from bench.inference.engine_process import EngineFailed
from bench.inference.load_client import LoadRequest, send_all
from bench.inference.server import HOST, ServerProcess

STUB = Path(__file__).parents[1] / "stub"


@pytest.fixture(autouse=True)
def _stub(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(STUB))
    monkeypatch.setenv("STUB_NOTES", str(tmp_path / "notes"))


def make(silence=60, engine="vllm", words=("--dtype", "float32")):
    return ServerProcess(engine, sys.executable, Path("folder"), words, os.environ, silence=silence)


def note(tmp_path):
    """What the server has noted of itself."""
    (line,) = map(json.loads, (tmp_path / "notes").read_text().splitlines())
    return line


def wait_for_end(*numbers):
    """Waits until processes are gone; those whose parent does not ask for them stay as zombies."""
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(each) and psutil.Process(each).status() != psutil.STATUS_ZOMBIE for each in numbers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_answers_who_has_its_key_and_leaves_nothing_running(tmp_path):
    with make() as server:
        (timing,) = send_all(server, [LoadRequest((1, 2, 3), 4)], 1, 30)[0]
        assert timing.tokens == 4
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://{HOST}:{server.port}/v1/models")
        own = note(tmp_path)
        assert own["server"][-2:] == ["--dtype", "float32"] and "folder" in own["server"]
        for process in psutil.Process(own["process"]), psutil.Process():
            assert server.key not in " ".join(process.cmdline())
        assert server.key != make().key and server.name != make().name
    wait_for_end(own["process"], own["child"])


def test_its_processes_find_the_plugin_by_an_entry_point(tmp_path):
    """vLLM asks for those of each distribution in each of its processes, and the project need not be installed."""
    with make():
        path = note(tmp_path)["environment"]["PYTHONPATH"]
        code = (
            "from importlib.metadata import entry_points\n"
            "(point,) = entry_points(group='vllm.general_plugins', name='prunebench'); print(point.load().__module__)"
        )
        environment = os.environ | {"PYTHONPATH": path}
        found = subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, check=True)
    assert found.stdout.decode().strip() == "bench.inference.vllm_plugin"


WRONG = {
    "raises": ("error", "vllm's server ended: ValueError: No available memory for the cache blocks."),
    "raises for a worker": ("error", "vllm's server ended: ValueError: heads do not divide"),
    "hangs": ("timed_out", "vllm said nothing for 2 s, and was ended"),
    "is killed": ("out_of_memory", "vllm's server killed by SIGKILL"),
}


@pytest.mark.parametrize("behaviour", WRONG)
def test_a_server_that_does_not_start_is_one_line_and_nothing_is_left_running(behaviour, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.system.failures.count_kills", lambda: None)  # as where the system does not say
    (tmp_path / "notes.behaviour").write_text(behaviour)
    with pytest.raises(EngineFailed) as caught, make(silence=2 if behaviour == "hangs" else 60):
        pass
    status, reason = WRONG[behaviour]
    assert (caught.value.status, str(caught.value)[: len(reason)]) == (status, reason)
    assert "\n" not in str(caught.value)
    if (tmp_path / "notes").exists():  # a slow machine ends it before
        wait_for_end(note(tmp_path)["process"], note(tmp_path)["child"])
    assert not [each for each in psutil.Process().children() if "bench.inference.server_script" in each.cmdline()]


def test_a_port_in_use_and_a_python_without_the_engine_are_one_line(tmp_path, monkeypatch):
    server = make()
    with socket.socket() as own:
        own.bind((HOST, server.port))
        own.listen()
        with (
            pytest.raises(EngineFailed, match=r"vllm's server ended: OSError: \[Errno \d+\] Address already in use"),
            server,
        ):
            pass
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(EngineFailed, match=r"vllm's server ended: .*No module named 'vllm'"), make():
        pass


def test_a_server_that_dies_under_load_says_why(tmp_path):
    with make() as server:
        os.kill(note(tmp_path)["process"], signal.SIGTERM)
        with pytest.raises(EngineFailed, match="vllm's server killed by SIGTERM"):
            while True:
                send_all(server, [LoadRequest((1,), 2)], 1, 30)
    wait_for_end(note(tmp_path)["child"])


def test_a_server_ends_with_the_process_that_has_started_it(tmp_path):
    program = (
        "import os, sys, time; from pathlib import Path; from bench.inference.server import ServerProcess\n"
        "with ServerProcess('vllm', sys.executable, Path('folder'), [], os.environ, silence=60): time.sleep(600)\n"
    )
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, str(STUB)]), "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "notes").exists() or not (tmp_path / "notes").read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    own = note(tmp_path)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for_end(own["process"], own["child"])
