"""Drop single attentions and MLPs, each time the one whose absence costs least perplexity: BlockPruner.

Zhong, Wan, Chen, Quan, Li 2024, "BlockPruner: Fine-grained Pruning for Large Language Models", arXiv 2406.10594.
Code: MrGGLS/BlockPruner.

A layer is two residual blocks, x + attn(norm(x)) and x + mlp(norm(x)), and each may go without the other. With the set
S of blocks removed already, the next one is

    b* = argmin over b of    PPL(model without S and b)

A block goes with the norm in front of it, and a layer that has lost both goes whole. An attention that is removed takes
its part of the key/value cache with it.

Departures from the authors' code. The paper counts blocks. An attention and an MLP differ in size (1 to 3 in
SmolLM2-135M), so parameters are counted here: the search continues while some block does not exceed the budget by more
than half the smallest block. A trial runs only what lies behind the block on trial, which changes no value. 512 tokens
of the run's calibration text are read; the paper has 256 samples of Alpaca, and the code joins its samples (128, and 32
in its script) and cuts them into sequences of 2,048. There are twice as many candidates as layers, and up to twice as
many removals. Padding is left out of the loss.

Measured. docs/studies/departures.md says why no parameter counts blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.base import Look, Tokens, register
from methods.trials.selection import GreedyBlocks


@register("blockpruner")
@dataclass(frozen=True)
class BlockPruner(GreedyBlocks):
    """Drop attentions and MLPs one by one, each time the one without which perplexity is lowest (Zhong et al. 2024)."""

    tokens: Tokens = 512  # calibration tokens that are read

    cost = "about L forwards over 512 tokens per block removed"
    paper_reads = "32 examples of Alpaca in sequences of 2,048 tokens; 256 in the paper"  # block_search.sh
    look = Look("solid", "o")
    tiny = "tokens=48"
