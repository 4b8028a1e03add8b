"""Measures pruned models on windows that no table of the studies draws, for settings that are chosen before.

    python docs/studies/unused_windows.py --ratio 0.3 --seed 0 --methods laco-ls,laco-puzzle:collapsed=0.33

Perplexity on 24 windows of 512 tokens of `wiki` and 14 of `c4`, which are not among the 48 that `--windows 48` draws. A
line for each method is written to stdout, as JSON. Bfloat16, one thread.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from typing import Any

import torch
from torch import Tensor

import methods
from bench.data import pretrained, texts
from bench.evaluation.scoring import nll_of_windows
from bench.plan.fields import parse_methods
from methods.budget import round_to_layers
from methods.counted import share_of_all
from methods.model.decoder import Decoder, make_twin
from methods.model.sizes import parameters

TEXTS = ("wiki", "c4")
DRAWN, WINDOWS, LENGTH = 48, 24, 512  # windows of other tables; at most so many here; their tokens


def unused(tokenizer: Any, text: str) -> tuple[Tensor, Tensor]:
    """Return the tokens and what is scored of windows that no drawn window equals, (M, W) each."""
    every = texts.make_evaluation_text(tokenizer, text, LENGTH, LENGTH, 0)
    drawn = {
        tuple(row.tolist())
        for row in texts.make_evaluation_text(tokenizer, text, LENGTH, LENGTH, DRAWN, drawn=True).ids
    }
    left = [number for number, row in enumerate(every.ids) if tuple(row.tolist()) not in drawn]
    random.Random(3).shuffle(left)
    chosen = sorted(left[:WINDOWS])
    return every.ids[chosen], every.scored[chosen]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--methods", required=True, help="as `run --methods` takes them")
    parser.add_argument("--ratio", type=float, required=True, help="of the decoder")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration text, 16 sequences of 256 tokens of c4")
    parser.add_argument("--plugin", action="append", default=[], help="a file that registers methods; may be repeated")
    asked = parser.parse_args(arguments)
    methods.load(asked.plugin)
    torch.set_num_threads(1)
    model, tokenizer = pretrained.load(asked.model, torch.device("cpu"), torch.bfloat16)
    dense, calibration = Decoder(model), texts.make_calibration(tokenizer, "c4", 16, 256, asked.seed)
    share = round_to_layers(dense, share_of_all(dense, asked.ratio, "decoder"))
    windows = {text: unused(tokenizer, text) for text in TEXTS}
    for mention in parse_methods(asked.methods):
        pruned, start = make_twin(dense), time.perf_counter()
        decisions = methods.make(mention.method, mention.given).prune(pruned, calibration, share)
        name = mention.method + (":" + ",".join(f"{a}={b}" for a, b in mention.given.items()) if mention.given else "")
        line = {"model": asked.model, "ratio": asked.ratio, "seed": asked.seed, "method": name}
        line |= {"seconds": round(time.perf_counter() - start), "parameters": parameters(pruned)}
        line |= {"removed_layers": decisions.get("removed_layers", [])}
        for text, (ids, scored) in windows.items():
            nll = nll_of_windows(pruned.model, ids, scored, 4096).sum(1) / scored.sum(1)
            line[text] = {"perplexity": float(nll.mean().exp()), "nll": [round(one, 5) for one in nll.tolist()]}
        print(json.dumps(line), flush=True)
        print(name, *(f"{line[text]['perplexity']:.1f}" for text in TEXTS), file=sys.stderr)


if __name__ == "__main__":
    main()
