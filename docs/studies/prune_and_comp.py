"""Drop one layer after another, each scored on a model whose sizes are compensated so far: Prune&Comp.

Chen, et al. 2025, "Prune&Comp: Free Lunch for Layer-Pruned LLMs via Iterative Pruning with Magnitude Compensation",
arXiv 2507.18212. The authors have released no code.

Of n layers that go, each is the one with the lowest score in the model without those before it, whose residual is
scaled at each cut as `scale` does (methods/compensation/scale.py). The score is ShortGPT's block influence, or Taylor+
of Shortened LLaMA. `+scale` compensates for what went last.

It is a plugin, to be compared with the same score taken once:

    python docs/studies/unused_windows.py --plugin docs/studies/prune_and_comp.py --ratio 0.2 \
        --methods prune-and-comp+scale,shortgpt+scale

docs/studies/laco-puzzle.md has the figures, and why it is no method of the suite.

Departures from the paper. Sizes are compared with those of the dense model. The paper does not say whether they are
those of the model before the last cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from methods.base import register
from methods.compensation.base import Pruning
from methods.compensation.scale import Scale
from methods.depth.shortened_llama import ShortenedLlamaTaylor
from methods.depth.shortgpt import ShortGPT
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder, make_twin
from methods.model.structures import drop_layers
from methods.trials.selection import OneShot


@register("prune-and-comp")
@dataclass(frozen=True)
class PruneAndComp(OneShot):
    """Drop layers one by one, and compensate sizes before each score (Chen et al. 2025)."""

    score: Literal["influence", "taylor"] = "influence"

    looks_at = "gradients"
    cost = "a score and 2 forwards for each layer that goes"

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Drop the layers, and return them in the order in which they went."""
        plan = self.plan(model, ratio)
        n, order = plan.pop("layers"), list[int]()
        scorer = ShortGPT() if self.score == "influence" else ShortenedLlamaTaylor()
        while len(order) < n:
            pruned, kept = make_twin(model), [l for l in range(len(model.layers)) if l not in order]
            if order:
                drop_layers(pruned, order)
                Scale().repair(Pruning(model, pruned, kept, {"removed_layers": sorted(order)}), calibration)
            scores = scorer.scores(pruned, calibration)
            places = scorer.candidates(len(scores), 1)
            order.append(kept[min(places, key=lambda place: (scores[place], -place))])
        return drop_layers(model, order) | {"order": order} | plan
