"""Remove the heads and MLP channels whose input fluctuates least, and put their mean response into a bias: FLAP.

An, Zhao, Yu, Tang, Wang 2024, "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI,
arXiv 2312.11983. Code: CASIA-LMC-Lab/FLAP.

Where the input X of an output matrix W stays near its mean, W X is nearly constant, and a bias can replace it. Over all
calibration tokens, channel j of the input has the mean mu_j, the variance v_j and the norm ||X_j||, and scores

    wifv  v_j ||W_j||^2           the fluctuation that would be lost (equation 5)
    ifv   v_j
    wifn  mean over i of |W_ij| ||X_j||

W is the attention's output matrix or the MLP's down matrix, and W_j its column j. In each layer and of each kind the
scores are standardised, z = (s - mean) / std, and a head's z is the mean over its channels. One threshold then holds
for all layers and both kinds: the lowest units go until the budget is met, each with the parameters that it holds. A
unit is a key/value head with its query heads, or a channel. In SmolLM2-135M a head weighs 294,912 / 1,728 = 170.67
channels. What is removed leaves a bias of the output matrix:

    b = sum over removed j of W_j mu_j

`structure=ul_um` leaves the same widths in every layer; with `bias=no` as well the result has the shapes of its family.

Departures from the authors' code. A head is a key/value head with all its query heads, also under grouped queries, and
its weight follows from the shapes. Mean and variance are those of all real tokens, in float64; the code's running
variance takes the new mean for the old one and leaves out the first sequence (`variance=released`). One head and 16
channels stay in each layer, or an eighth of fewer than 128 channels. The ratio counts all parameters of the model and
the added biases. Only a matrix that loses columns gets a bias. With `structure=ul_um` channels close the gap that whole
heads leave; the code removes the same share of both. The code's threshold takes its own unit too, and its means are
float16. Fixed numbers of heads (UL-MM, AL-MM) are not built.

Measured. docs/studies/departures.md compares both variances.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from methods.base import Count, Holds, Look, WidthPruner, register
from methods.errors import Unsupported
from methods.model.activations import Step, collect_by_layer
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import Structure, cuts_of, find_lowest, structures_of, units_in_order
from methods.width.widths import find_equal_widths, list_lower_widths, parameters_freed, refuse_beyond_reach

Metric = Literal["wifv", "ifv", "wifn"]
Variance = Literal["pooled", "released"]
Widths = Literal["al_am", "ul_um"]


class Moments:
    """Holds count, mean and summed squared deviations from the mean of the rows so far, (C,) each, in float64.

    Two parts are merged by the formula of Chan, Golub and LeVeque 1979 (Stanford STAN-CS-79-773).
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.n = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.M2 = torch.zeros_like(self.mean)

    def add(self, x: Tensor) -> None:
        """Add rows of x (M, C)."""
        x, m, n = x.double(), len(x), self.n + len(x)
        mean = x.mean(0)
        delta = mean - self.mean
        self.M2 += (x - mean).square().sum(0) + delta.square() * (self.n * m / n)
        self.mean += delta * (m / n)
        self.n = n

    @property
    def variance(self) -> Tensor:
        """Return v, the variance of each channel, (C,)."""
        return self.M2 / max(1, self.n - 1)


