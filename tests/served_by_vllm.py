"""Scores tokens by vLLM with several models, one after the other; run by the Python that has vLLM, without this suite.

    python served_by_vllm.py QUESTIONS ANSWERS

QUESTIONS  {folder: {"ids": token ids, "more": arguments of vllm.LLM}}
ANSWERS    written: {folder: log-probabilities of ids[1:], or the first line of why there are none}
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # what reads log-probabilities of a prompt would be compiled by g++
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; otherwise most of the memory
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process, so that vLLM is imported once, and the true exception
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def score(folder: str, ids: list[int], more: dict) -> list[float]:
    """The log-probabilities of ids[1:] by a model."""
    from vllm import LLM, SamplingParams

    sizes = {"max_model_len": len(ids) + 1, "max_num_seqs": 2, "enforce_eager": True, "enable_prefix_caching": False}
    engine = LLM(model=folder, dtype="float32", disable_log_stats=True, **sizes, **more)
    wish = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    (answer,) = engine.generate([{"prompt_token_ids": ids}], wish, use_tqdm=False)
    return [answer.prompt_logprobs[at][ids[at]].logprob for at in range(1, len(ids))]


def main() -> None:
    os.environ |= SETTINGS
    from vllm.distributed import cleanup_dist_env_and_memory

    questions, answers = map(Path, sys.argv[1:])
    found: dict[str, object] = {}
    for folder, question in json.loads(questions.read_text()).items():
        try:
            found[folder] = score(folder, question["ids"], question.get("more", {}))
        except Exception as error:
            found[folder] = f"{type(error).__name__}: {error}"
        gc.collect()
        cleanup_dist_env_and_memory()
        answers.write_text(json.dumps(found))  # what there is outlives a crash


if __name__ == "__main__":
    main()
