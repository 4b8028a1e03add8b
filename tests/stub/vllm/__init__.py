"""Stands for vLLM: it notes what it is given, and does as a file beside its notes says.

Of the n-th token it says a log-probability of -n, and of the first one none, as vLLM does. Its clock goes on by the
bytes of a model's weights alone, so that a smaller model is faster by exactly as much.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

__version__ = "0.33.0"
PROMPT, STEP = 2e-6, 1e-6  # seconds for a byte of weights
CLOCK = SimpleNamespace(now=0.0)
time.perf_counter = lambda: CLOCK.now


def note(**what: object) -> None:
    with Path(os.environ["STUB_NOTES"]).open("a") as file:
        file.write(json.dumps(what) + "\n")


class SamplingParams:
    def __init__(self, **given: object) -> None:
        self.given = given


class LLM:
    def __init__(self, model: str, **given: object) -> None:
        self.model = model
        print("{}")  # vLLM prints to its output, and no line of it is an answer
        note(model=model, options=given, process=os.getpid(), environment=dict(os.environ))
        behaviour = Path(os.environ["STUB_NOTES"]).with_suffix(".behaviour")
        misbehave(behaviour.read_text() if behaviour.exists() else "")
        self.llm_engine = Engine(sum(file.stat().st_size for file in Path(model).glob("*.safetensors")))

    def __del__(self) -> None:
        if not sys.is_finalizing():
            note(dropped=self.model)

    def generate(self, prompts: list[dict], params: SamplingParams, use_tqdm: bool) -> list[SimpleNamespace]:
        note(prompts=prompts, params=params.given)
        answers = []
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            written = [SimpleNamespace(token_ids=tuple(ids[::-1][: params.given["max_tokens"]]))]
            answers.append(SimpleNamespace(prompt_logprobs=scores(ids), outputs=written))
        return answers


def scores(ids: list[int]) -> list[dict | None]:
    top = {0: SimpleNamespace(logprob=0.0)}
    return [None] + [top | {ids[n]: SimpleNamespace(logprob=-float(n), rank=n)} for n in range(1, len(ids))]


class Engine:
    """Computes each prompt in a call of its own where STUB_CHUNKS is set, else all at once."""

    def __init__(self, size: int) -> None:
        self.size, self.left = size, dict[str, int]()
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 50, architecture="StubForCausalLM")

    def add_request(self, number: str, prompt: dict, params: SamplingParams) -> None:
        note(request=prompt["prompt_token_ids"], params=params.given)
        self.left[number] = -params.given["max_tokens"]  # negative until its prompt is computed

    def has_unfinished_requests(self) -> bool:
        return bool(self.left)

    def step(self) -> list[str]:
        waiting = [number for number, tokens in self.left.items() if tokens < 0]
        prompts = waiting[:1] if os.environ.get("STUB_CHUNKS") else waiting
        CLOCK.now += self.size * (PROMPT if prompts else STEP)
        for number in prompts:
            self.left[number] *= -1
        answers = [number for number, tokens in self.left.items() if tokens > 0]
        for number in answers:
            self.left[number] -= 1
            if not self.left[number]:
                del self.left[number]
        return answers


def misbehave(behaviour: str) -> None:
    if behaviour == "hangs":
        time.sleep(600)
    elif behaviour == "takes its time":
        for number in range(6):
            print(f"\rloading {number}/6", end="", file=(sys.stdout, sys.stderr)[number % 2], flush=True)
            time.sleep(0.5)
    elif behaviour == "raises":
        raise ValueError("No available memory for the cache blocks.\nTry increasing it.")
    elif behaviour == "raises for a worker":
        print("ERROR 12-01 (Worker pid=7) ValueError: heads do not divide", file=sys.stderr)
        raise RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    elif behaviour == "has no memory":
        raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB.")
    elif behaviour == "says no UTF-8":
        sys.stderr.buffer.write(b"ValueError: \xff\xfe broken\n")
        sys.exit(1)
    elif behaviour == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
