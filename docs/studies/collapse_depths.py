"""Says how many layers of a model had better collapse where the others are narrowed: the depths of `laco-puzzle`.

    python docs/studies/collapse_depths.py --seed 0 --ratio 0.3 --layers 9,8,6,3,0 >> docs/results/collapse-depths.jsonl

For each number of layers `laco-puzzle` is told how many collapse, and the model is measured on windows of both texts
that are not among the 48 that the other tables draw. A line for each is written to stdout, as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.data import pretrained, texts
from bench.evaluation.scoring import window_nll
from methods.budget import block_parameters, matched_ratio
from methods.counted import share_of_all
from methods.model.decoder import Decoder, twin
from methods.model.sizes import parameters
from methods.model.structures import sublayers_of
from methods.search.laco_puzzle import LaCoPuzzle

TEXTS = ("wiki", "c4")
DRAWN, WINDOWS, LENGTH = 48, 24, 512  # windows of other tables; at most so many here; their tokens


def unused(tokenizer: Any, text: str) -> tuple[Tensor, Tensor]:
    """Return the tokens and what is scored of windows that no drawn window equals, (M, W) each."""
    every = texts.evaluation(tokenizer, text, LENGTH, LENGTH, 0)
    drawn = {tuple(row.tolist()) for row in texts.evaluation(tokenizer, text, LENGTH, LENGTH, DRAWN, drawn=True).ids}
    left = [number for number, row in enumerate(every.ids) if tuple(row.tolist()) not in drawn]
    random.Random(3).shuffle(left)
    chosen = sorted(left[:WINDOWS])
    return every.ids[chosen], every.scored[chosen]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--ratio", type=float, default=0.3, help="of the decoder")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration text")
    parser.add_argument("--layers", default="9,8,6,3,0", help="how many collapse, the largest number first")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, tokenizer = pretrained.load(asked.model, torch.device("cpu"), torch.bfloat16)
    dense, calibration = Decoder(model), texts.calibration(tokenizer, "c4", 16, 256, asked.seed)
    share = matched_ratio(dense, share_of_all(dense, asked.ratio, "decoder"))
    gone = block_parameters(dense, share, sublayers_of(dense, "attention", "mlp"))
    windows = {text: unused(tokenizer, text) for text in TEXTS}
    for k in map(int, asked.layers.split(",")):
        pruned = twin(dense)
        decisions = LaCoPuzzle().pruned(pruned, calibration, k, gone)
        found = tuple(decisions.get("removal_order", ()))  # on the way to more layers
        calibration = replace(calibration, order=max(calibration.order, found, key=len))
        line = {"model": asked.model, "ratio": asked.ratio, "seed": asked.seed, "layers": k}
        line |= {"parameters": parameters(pruned), "removed_layers": decisions["removed_layers"]}
        for text, (ids, scored) in windows.items():
            nll = window_nll(pruned.model, ids, scored, 4096).sum(1) / scored.sum(1)
            line[text] = {"perplexity": float(nll.mean().exp()), "nll": [round(one, 5) for one in nll.tolist()]}
        print(json.dumps(line), flush=True)
        print(f"{k} layers: " + ", ".join(f"{line[text]['perplexity']:.1f}" for text in TEXTS), file=sys.stderr)


if __name__ == "__main__":
    main()
