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

from methods.base import register
from methods.depth.greedy_search import GreedyBlocks
from methods.ranges import Tokens


@register("blockpruner")
@dataclass(frozen=True)
class BlockPruner(GreedyBlocks):
    """Drop attentions and MLPs one by one, each time the one without which perplexity is lowest (Zhong et al. 2024)."""

    tokens: Tokens = 512  # calibration tokens that are read

    needs = "calibration"
    cost = "about L forwards per block removed"
