"""Holds models in vLLM and answers requests about them; run by the Python that has vLLM.

A request is a line of JSON on the standard input: `do` names a function of `HeldModels`, the rest is what it is given.
The answer is a line of JSON on the standard output, {status, reason} where there is none. All that vLLM prints goes to
the standard error. The process ends with its input, and on Linux with the process that has started it.

All engines are in this one process (VLLM_ENABLE_V1_MULTIPROCESSING=0), so that they take turns, vLLM is imported once,
and an exception is the true one. The package vLLM knows pruned models by this project's plugin, which lies beside this
script, whether it is installed there or not.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import signal
import sys
import time
import warnings
from itertools import pairwise
from typing import Any

from bench.system import failures

END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


class HeldModels:
    """Holds models by their names."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}

    def describe(self) -> dict[str, Any]:
        """Return vLLM's version, and `device`, `gpu` and `gpus` as an environment of records names them."""
        import vllm
        from vllm.platforms import current_platform

        device: dict[str, Any] = {"device": current_platform.device_type}
        if device["device"] == "cuda":
            import torch

            device |= {"gpu": torch.cuda.get_device_name(0), "gpus": torch.cuda.device_count()}
        return {"version": vllm.__version__, "device": device}

    def check_plugin(self) -> dict[str, str]:
        """Return under `trouble` why this vLLM cannot be given pruned models of every shape; empty where it can."""
        from bench.inference.vllm_plugin import register

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            register()
        words = [str(warning.message) for warning in caught]
        return {"trouble": next((text for text in words if text.startswith("prunebench")), "")}

    def load(self, name: str, folder: str, options: dict[str, Any]) -> dict[str, str]:
        """Load a folder as `name`, in the place of what had that name, and return the class that computes it.

        options  arguments of vllm.LLM
        """
        from vllm import LLM

        self.drop(name)
        model = LLM(model=folder, disable_log_stats=True, **options | {"enable_prefix_caching": False})
        self.models[name] = model
        return {"class": model.llm_engine.model_config.architecture}

    def drop(self, name: str) -> dict[str, str]:
        """Free the memory of a model, if there is one of that name."""
        if self.models.pop(name, None) is not None:
            gc.collect()
        return {}

    def score(self, name: str, sequences: list[list[int]]) -> dict[str, list[list[float]]]:
        """Return the log-probabilities of each sequence's tokens but its first, and their ranks, 1 the likeliest."""
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": ids} for ids in sequences]
        wish = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        answers = self.models[name].generate(prompts, wish, use_tqdm=True)  # the bar shows that the process is alive
        logs, ranks = [], []
        for ids, answer in zip(sequences, answers, strict=True):
            scores = answer.prompt_logprobs
            own = [scores[at][ids[at]] for at in range(1, len(ids))]
            logs.append([score.logprob for score in own])
            ranks.append([score.rank for score in own])
        return {"logs": logs, "ranks": ranks}

    def write(self, name: str, prompts: list[list[int]], most: int, until: list[str]) -> dict[str, list[list[int]]]:
        """Return the greedy tokens behind each prompt, `most` at most, up to the first of the stop strings."""
        from vllm import SamplingParams

        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        wish = SamplingParams(max_tokens=most, temperature=0.0, stop=until)
        answers = self.models[name].generate(inputs, wish, use_tqdm=True)
        return {"tokens": [list(answer.outputs[0].token_ids) for answer in answers]}

    def time_pass(self, name: str, batch: int, tokens: int, steps: int) -> dict[str, list[float]]:
        """Return the milliseconds until `batch` prompts of `tokens` tokens have their first token, then of each step.

        A step gives each sequence a token. `steps` is how many follow the first; there are fewer where vLLM computes
        the prompts in several calls, in which it generates for some sequences already. Each prompt is computed anew,
        since prefixes are not cached.
        """
        from vllm import SamplingParams

        engine, draw = self.models[name].llm_engine, random.Random(0)
        vocabulary = engine.model_config.get_vocab_size()
        wish = SamplingParams(max_tokens=1 + steps, temperature=0.0, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": draw.choices(range(vocabulary), k=tokens)} for _ in range(batch)]
        stamps = [time.perf_counter()]
        for number, prompt in enumerate(prompts):
            engine.add_request(str(number), prompt, wish)
        while engine.has_unfinished_requests():
            if len(engine.step()) == batch:
                stamps.append(time.perf_counter())
        return {"ms": [1e3 * (end - start) for start, end in pairwise(stamps)]}


def main() -> None:
    """Answer requests until there are no more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    models = HeldModels()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(models, request.pop("do"))(**request)
        except Exception as error:
            rest = " ".join(" ".join(str(error).strip().splitlines()[1:]).split())  # pydantic's first line says nothing
            reason = f"{failures.reason_of_error(error)} {rest}".strip()
            answer = {"status": failures.status_of_error(error), "reason": reason}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
