"""Keep the MLP channels of the largest ridge leverage, fewer where layers change little, and fit the rest: MoDeGPT.

Lin, Gao, Smith, Patel, Tuli, Shen, Jin, Hsu 2025, "MoDeGPT: Modular Decomposition for Large Language Model
Compression", ICLR, arXiv 2408.09632. Code: cbacary/MoDeGPT, which is not by the paper's authors; they released none.

The paper factors three pairs of matrices: gate and up with down, queries with keys, values with the output. The first
alone is built (`parts=mlp`), which leaves a described or a stock model; the two others leave heads of another width.

z (I) enters the down matrix W (D, I), and C = E[z z^T] is over all calibration tokens of the dense model. Channel i has
the ridge leverage

    s_i = [C (C + lam Id)^-1]_ii = 1 - lam [(C + lam Id)^-1]_ii

which is 1 where no other channels tell what the channel gives, and near 0 where they do. The largest stay, K, and the
down matrix becomes the one of a Nystrom approximation of C, which misses least of W z:

    W_K <- (W C)_K (C_KK)^-1

How many go follows from the block influence of each layer, the mean over tokens of 1 - cos of x_l, which enters it, and
x_(l+1), which leaves it. Of L layers with the mean share phi, layer l loses

    phi_l = L phi softmax(-BI / eps)_l

of its channels, at most `most`; what lies above is handed to the other layers in the same proportion.

Departures from the authors' code. There is none, and what follows is of the code above. lam is a share of the mean of
C's diagonal, so that it means the same for channels of any size; the code adds 1e-2, in its scripts 1e-4. The fit has a
`damping` as obs has it, which draws W_K to the weights that it had; the code adds 1e-6, which draws it to 0. Numbers of
channels are rounded so that the budget is met; the code rounds each layer's down. What a layer cannot lose is handed on
in one step; the code's loop may never end, where two layers hand a rounding error to each other. The ratio counts all
parameters of the model. 16 channels stay in each layer, or an eighth of fewer than 128. Padding is left out; the code
divides by 2,048 tokens for each text, however long. As in the code, all layers are calibrated on the dense model;
`prefix=pruned` feeds each by what is left of those before it.

Families. All but mixtures of experts.

Cost. Three forward passes, two with `prefix=pruned`, and for each layer an inverse and one solve of C in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from methods.base import Count, Holds, Look, Positive, Share, WidthPruner, register
from methods.errors import OutOfReach
from methods.model.activations import Step, collect_by_layer, refuse_overflow
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.precision import add_product, widen
from methods.model.sizes import parameters
from methods.model.structures import Structure, cuts_of, find_lowest, structures_of, units_in_order
from methods.width.obs import OBS, Cut, CutTarget, Prefix, Problem, factor
from methods.width.widths import find_equal_widths, list_lower_widths


@register("modegpt")
@dataclass(frozen=True)
class MoDeGPT(WidthPruner):
    """Keep the channels of the largest ridge leverage, by block influence, and fit the rest (Lin et al. 2025)."""

    parts: Literal["mlp"] = "mlp"  # pairs of matrices that are factored; those of the attention are not built
    ridge: Positive = 0.01  # lam of the leverage, as a share of the mean of C's diagonal
    damping: Positive = 0.01  # what is added to the diagonal of C for the fit, as a share of its mean
    smoothing: Positive = 0.15  # eps of the shares: the larger, the more alike
    most: Share = 0.8  # share of its channels that a layer loses at most
    prefix: Prefix = "dense"  # what feeds a layer where it is fitted: the dense ones before it, or those cut
    multiple: Count = 1  # what is left of the channels is a multiple of it
    uniform: bool = False  # as many channels in every layer, which stock transformers loads

    cost = "3 forwards, and an inverse of each MLP's second moments"
    mlp_solves = 1.5
    holds = Holds(states=2, squares=5)
    axes = ("channels",)
    leaves = ("channels",)
    paper_ratio = "the matrices of the layers"
    paper_reads = "32 x 2,048 tokens of WikiText-2; 128 x 2,048 in its scripts"  # CompressionConfig.py, tests.sh
    look = Look("long", "p")
    tiny = "most=0.95"  # where the MLP is a smaller part of a layer, 0.8 of it is too little

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return two or three forwards, with sums of products in float64 twice."""
        return 5.4 if self.prefix == "dense" else 4.4

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the parameters that are left, or with `uniform` the channels to remove from each layer."""
        structures, dense = structures_of(model, "channels"), parameters(model)
        if self.uniform:
            return {
                "removed_per_layer": find_equal_widths(model, structures, ratio, self.multiple, uniform=True),
            }
        allowed = self.numbers_of_removals(structures)
        reach = sum(int(counts[-1]) * structure.cost for counts, structure in zip(allowed, structures, strict=True))
        if ratio * dense > reach:
            raise OutOfReach(
                f"ratio {ratio:g} is out of reach: with most={self.most:g} of the channels gone in each layer, "
                f"{reach / dense:.3f} of the parameters are; a larger most reaches further"
            )
        return {"budget": round((1 - ratio) * dense)}

    def numbers_of_removals(self, structures: Sequence[Structure]) -> list[Tensor]:
        """Return how many channels may go of each structure, rising from 0."""
        every = [(structure.size, list_lower_widths(structure, self.multiple)) for structure in structures]
        return [counts[counts <= self.most * size] for size, counts in every]

    @torch.no_grad()
    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Choose the channels of each layer by leverage, and cut them with a fit of the down matrix."""
        plan, structures = self.plan(model, ratio), structures_of(model, "channels")
        chosen, decided = list[list[int]](), dict[str, Any]()
        if ratio:
            BI, *leverage = shared_statistics(collect_influence_and_leverage, model, calibration, self.ridge)
            decided["influences"] = BI.tolist()
            if calibration.order:
                noted = units_in_order(calibration.order)
                chosen = [noted.get((structure.number, structure.kind), []) for structure in structures]
            else:
                counts = self.count(structures, BI, plan, ratio * parameters(model))
                scores = [leverage[structure.number] for structure in structures]
                chosen = [sorted(find_lowest(score, count)) for score, count in zip(scores, counts, strict=True)]
        decided["missed"] = self.cut(model, structures, chosen, calibration) if any(chosen) else []
        return plan | decided | {"parameters": parameters(model)} | cuts_of(model, structures)

    def count(self, structures: Sequence[Structure], BI: Tensor, plan: dict[str, Any], target: float) -> list[int]:
        """Return how many channels of each structure go, so that `target` parameters do."""
        if self.uniform:
            return [int(plan["removed_per_layer"][structure.kind]) for structure in structures]
        influence = BI[[structure.number for structure in structures]]
        sizes = torch.tensor([structure.size for structure in structures], dtype=torch.float64)
        costs = torch.tensor([structure.cost for structure in structures], dtype=torch.float64)
        allowed = self.numbers_of_removals(structures)
        most = torch.stack([counts[-1] for counts in allowed]) / sizes
        shares = find_shares(torch.softmax(-influence / self.smoothing, 0), costs * sizes, most, target)
        ideal = (shares * sizes).tolist()
        return round_counts(ideal, allowed, [structure.cost for structure in structures], target)

    def cut(
        self, model: Decoder, structures: list[Structure], chosen: list[list[int]], calibration: Calibration
    ) -> list[dict[str, float]]:
        """Cut these channels, and return what each layer's down matrix misses then, as `OBS.sweep` does."""
        units = {(each.number, each.kind): several for each, several in zip(structures, chosen, strict=True)}
        counts = {at: len(several) for at, several in units.items() if several}

        def cut(target: CutTarget, C: Tensor) -> Cut:
            structure = target.structure
            return Problem(structure, C, self.damping).without(units[structure.number, structure.kind])

        return OBS(damping=self.damping).sweep(model, structures, counts, calibration, cut, prefix=self.prefix)


