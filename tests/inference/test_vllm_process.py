"""The kept process of vLLM, for which a stub stands: what it is asked and answers, and what becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.inference.engine_process import EngineFailed
from bench.inference.vllm_process import VllmProcess, parse_options
from bench.system import failures
from methods.errors import UserError

STUB = Path(__file__).parents[1] / "stub"


@pytest.fixture(autouse=True)
def _stub(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(STUB))
    monkeypatch.setenv("STUB_NOTES", str(tmp_path / "notes"))


@pytest.fixture
def models(tmp_path):
    """Two folders of models, the second half as large."""
    folders = [tmp_path / "dense", tmp_path / "pruned"]
    for folder, size in zip(folders, (2000, 1000), strict=True):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(size))
    return folders


@pytest.fixture
def start():
    """Starts a process, which ends with the test."""
    processes = []

    def make(options=None, threads=3, silence=60, python=sys.executable):
        processes.append(VllmProcess(str(python), options or {}, threads=threads, silence=silence))
        return processes[-1]

    yield make
    for process in processes:
        process.end()


def behave(tmp_path, behaviour):
    """Lets the stub's models behave so from now on."""
    (tmp_path / "notes.behaviour").write_text(behaviour)


def notes(tmp_path, name):
    """All that the stub was given as `name`."""
    lines = map(json.loads, (tmp_path / "notes").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def test_two_models_are_held_side_by_side_and_timed_by_the_engines_own_clock(models, start, tmp_path):
    vllm, (dense, pruned) = start(), models
    assert vllm.exchange("describe") == {"version": "0.33.0", "device": {"device": "cpu"}}
    vllm.load("dense", dense, dtype="float32")
    for _ in range(2):
        vllm.load("pruned", pruned, dtype="float32")
    timed = [
        vllm.exchange("time_pass", name=name, batch=2, tokens=5, steps=3)["ms"] for name in ("dense", "pruned", "dense")
    ]
    assert timed == [pytest.approx([4, 2, 2, 2]), pytest.approx([2, 1, 1, 1]), pytest.approx([4, 2, 2, 2])]
    assert notes(tmp_path, "model") == [str(dense), str(pruned)]  # each once
    assert len(set(notes(tmp_path, "process"))) == 1
    first, second, *_ = prompts = notes(tmp_path, "request")
    assert prompts == 3 * [first, second]  # of both models alike
    assert first != second
    assert len(first) == 5
    assert max(first) < 50
    vllm.load("pruned", dense, dtype="float32")
    assert notes(tmp_path, "dropped") == [str(pruned)]


def test_a_step_gives_every_sequence_a_token(models, start, monkeypatch):
    """The first of three prompts has three tokens already when the last has one."""
    monkeypatch.setenv("STUB_CHUNKS", "1")
    vllm = start()
    vllm.load("dense", models[0])
    assert vllm.exchange("time_pass", name="dense", batch=3, tokens=4, steps=4)["ms"] == pytest.approx([12, 2, 2])
    assert vllm.exchange("time_pass", name="dense", batch=3, tokens=4, steps=0)["ms"] == []


def test_each_token_of_a_prompt_has_a_log_probability(models, start, tmp_path):
    vllm = start()
    vllm.load("pruned", models[1])
    scores = {"logs": [[-1, -2], [-1]], "ranks": [[1, 2], [1]]}
    assert vllm.exchange("score", name="pruned", sequences=[[5, 6, 7], [8, 9]]) == scores
    assert notes(tmp_path, "prompts") == [[{"prompt_token_ids": [5, 6, 7]}, {"prompt_token_ids": [8, 9]}]]
    assert notes(tmp_path, "params")[0]["prompt_logprobs"] == 0


def test_what_the_user_gives_goes_before_what_is_usual(models, start, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    vllm = start({"enforce_eager": True, "max_model_len": 7, "enable_prefix_caching": True})
    vllm.load("dense", models[0], max_model_len=9, dtype="half")
    (given,) = notes(tmp_path, "options")
    assert (given["max_model_len"], given["dtype"], given["enforce_eager"]) == (7, "half", True)
    assert given["enable_prefix_caching"] is False  # or a prompt would be computed once for all passes
    (environment,) = notes(tmp_path, "environment")
    assert (environment["VLLM_CPU_KVCACHE_SPACE"], environment["VLLM_CPU_OMP_THREADS_BIND"]) == ("4", "nobind")
    assert (environment["OMP_NUM_THREADS"], environment["TORCHDYNAMO_DISABLE"]) == ("3", "1")
    compiling = start()
    compiling.load("dense", models[0])
    assert "TORCHDYNAMO_DISABLE" not in notes(tmp_path, "environment")[-1]


def test_an_engine_that_says_something_is_not_ended(models, start, tmp_path):
    """It takes three seconds in all, and is never silent for two."""
    behave(tmp_path, "takes its time")
    vllm = start()
    vllm.exchange("describe")
    vllm.silence = 2
    vllm.load("dense", models[0])
    assert list(vllm.folders) == ["dense"]


WRONG = {
    "hangs": ("timed_out", "vllm said nothing for 1 s, and was ended"),
    "raises": ("error", "ValueError: No available memory for the cache blocks. Try increasing it."),
    "raises for a worker": ("error", "ValueError: heads do not divide"),
    "has no memory": ("out_of_memory", "out of memory (OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00"),
    "says no UTF-8": ("error", "vllm ended: ValueError: \ufffd\ufffd broken"),
    "is killed": ("out_of_memory", "vllm killed by SIGKILL, as the system does when memory runs out, while it ran"),
}


@pytest.mark.parametrize("behaviour", WRONG)
def test_what_goes_wrong_is_one_line_and_nothing_is_left_running(behaviour, models, start, tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "count_kills", lambda: None)  # as where the system does not say
    vllm = start()
    vllm.exchange("describe")
    vllm.silence = 1 if behaviour == "hangs" else 60
    behave(tmp_path, behaviour)
    with pytest.raises(EngineFailed) as caught:
        vllm.load("dense", models[0])
    status, reason = WRONG[behaviour]
    assert (caught.value.status, str(caught.value)[: len(reason)]) == (status, reason)
    assert "\n" not in str(caught.value)
    assert not psutil.pid_exists(notes(tmp_path, "process")[0])
    assert vllm.folders == {}
    behave(tmp_path, "")
    vllm.silence = 60
    vllm.load("dense", models[0])  # by another process
    assert list(vllm.folders) == ["dense"]


def test_a_python_without_vllm_or_that_is_none_is_one_line(start, tmp_path, monkeypatch):
    with pytest.raises(EngineFailed, match="cannot be run: No such file"):
        start(python=tmp_path / "none").exchange("describe")
    ends = tmp_path / "ends"  # without the end of a line, after which it may as well still be running
    ends.write_text('#!/bin/sh\nprintf %s "$*"\n')
    ends.chmod(0o755)
    with pytest.raises(EngineFailed, match=r"vllm ended: -m bench.inference.vllm_script"):
        start(python=ends).exchange("describe")
    number = tmp_path / "number"
    number.write_text("#!/bin/sh\necho 3\nsleep 60\n")
    number.chmod(0o755)
    with pytest.raises(EngineFailed, match="vllm answers '3', which is no JSON object"):
        start(python=number).exchange("describe")
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(EngineFailed, match=r"^ModuleNotFoundError: No module named 'vllm'$"):
        start().exchange("describe")


def test_the_process_ends_with_the_one_that_has_started_it(models, tmp_path):
    """Also while it hangs, and where that one could not end it."""
    behave(tmp_path, "hangs")
    program = (
        "import sys; from pathlib import Path; from bench.inference.vllm_process import VllmProcess\n"
        "VllmProcess(sys.executable, {}, threads=1, silence=600).load('dense', Path(sys.argv[1]))\n"
    )
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, str(STUB)])
    parent = subprocess.Popen([sys.executable, "-c", program, models[0]], env=os.environ | {"PYTHONPATH": path})
    _wait(lambda: (tmp_path / "notes").exists() and notes(tmp_path, "process"))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    (child,) = notes(tmp_path, "process")
    _wait(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def _wait(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_flags_of_vllm_become_arguments():
    words = "--enforce-eager --gpu-memory-utilization=0.8 --no-enable-prefix-caching --max-model-len 4096 --dtype half"
    assert parse_options(words.split()) == {
        "enforce_eager": True,
        "gpu_memory_utilization": 0.8,
        "enable_prefix_caching": False,
        "max_model_len": 4096,
        "dtype": "half",
    }
    for wrong in (["-tp", "2"], ["--dtype", "half", "half"]):
        with pytest.raises(UserError, match="belongs to no flag"):
            parse_options(wrong)
