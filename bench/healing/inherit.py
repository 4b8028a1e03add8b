"""Does a pruned model inherit what the dense one knew? It is trained beside a random model of its own shape.

Both see the same sequences in the same order for as many steps, by the same recipe; what differs is where they begin.
LaCo's authors claim that a merged model is a better start than random weights. The random model is initialised as
transformers initialises a new model of the family. Shortcuts of a sliced model, which no family has, start as identity
matrices, cut to their shapes: a random map of the residual stream would be no fair start.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from bench.healing import training
from bench.healing.text import Text
from bench.plan.recipe import Recipe
from methods.model.decoder import Decoder


@torch.no_grad()
def random_like(model: Decoder, seed: int) -> Decoder:
    """A model of the same shape, device and dtype whose weights are random."""
    twin: Any = copy.deepcopy(model.model)  # drops the marks of loaded weights, which would not be drawn again
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin.apply(twin._init_weights)
    for module in twin.modules():
        for shortcut in getattr(module, "shortcuts", ()):
            torch.nn.init.eye_(shortcut.weight)
    return Decoder(twin)


def compare(model: Decoder, text: Text, recipe: Recipe, folder: Path | None = None) -> dict[str, training.Curve]:
    """{pruned, random: learning curve} of `model` and of a random one like it; `model` is trained in place."""
    twin = random_like(model, recipe.seed)
    starts = {"pruned": model, "random": twin}
    return {
        name: training.heal(start, text, recipe, folder=folder / name if folder is not None else None)
        for name, start in starts.items()
    }