def collect_influence_and_leverage(model: Decoder, calibration: Calibration, ridge: float) -> list[Tensor]:
    """Return BI (L,), and of each layer the leverage of its channels, (I,), in float64; (0,) without an MLP."""
    layers = model.layers

    def of_layer(number: int, steps: Iterator[Step]) -> list[Tensor]:
        layer, total, count = layers[number], 0.0, 0
        I = layer.down.in_features if layer.has_mlp else 0
        C = torch.zeros(I, I, dtype=torch.float64, device=layer.device)
        for step in steps:
            x, y = step.x[step.mask].float(), step.y[step.mask].float()
            total += float((1 - cosine_similarity(x, y, dim=-1)).double().sum())
            z = widen(step.channels[step.mask])
            add_product(C, z, z)
            count += len(z)
        return [torch.tensor(total / count, dtype=torch.float64), leverage_of_channels(C, ridge)]

    pairs = collect_by_layer(model, calibration, of_layer, ridge)
    return [torch.stack([BI for BI, _ in pairs]), *(leverage for _, leverage in pairs)]


def leverage_of_channels(C: Tensor, ridge: float) -> Tensor:
    """Return s (I,) of second moments C (I, I) in float64, whose memory it uses; `ridge` is a share of C's mean."""
    if not len(C):
        return C.diagonal()
    refuse_overflow(C.isfinite().all())
    lam = ridge * C.diagonal().mean().clamp_min(torch.finfo(C.dtype).tiny)
    C.diagonal().add_(lam)
    return 1 - lam * torch.cholesky_inverse(factor(C)).diagonal()


def find_shares(weights: Tensor, sizes: Tensor, most: Tensor, target: float) -> Tensor:
    """Return phi (n,): in proportion to the weights and at most `most`, so that the sum of sizes * phi is `target`."""
    at_most = torch.zeros_like(most, dtype=torch.bool)
    while not at_most.all():
        rest = target - float((sizes * most)[at_most].sum())
        shares = torch.where(at_most, most, weights * (rest / (sizes * weights)[~at_most].sum()))
        over = (shares > most) & ~at_most
        if not over.any():
            return shares
        at_most |= over
    return most


def round_counts(ideal: Sequence[float], allowed: Sequence[Tensor], costs: Sequence[int], target: float) -> list[int]:
    """Return whole numbers near to the ideal ones, (n,), whose sum with the costs is next to `target`.

    Each is rounded down to an allowed number. Then those that lost the largest share of a step go up again, as long as
    that brings the sum nearer.

    allowed  for each place its numbers, rising
    """
    counts, steps = list[int](), list[tuple[float, int, int]]()
    for place, (number, several) in enumerate(zip(ideal, allowed, strict=True)):
        below = int(several[several <= number].max())
        counts.append(below)
        for above in several[several > below][:1].tolist():
            steps.append(((number - below) / (above - below), place, above - below))
    missing = target - sum(count * cost for count, cost in zip(counts, costs, strict=True))
    for _, place, step in sorted(steps, key=lambda each: -each[0]):
        freed = step * costs[place]
        if abs(missing - freed) < abs(missing):
            counts[place] += step
            missing -= freed
    return counts
