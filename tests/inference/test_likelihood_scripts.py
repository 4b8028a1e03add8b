"""The scripts that another Python runs, beside stubs of vLLM and SGLang that answer in the shapes of those engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.inference import other_python

SEQUENCES = [[5, 6, 7], [8, 9, 10]]
# Of the n-th token the stubs say a log-likelihood of -n, and of the first one none, as both engines do.
VLLM = """
import json, os
from types import SimpleNamespace

def note(**what):
    with open(os.environ["STUB_NOTES"], "a") as file:
        file.write(json.dumps(what) + "\\n")

class SamplingParams:
    def __init__(self, **given):
        self.given = given

class LLM:
    def __init__(self, **given):
        note(engine=given)

    def generate(self, prompts, params, use_tqdm):
        note(prompts=prompts, params=params.given)
        def scores(ids):
            other = {0: SimpleNamespace(logprob=0.0)}
            return [None] + [other | {ids[n]: SimpleNamespace(logprob=-float(n))} for n in range(1, len(ids))]
        return [SimpleNamespace(prompt_logprobs=scores(one["prompt_token_ids"])) for one in prompts]
"""
SGLANG = """
import json, os

def note(**what):
    with open(os.environ["STUB_NOTES"], "a") as file:
        file.write(json.dumps(what) + "\\n")

class Engine:
    def __init__(self, *, server_args):
        note(engine=server_args.words)

    def generate(self, *, input_ids, sampling_params, return_logprob, logprob_start_len):
        note(prompts=input_ids, params=sampling_params, start=logprob_start_len)
        assert return_logprob
        def scores(ids):
            return [(None, ids[0], None)] + [(-float(n), ids[n], None) for n in range(1, len(ids))]
        return [{"text": "", "meta_info": {"input_token_logprobs": scores(ids)}} for ids in input_ids]

    def shutdown(self):
        note(shutdown=True)
"""
SERVER_ARGS = """
class ServerArgs:
    def __init__(self, words):
        self.words = words

def prepare_server_args(words):
    return ServerArgs(words)
"""


@pytest.fixture
def stubs(tmp_path):
    """A folder of packages that stand for both engines."""
    folder = tmp_path / "stubs"
    for name, content in (
        ("vllm/__init__.py", VLLM),
        ("sglang/__init__.py", SGLANG),
        ("sglang/srt/__init__.py", ""),
        ("sglang/srt/server_args.py", SERVER_ARGS),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def run(engine: str, stubs: Path, *more: str) -> tuple[list[float], dict]:
    """What the script of an engine tells, and what the engine was given, by what it was for."""
    asked, told, notes = (stubs.parent / name for name in ("asked.json", "told.json", "notes"))
    asked.write_text(json.dumps(SEQUENCES))
    script = Path(other_python.__file__).with_name(other_python.SCRIPTS[engine])
    alone = {"PYTHONPATH": str(stubs), "STUB_NOTES": str(notes), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, script, "MODEL", asked, told, *more], env=alone, check=True, timeout=60)
    given = {name: value for line in notes.read_text().splitlines() for name, value in json.loads(line).items()}
    return json.loads(told.read_text()), given


def test_vllm_is_asked_for_the_likelihood_of_each_token_of_a_prompt(stubs):
    nats, given = run("vllm", stubs, "--dtype", "bfloat16", "--enforce-eager")
    assert nats == [1 + 2, 1 + 2]
    assert given["engine"] == {"model": "MODEL", "dtype": "bfloat16", "enforce_eager": True}
    assert given["prompts"] == [{"prompt_token_ids": ids} for ids in SEQUENCES]
    assert given["params"] == {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}


def test_sglang_is_asked_for_the_likelihood_of_each_token_of_a_prompt(stubs):
    """Its arguments are resolved once, by itself: taken apart and made again they would be resolved twice."""
    nats, given = run("sglang", stubs, "--dtype", "bfloat16")
    assert nats == [1 + 2, 1 + 2]
    assert given["engine"] == ["--model-path", "MODEL", "--dtype", "bfloat16"]
    assert (given["prompts"], given["start"]) == (SEQUENCES, 0)
    assert given["params"] == {"max_new_tokens": 1, "temperature": 0.0}
    assert given["shutdown"] is True
