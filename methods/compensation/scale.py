"""Close the gap between the sizes of the residual at each cut by one number, folded into the weights behind it: scale.

Chen, et al. 2025, "Prune&Comp: Free Lunch for Layer-Pruned LLMs via Iterative Pruning with Magnitude Compensation",
arXiv 2507.18212. The authors have released no code.

Removed blocks would have made the residual longer. At a cut, with the pruned model's states x and the dense model's z
behind the removed blocks,

    c = mean over tokens of ||z|| / ||x||

The residual should continue as c x. Everything that reads it is a norm, which does not depend on its size, so the same
follows from leaving x alone and dividing by c whatever is added behind the cut: the output matrices of all later
attentions and MLPs. No parameter is added and the model remains one of its family. Only the norms' epsilon differs.

Departures from the paper. Only sizes are compensated; any method chooses the layers. The paper scales weights in front
of the cut; scaling those behind it leaves the embedding alone, which may be tied to the head. Attention sinks
(methods/least_squares.py) are left out of the mean, unless `scale.sinks=alike`.

Where a norm stands behind a block (as in gemma2 or olmo2), what the block adds has the norm's gains for a factor, and
these are divided by c.

Families. Methods that remove layers, attentions or MLPs, in families that read the residual through norms alone.
Transformers alone loads the result.

Cost. Two forward passes over the calibration text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from methods.base import Holds, Look, Tokens
from methods.compensation.base import (
    Boundary,
    BoundaryStates,
    Compensation,
    Pruning,
    Repair,
    register_compensation,
    repair_at_boundaries,
    require_boundaries,
)
from methods.errors import Unsupported
from methods.least_squares import Norm, Sinks
from methods.model.calibration import Calibration
from methods.model.layer import Layer


@register_compensation("scale")
@dataclass(frozen=True)
class Scale(Compensation):
    """One factor for the residual at each cut, folded into the weights behind it (Chen et al. 2025)."""

    sinks: Sinks = "apart"  # attention sinks are left out of the mean, or alike, as all other tokens in it
    tokens: Tokens | None = None  # calibration tokens that are read; None: all

    needs_one_mlp = True
    forwards = 0.71
    holds = Holds(states=9, steps=0.5)
    look = Look("solid", "v", "sky")

    def parameters_added(self, pruning: Pruning) -> int:
        """Return 0: factors go into matrices. Raises Unsupported where the residual is read without a norm."""
        if pruning.pruned.final_norm is None or not pruning.pruned.family.attn_norm:
            family = pruning.pruned.whole_config.model_type
            raise Unsupported(f"{family} reads the residual without a norm somewhere, which a factor changes")
        require_boundaries(pruning)
        return 0

    def repair(self, pruning: Pruning, calibration: Calibration) -> dict[str, Any]:
        """Fit a factor of the residual at each boundary, and divide by it what later layers add."""
        factors: list[float] = []  # of the residual behind each boundary, all earlier boundaries included

        def at(cut: Boundary, batches: list[BoundaryStates]) -> Repair:
            factors.append(self.fit(batches))
            c = factors[-1] / (factors[-2] if len(factors) > 1 else 1.0)
            for layer in pruning.pruned.sweep(pruning.pruned.layers[cut.behind + 1 :]):
                for which, matrix in outputs_of_layer(layer):
                    if layer.family.post_norms:
                        norm = Norm.behind(layer, which)
                        Norm(norm.g / c, norm.epsilon).write_gains(layer, which)
                    else:
                        divide_output(matrix, c)
            return Repair(lambda each: each.y, gain=factors[-1])

        return repair_at_boundaries(pruning, calibration.first(self.tokens), self.sinks, at) | {"factors": factors}

    def fit(self, batches: list[BoundaryStates]) -> float:
        """Return the mean over the fitted tokens of ||z|| / ||x||."""
        ratios: list[Tensor] = []
        for each in batches:
            where = each.measured(self.sinks)
            ratios.append(each.z[where].double().norm(dim=-1) / each.y[where].double().norm(dim=-1))
        return sum(float(ratio.sum()) for ratio in ratios) / sum(map(len, ratios))


def outputs_of_layer(layer: Layer) -> list[tuple[int, nn.Linear]]:
    """Return the output matrices of the attention (0) and the MLP (1) that a layer has."""
    return [(which, matrix) for which in (0, 1) for matrix in layer.writers(which)]


def divide_output(matrix: nn.Linear, c: float) -> None:
    """Divide the output of a matrix by c: W <- W / c, b <- b / c."""
    matrix.weight = nn.Parameter(matrix.weight.detach() / c, matrix.weight.requires_grad)
    if matrix.bias is not None:
        matrix.bias = nn.Parameter(matrix.bias.detach() / c, matrix.bias.requires_grad)
