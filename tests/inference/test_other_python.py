"""vLLM and SGLang in a Python of their own, which a recorded one stands for: what they are asked, and what is read."""

from __future__ import annotations

import json
import stat
import sys
import time
from pathlib import Path

import psutil
import pytest
import recorded_engine

from bench.inference import vllm_likelihood
from bench.inference.other_python import EngineFailed, OtherPython
from bench.speed.workloads import TimedPoint
from bench.system import failures

PREFILL, DECODE = TimedPoint("prefill", 2, 16), TimedPoint("decode", 1, 8)


@pytest.fixture
def python(tmp_path, monkeypatch):
    """The path of a Python that has both engines."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(recorded_engine.__file__)} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("RECORDED_NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("RECORDED_NATS", "[10.0]")
    return path


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(10**6))
    return folder


def asked(tmp_path) -> list[list[str]]:
    return [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]


def flags(words: list[str]) -> dict[str, str]:
    return {words[at]: words[at + 1] for at in range(len(words) - 1) if words[at].startswith("--")}


def test_vllm_tells_the_prompt_and_a_step(python, model, tmp_path):
    found = OtherPython("vllm", str(python), "--enforce-eager", 60).time_turn(model, "bfloat16", [PREFILL, DECODE], 4)
    assert found[PREFILL][0] == pytest.approx(2.0)  # ms: 2 ns for each of a million bytes
    assert len(found[PREFILL]) == len(found[DECODE]) == 5
    assert found[DECODE][2] == pytest.approx((6 - 2) * 1.02 / 4)  # the calls in the middle: of 5 tokens, less one
    first, *_, last = asked(tmp_path)
    assert first[:4] == ["-m", "vllm.entrypoints.cli.main", "bench", "latency"]
    told = flags(first)
    assert (told["--input-len"], told["--output-len"], told["--batch-size"]) == ("16", "1", "2")
    assert (told["--model"], told["--dtype"]) == (str(model), "bfloat16")
    assert first[-1] == "--enforce-eager"
    assert (flags(last)["--input-len"], flags(last)["--output-len"]) == ("8", "5")


def test_sglang_tells_the_prompt_and_a_step(python, model, tmp_path):
    found = OtherPython("sglang", str(python), "", 60).time_turn(model, "float16", [PREFILL, DECODE], 4)
    assert found == {PREFILL: [pytest.approx(2.0)], DECODE: [pytest.approx(1.0)]}
    first, _ = asked(tmp_path)
    assert first[:2] == ["-m", "sglang.bench_one_batch"]
    assert (flags(first)["--model-path"], flags(first)["--output-len"]) == (str(model), "5")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_likelihoods_come_from_a_script_in_that_python(engine, python, model, tmp_path):
    other = OtherPython(engine, str(python), "", 60)
    assert other.likelihoods(model, "bfloat16", [[1, 2], [3, 4]]) == [10.0, 10.0]
    (words,) = asked(tmp_path)
    assert words[0].endswith(f"{engine}_likelihood.py")
    assert Path(words[0]).is_file()
    assert words[-2:] == ["--dtype", "bfloat16"]
    assert other.version() == "0.33.0"  # and no warning of the packages there


def test_the_gpu_is_that_of_the_other_python(python, monkeypatch):
    other = OtherPython("vllm", str(python), "", 60)
    assert other.device() == {"device": "cpu"}
    monkeypatch.setenv("RECORDED_DEVICE", '["NVIDIA H100", 2]')
    assert other.device() == {"device": "cuda", "gpu": "NVIDIA H100", "gpus": 2}
    monkeypatch.setenv("RECORDED_DEVICE", "no torch")
    with pytest.raises(EngineFailed, match="names no device: no torch"):
        other.device()


def test_an_engine_that_says_something_is_not_ended(python, model, monkeypatch):
    """It takes three seconds in all, and is never silent for two."""
    monkeypatch.setenv("RECORDED_ENGINE", "takes its time")
    with pytest.raises(EngineFailed, match=r"vllm ended: loading 0/6 loading 1/6 .*OutOfMemoryError") as caught:
        OtherPython("vllm", str(python), "", 2).time_turn(model, "bfloat16", [PREFILL], 4)
    assert caught.value.status == "error"


@pytest.mark.parametrize(
    ("behaviour", "status", "reason"),
    [
        ("hangs", "timed_out", "vllm said nothing for 1 s, and was ended"),
        ("says no UTF-8", "error", "vllm ended: \ufffd\ufffd broken"),
        ("fails", "error", "vllm ended: RuntimeError: Engine core initialization failed"),
        ("has no memory", "out_of_memory", "vllm ended: "),
        ("is killed", "out_of_memory", "vllm killed by SIGKILL, as the system does when memory runs out, while it ran"),
        ("is silent", "error", "vllm wrote no result: "),
    ],
)
def test_what_goes_wrong_is_an_outcome(behaviour, status, reason, *, python, model, monkeypatch):
    monkeypatch.setenv("RECORDED_ENGINE", behaviour)
    monkeypatch.setattr(failures, "count_kills", lambda: None)  # as where the system does not say
    limit = 1 if behaviour == "hangs" else 60
    with pytest.raises(EngineFailed, match="vllm") as caught:
        OtherPython("vllm", str(python), "", limit).time_turn(model, "bfloat16", [PREFILL], 4)
    assert (caught.value.status, str(caught.value)[: len(reason)]) == (status, reason)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _running(python):
        time.sleep(0.05)
    assert not _running(python)


def _running(python: Path) -> list[int]:
    return [one.pid for one in psutil.process_iter() if str(python.parent) in " ".join(_words(one))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_wrong_count_of_answers_is_an_error(python, model, monkeypatch):
    monkeypatch.setenv("RECORDED_NATS", "[1.0, 2.0]")
    with pytest.raises(EngineFailed, match="vllm scored 4 of 2 sequences"):
        OtherPython("vllm", str(python), "", 60).likelihoods(model, "bfloat16", [[1, 2], [3, 4]])


def test_a_python_that_is_not_there_is_said(tmp_path):
    with pytest.raises(EngineFailed, match="cannot be run: No such file"):
        OtherPython("vllm", str(tmp_path / "none"), "", 60).version()


def test_flags_of_vllm_become_arguments():
    words = "--enforce-eager --gpu-memory-utilization=0.8 --no-enable-prefix-caching --max-model-len 4096 --dtype half"
    assert vllm_likelihood.parse_options(words.split()) == {
        "enforce_eager": True,
        "gpu_memory_utilization": 0.8,
        "enable_prefix_caching": False,
        "max_model_len": 4096,
        "dtype": "half",
    }
    for wrong in (["-tp", "2"], ["--dtype", "half", "half"]):
        with pytest.raises(SystemExit, match="belongs to no flag"):
            vllm_likelihood.parse_options(wrong)
