"""Scores token ids by SGLang; run by the Python that has it, which has nothing of this suite.

    python sglang_likelihood.py MODEL ASKED TOLD [SERVER ARGUMENTS]

ASKED holds lists of token ids, TOLD is written: the nats of each list, all tokens but its first. It has been
held against no version of the engine, and has not been run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import sglang
from sglang.srt.server_args import prepare_server_args


def main() -> None:
    """Write the nats of each list of token ids."""
    model, questions, output, *more = sys.argv[1:]
    sequences = json.loads(Path(questions).read_text(encoding="utf-8"))
    engine = sglang.Engine(server_args=prepare_server_args(["--model-path", model, *more]))
    wish = {"max_new_tokens": 1, "temperature": 0.0}
    answers = engine.generate(input_ids=sequences, sampling_params=wish, return_logprob=True, logprob_start_len=0)
    nats = []
    for answer in answers:
        scores = answer["meta_info"]["input_token_logprobs"]
        nats.append(-sum(score[0] for score in scores[1:]))
    Path(output).write_text(json.dumps(nats), encoding="utf-8")
    engine.shutdown()


if __name__ == "__main__":
    main()
