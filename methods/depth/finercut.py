"""Drop single attentions and MLPs, each time the one that changes the model's output least: FinerCut.

Zhang, Li, Wang, Shen, Plank, Bischl, Rezaei, Kawaguchi 2024, "FinerCut: Finer-grained Interpretable Layer Pruning for
Large Language Models", arXiv 2405.18218. Code: YaNgZhAnG-V5/llm_dissect.

With the set S of blocks removed already, the next one is

    b* = argmin over b of    mean over tokens of d(p, q without S and b)

p is the dense model's distribution of the next token, q the pruned model's, and d the Jensen-Shannon divergence or,
with `distance=kl`, the Kullback-Leibler divergence:

    js   (KL(p || m) + KL(q || m)) / 2,    m = (p + q) / 2
    kl   KL(p || q)

No text is taken as the truth, so a model is not rewarded for a lucky guess on the calibration text. `mode=attention`
removes attentions alone, which the paper finds to be missed least; that reaches as far as all attentions weigh (20 % of
SmolLM2-135M), and more is refused before any work. The search, its budget in parameters and its cost are those of
methods/depth/blockpruner.py; the dense model's logits are computed again for each trial where they do not fit.

Departures from the authors' code. The code computes (KL(m || p) + KL(m || q)) / 2 as js (`distance=js-released`) and
compares all positions (`positions=all`); here js is the paper's, over positions with a successor. The code's
`--exclude x` leaves the first x L layers and one more alone until the share x of the blocks has gone elsewhere, layer 0
always at first; `keep_first` here keeps them for good, which is the same up to that share. 512 tokens of the run's
calibration text are read; the code takes 10 sequences of 256 from WikiText-2.

Measured. docs/studies/departures.md compares the code's distance, positions and excluded front with the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from methods.base import Layers, Look, Tokens, register
from methods.model.decoder import Decoder
from methods.model.structures import Sublayer, sublayers_of
from methods.trials.blocks import Positions
from methods.trials.selection import GreedyBlocks

Distance = Literal["js", "kl", "js-released"]
MODES = {"both": ("attention", "mlp"), "attention": ("attention",)}


@register("finercut")
@dataclass(frozen=True)
class FinerCut(GreedyBlocks):
    """Drop attentions and MLPs one by one, each time the one that changes the output least (Zhang et al. 2024)."""

    distance: Distance = "js"  # of the next token's distribution to the dense model's: js, kl, js-released (the code's)
    positions: Positions = "followed"  # that are compared: those with a successor, or all, as in the authors' code
    mode: Literal["both", "attention"] = "both"  # blocks that may go: both kinds, or attention alone
    keep_first: Layers = 0  # layers at the front that stay whole
    tokens: Tokens = 512  # calibration tokens that are read

    cost = "about L forwards over 512 tokens per block removed"
    paper_reads = "10 x 256 tokens of WikiText-2"  # configs/_base_/datasets.yaml
    look = Look("dashed", "s")
    tiny = "tokens=48"

    @property
    def loss(self) -> str:
        """Return the distance by which trials compare."""
        return self.distance

    def blocks(self, model: Decoder) -> list[Sublayer]:
        """Return the sublayers that may go, from `keep_first` on."""
        return [block for block in sublayers_of(model, *MODES[self.mode]) if block.layer >= self.keep_first]
