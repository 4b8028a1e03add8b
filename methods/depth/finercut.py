"""FinerCut: drop single attentions and MLPs, each time the one that changes the model's output least.

Zhang, Li, Wang, Shen, Plank, Bischl, Rezaei, Kawaguchi 2024, "FinerCut: Finer-grained Interpretable Layer Pruning for
Large Language Models", arXiv 2405.18218.

With the blocks S gone already, the next of those left is

    b* = argmin over b of    mean over tokens of d(p_dense, p_without S and b)

where p is the distribution of the next token and d the Jensen-Shannon divergence,

    js   (KL(p || m) + KL(q || m)) / 2,    m = (p + q) / 2            kl   KL(p_dense || q)

No text is taken for the truth: what counts is to speak as the dense model does. `mode=attention` drops attentions
alone, which the paper finds to be the blocks that are missed least.

The search, its budget in parameters and its cost are those of methods/depth/blockpruner.py. The authors' code can
leave a share of the layers at the front alone; `keep_first` counts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from methods.base import register
from methods.depth.greedy_search import GreedyBlocks
from methods.model.decoder import Decoder
from methods.model.structures import Sublayer, sublayers_of
from methods.ranges import Layers, Tokens

MODES = {"both": ("attention", "mlp"), "attention": ("attention",)}


@register("finercut")
@dataclass(frozen=True)
class FinerCut(GreedyBlocks):
    """Drop attentions and MLPs one by one, each time the one that changes the output least (Zhang et al. 2024)."""

    distance: Literal["js", "kl"] = "js"  # of the next token's distribution to the dense model's: js or kl
    mode: Literal["both", "attention"] = "both"  # blocks that may go: both kinds, or attention alone
    keep_first: Layers = 0  # layers at the front that stay whole
    tokens: Tokens = 512  # calibration tokens that are read

    needs = "calibration"
    cost = "about L forwards per block removed"

    @property
    def loss(self) -> str:
        return self.distance

    def blocks(self, model: Decoder) -> list[Sublayer]:
        return [block for block in sublayers_of(model, *MODES[self.mode]) if block.layer >= self.keep_first]
