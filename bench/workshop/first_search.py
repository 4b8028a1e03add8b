"""Drop the attentions and MLPs without which the loss is lowest, of sets that are drawn at random: first-search.

AUTHORS YEAR, "TITLE", VENUE, arXiv NUMBER. Code: OWNER/REPOSITORY.

    S* = argmin over the drawn S of    - sum over tokens k of log p(w_k | w_<k; model without S)

A set S has n attentions and n MLPs, as many parameters as n layers. None of them is judged alone.

Departures from the authors' code. SAY WHAT IS COMPUTED OTHERWISE, AND WHY.

Cost. About half a forward pass for each set, over `tokens` tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from methods import Calibration, Decoder, OutOfReach, Pruner, register
from methods.base import Count, Holds, Tokens
from methods.budget import whole_layers
from methods.model.structures import Sublayer, remove_sublayers, sublayers_of
from methods.trials.blocks import Replacements, Trial


@register("first-search")
@dataclass(frozen=True)
class FirstSearch(Pruner):
    """Drop the best of random sets of attentions and MLPs (AUTHORS YEAR)."""

    sets: Count = 32  # that are drawn
    tokens: Tokens = 512  # calibration tokens that are read

    cost = "16 forwards over 512 tokens"
    holds = Holds(all_layers=1.5, steps=2, logits=3)
    only_cuts = True  # what stays has the dense model's weights
    leaves = ("attentions", "mlps")
    uneven_because = "it removes single attentions and MLPs"
    paper_ratio = ""  # what the ratio of its paper is a share of: "attentions and MLPs, by their number"
    tiny = "sets=6"

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the number of attentions to remove, and of MLPs as many."""
        count, fewest = whole_layers(model, ratio), min(len(sublayers_of(model, part)) for part in ("attention", "mlp"))
        if count > fewest:
            raise OutOfReach(f"ratio {ratio:g} is out of reach: the model has {fewest} attentions or MLPs left")
        return {"attentions": count}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Draw the sets, and remove the one without which the loss is lowest."""
        plan = self.plan(model, ratio)
        if not plan["attentions"]:
            return plan | {"removed_layers": [], "removed_attention": [], "removed_mlp": []}
        sets = self.draw_sets(model, plan["attentions"], calibration.seed)
        losses = Trial(model, calibration.first(self.tokens), "nll").losses(sets)
        best = sets[losses.index(min(losses))]
        removed = [block for block in best if isinstance(block, Sublayer)]
        return plan | remove_sublayers(model, removed) | {"losses": losses}

    def draw_sets(self, model: Decoder, count: int, seed: int) -> list[Replacements]:
        """Return different sets of `count` attentions and as many MLPs, the same ones for a seed."""
        generator = random.Random(seed)
        kinds = [sublayers_of(model, part) for part in ("attention", "mlp")]
        drawn = dict[Replacements, None]()
        for _ in range(self.sets):
            drawn[Replacements(block for blocks in kinds for block in generator.sample(blocks, count))] = None
        return list(drawn)
