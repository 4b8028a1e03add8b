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
leave a share of the layers at the front alone; `protect_first` counts them.
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

MODES = {"both": ("attention", "mlp"), "attention": ("attention",)}


@register("finercut")
@dataclass(frozen=True)
class FinerCut:
    """Drop attentions and MLPs one by one, each time the one that changes the output least (Zhang et al. 2024)."""

    distance: str = "js"  # of the next token's distribution to the dense model's: js or kl
    mode: str = "both"  # blocks that may go: both kinds, or attention alone
    protect_first: int = 0  # layers at the front that stay whole
    tokens: int = 512  # calibration tokens that are read

    fixed = False
    uneven = "it removes single attentions and MLPs"
    needs = "calibration"
    cost = "about L forwards per block removed"

    def __post_init__(self) -> None:
        if self.distance not in ("js", "kl"):
            raise ValueError(f"distance is js or kl; got {self.distance!r}")
        if self.mode not in MODES:
            raise ValueError(f"mode is one of {', '.join(MODES)}; got {self.mode!r}")
        if self.protect_first < 0 or self.tokens < 2:
            raise ValueError("protect_first is not negative, and tokens is at least 2")

    def blocks(self, model: Decoder) -> list[Sublayer]:
        return [block for block in sublayers_of(model, *MODES[self.mode]) if block.layer >= self.protect_first]

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        return {"parameters": parameters(model) - block_parameters(model, ratio, self.blocks(model))}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        blocks = self.blocks(model)
        budget = block_parameters(model, ratio, blocks)
        if not budget:
            return {"removed_layers": [], "removed_attention": [], "removed_mlp": []}
        trial = Trial(model, calibration.first(self.tokens), self.distance)
        found = search(trial, blocks, budget, known=[Sublayer.parse(text) for text in calibration.order])
        return remove_sublayers(model, found.order) | found.decisions()
