"""Scores token ids by vLLM; run by the Python that has it, which has nothing of this suite.

    python vllm_likelihood.py MODEL ASKED TOLD [ENGINE ARGUMENTS]

ASKED holds lists of token ids, TOLD is written: the nats of each list, all tokens but its first. It has been
held against no version of the engine, and has not been run.
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def options(words: list[str]) -> dict[str, object]:
    """Return flags as arguments of vllm.LLM: --enforce-eager is True, and numbers are numbers."""
    found: dict[str, object] = {}
    for at, word in enumerate(words):
        if word.startswith("--"):
            value = words[at + 1] if at + 1 < len(words) and not words[at + 1].startswith("--") else "true"
            try:
                found[word[2:].replace("-", "_")] = json.loads(value)
            except ValueError:
                found[word[2:].replace("-", "_")] = value
    return found


def main() -> None:
    model, asked, told, *more = sys.argv[1:]
    sequences = json.loads(Path(asked).read_text(encoding="utf-8"))
    engine = LLM(model=model, **options(more))
    prompts = [{"prompt_token_ids": ids} for ids in sequences]
    answers = engine.generate(prompts, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0), use_tqdm=False)
    nats = []
    for ids, answer in zip(sequences, answers, strict=True):
        scores = answer.prompt_logprobs
        nats.append(-sum(scores[at][ids[at]].logprob for at in range(1, len(ids))))
    Path(told).write_text(json.dumps(nats), encoding="utf-8")


if __name__ == "__main__":
    main()