class ReleasedMoments(Moments):
    """Holds the moments with the variance of the authors' code, up to a factor that standardising takes out.

    Of K sequences it is the sum over k = 2 .. K of (k-1)/k S_k. S_k (C,) holds the squared deviations of the k-th
    sequence from the mean of the first k, where Welford's formula has one factor from the mean of the first k-1.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        super().__init__(channels, device)
        self.k = 0
        self.S = torch.zeros_like(self.mean)

    def add(self, x: Tensor) -> None:
        """Add the inputs of a whole sequence to the moments, x (T, C)."""
        super().add(x)
        self.k += 1
        self.S += (x.double() - self.mean).square().sum(0) * ((self.k - 1) / self.k)

    @property
    def variance(self) -> Tensor:
        """Return v, (C,), as the released code divides it."""
        return self.S / max(1, self.n - 1)


@register("flap")
@dataclass(frozen=True)
class FLAP(WidthPruner):
    """Remove heads and channels whose input fluctuates least, their mean response becomes a bias (An et al. 2024)."""

    metric: Metric = "wifv"  # wifv: variance times squared weights; ifv: variance alone; wifn: norm times weights
    variance: Variance = "pooled"  # pooled: that of all tokens; released: the running one of the authors' code
    structure: Widths = "al_am"  # al_am: one threshold for all layers and both kinds; ul_um: equal widths in all layers
    attn_square: bool = True  # square the scores of an attention's channels first, as the authors' code does
    bias: bool = True  # give the output matrices a bias with the mean response of what is removed
    multiple: Count = 1  # what is left of the channels is a multiple of it
    uniform: bool = False  # equal widths that stock transformers loads; no bias but where the model has one already

    holds = Holds(states=1, steps=2, squares=1)
    axes = ("heads", "channels")
    leaves = ("heads",)
    paper_ratio = "the decoder"
    paper_reads = "1,024 x 128 tokens of WikiText-2"  # scripts/llama_7b.sh, main.py
    look = Look("dashed", "s")

    @property
    def equal(self) -> bool:
        """Say whether all layers get the same widths."""
        return self.uniform or self.structure == "ul_um"

    @property
    def adds_biases(self) -> bool:
        """Say whether biases make up for what goes."""
        return self.bias and not self.uniform

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the units to remove from each layer, or the parameters that are left where layers differ."""
        structures = structures_of(model)
        if self.equal:
            return {
                "removed_per_layer": find_equal_widths(
                    model, structures, ratio, self.multiple, biases=self.adds_biases, uniform=self.uniform
                )
            }
        dense = parameters(model)
        reach = sum(int(self.gains(structure)[1].sum()) for structure in structures) / dense
        refuse_beyond_reach(ratio, reach)
        return {"budget": round((1 - ratio) * dense)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Cut the units that vary least; their means become biases where `adds_biases`."""
        plan, structures = self.plan(model, ratio), structures_of(model)
        if ratio:
            if self.variance == "released" and len(calibration.ids) < 2:
                raise Unsupported("variance=released leaves the first calibration sequence out: give two at least")
            moments = shared_statistics(moments_of_inputs, model, calibration, self.variance)
            if calibration.order:
                noted = units_in_order(calibration.order)
                chosen = [noted.get((structure.number, structure.kind), []) for structure in structures]
            else:
                chosen = self.choose(structures, moments, plan, ratio * parameters(model))
            for structure, table, units in zip(structures, moments, chosen, strict=True):
                if units:
                    biased = self.adds_biases or (self.bias and structure.writer.bias is not None)
                    remove_units(structure, units, table[0] if biased else None)
        return plan | {"parameters": parameters(model)} | cuts_of(model, structures)

    def choose(
        self, structures: list[Structure], moments: list[Tensor], plan: dict[str, Any], target: float
    ) -> list[list[int]]:
        """Return the units of each structure that go: the lowest, as many as make up `target` parameters."""
        scores = [self.score(structure, table) for structure, table in zip(structures, moments, strict=True)]
        if self.equal:
            counts = [plan["removed_per_layer"][structure.kind] for structure in structures]
        else:
            counts = self.below_threshold(structures, scores, target)
        return [find_lowest(score, count) for score, count in zip(scores, counts, strict=True)]

    @torch.no_grad()
    def score(self, structure: Structure, moments: Tensor) -> Tensor:
        """Return z of every unit, (units,), in float64 on the CPU, from the moments (3, C) of its inputs."""
        W = structure.writer.weight.double()
        _, v, norm = moments.to(W.device)
        match self.metric:
            case "wifv":
                s = v * W.square().sum(0)
            case "ifv":
                s = v
            case _:
                s = W.abs().mean(0) * norm
        if self.attn_square and structure.is_of_heads:
            s = s.square()
        z = (s - s.mean()) / s.std().clamp_min(torch.finfo(s.dtype).tiny)
        return z.cpu()[structure.parts[-1].index].mean(1)

    def below_threshold(self, structures: list[Structure], scores: list[Tensor], target: float) -> list[int]:
        """Return how many units of each structure lie below the threshold that removes `target` parameters."""
        units, gains = zip(*map(self.gains, structures), strict=True)
        ranked = [score.sort().values[: len(gain)] for score, gain in zip(scores, gains, strict=True)]
        owner = torch.cat([torch.full((len(gain),), slot) for slot, gain in enumerate(gains)])
        order = torch.cat(ranked).argsort(stable=True)
        removed = nn.functional.pad(torch.cat(gains)[order].cumsum(0), (1, 0))
        n = int((removed - target).abs().argmin())
        below = torch.bincount(owner[order[:n]], minlength=len(structures)).tolist()
        return [int(counts[counts <= count].max()) for counts, count in zip(units, below, strict=True)]

    def gains(self, structure: Structure) -> tuple[Tensor, Tensor]:
        """Return the numbers of units that can go, (n,) from 0, and the parameters that go with each unit, (most,)."""
        counts = list_lower_widths(structure, self.multiple)
        gains = torch.zeros(int(counts[-1]), dtype=torch.long)
        gains[counts[1:] - 1] = parameters_freed(structure, counts, self.adds_biases).diff()
        return counts, gains


def moments_of_inputs(model: Decoder, calibration: Calibration, variance: Variance) -> list[Tensor]:
    """Return mu, v and ||X||, (3, C) in float64, of the input of each structure's output matrix in the dense model.

    They are over all real tokens, in the order of `structures_of`.
    """
    kept, places = ReleasedMoments if variance == "released" else Moments, structures_of(model)

    def of_layer(number: int, steps: Iterator[Step]) -> list[Tensor]:
        matrices = {structure.is_of_heads: structure.writer for structure in places if structure.number == number}
        moments = {of_heads: kept(matrix.in_features, matrix.weight.device) for of_heads, matrix in matrices.items()}
        for step in steps:
            for of_heads, x in ((True, step.heads), (False, step.channels)):
                if of_heads in moments:
                    apart = [sequence[real] for sequence, real in zip(x, step.mask, strict=True)]
                    for rows in apart if variance == "released" else [x[step.mask]]:
                        moments[of_heads].add(rows)
        return [
            torch.stack([each.mean, each.variance, (each.M2 + each.n * each.mean**2).sqrt()])
            for each in moments.values()
        ]

    return [table for tables in collect_by_layer(model, calibration, of_layer, variance) for table in tables]


@torch.no_grad()
def remove_units(structure: Structure, units: list[int], mu: Tensor | None) -> None:
    """Remove the units; with mu (C,), W_j mu_j of the removed columns goes into the bias."""
    matrix, columns = structure.writer, structure.parts[-1].index
    W = matrix.weight.detach()
    structure.drop(units)
    if mu is None:
        return
    dropped = columns[structure.removed].flatten().to(W.device)
    b = W[:, dropped].double() @ mu.to(W.device)[dropped]
    if matrix.bias is not None:
        b += matrix.bias
    matrix.bias = nn.Parameter(b.to(W.dtype), matrix.weight.requires_grad)
    structure.layer.settle()
