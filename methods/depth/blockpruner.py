"""BlockPruner: drop single attentions and MLPs, each time the one whose absence costs least perplexity.

Zhong, Wan, Chen, Quan, Li 2024, "BlockPruner: Fine-grained Pruning for Large Language Models", arXiv 2406.10594.
Code: MrGGLS/BlockPruner.

A layer is two residual blocks, x + attn(norm(x)) and x + mlp(norm(x)), and each may go without the other. Of the blocks
left, the next to go is

    b* = argmin over b of    PPL(model without S and b)

S being those that have gone. A block goes with the norm in front of it; a layer that has lost both goes whole.

The paper counts blocks. An attention and an MLP differ in size (1 to 3 in SmolLM2-135M), so here the parameters are
counted: the search goes on while a block is left that does not overshoot the budget by more than half the smallest.

Departures from the authors' code. The order of removal is kept. A trial runs only what lies behind the block on trial,
which changes no value. 512 tokens of the run's calibration text are read, where the paper has 256 Alpaca samples: there
are twice as many candidates as layers, and up to twice as many removals. Padding is left out of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from methods.base import register
from methods.budget import block_parameters
from methods.depth.greedy_search import Trial, search
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import Sublayer, remove_sublayers, sublayers_of


@register("blockpruner")
@dataclass(frozen=True)
class BlockPruner:
    """Drop attentions and MLPs one by one, each time the one without which perplexity is lowest (Zhong et al. 2024)."""

    tokens: int = 512  # calibration tokens that are read

    fixed = False
    uneven = "it removes single attentions and MLPs"
    needs = "calibration"
    cost = "about L forwards per block removed"

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f"tokens is at least 2, so that there is one to predict; got {self.tokens}")

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        blocks = sublayers_of(model, "attention", "mlp")
        return {"parameters": parameters(model) - block_parameters(model, ratio, blocks)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        blocks = sublayers_of(model, "attention", "mlp")
        budget = block_parameters(model, ratio, blocks)
        if not budget:
            return {"removed_layers": [], "removed_attention": [], "removed_mlp": []}
        trial = Trial(model, calibration.first(self.tokens), "nll")
        found = search(trial, blocks, budget, known=[Sublayer.parse(text) for text in calibration.order])
        return remove_sublayers(model, found.order) | found.decisions()
