"""Scores token ids by vLLM; run by the Python that has it, which has nothing of this suite.

    python vllm_likelihood.py MODEL ASKED TOLD [ENGINE ARGUMENTS]

ASKED holds lists of token ids, TOLD is written: the nats of each list, all tokens but its first. It has been
held against no version of the engine, and has not been run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def parse_options(words: list[str]) -> dict[str, object]:
    """Return flags as arguments of vllm.LLM: --name value or --name=value, --enforce-eager is True, --no-name False.

    Ends the program for a word that belongs to no such flag, as short ones do not.
    """
    options: dict[str, object] = {}
    waiting = ""  # the flag whose value may be the next word
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            off = name.startswith("no_") and not equals
            waiting = "" if equals or off else name
            options[name[3:] if off else name] = _value(value) if equals else not off
        elif waiting:
            options[waiting], waiting = _value(word), ""
        else:
            sys.exit(f"{word!r} belongs to no flag; write --name value, with names in full")
    return options


def _value(word: str) -> object:
    try:
        return json.loads(word)
    except ValueError:
        return word


def main() -> None:
    """Write the nats of each list of token ids."""
    from vllm import LLM, SamplingParams

    model, questions, output, *more = sys.argv[1:]
    sequences = json.loads(Path(questions).read_text(encoding="utf-8"))
    engine = LLM(model=model, **parse_options(more))
    prompts = [{"prompt_token_ids": ids} for ids in sequences]
    wish = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    answers = engine.generate(prompts, wish, use_tqdm=True)  # the bar shows that the process is alive
    nats = []
    for ids, answer in zip(sequences, answers, strict=True):
        scores = answer.prompt_logprobs
        nats.append(-sum(scores[at][ids[at]].logprob for at in range(1, len(ids))))
    Path(output).write_text(json.dumps(nats), encoding="utf-8")


if __name__ == "__main__":
    main()
