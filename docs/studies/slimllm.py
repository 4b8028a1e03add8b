"""Remove the heads that an attention's output correlates least with, and channels by principal directions: SlimLLM.

Guo, Chen, Tang, Wang 2025, "SlimLLM: Accurate Structured Pruning for Large Language Models", ICML, arXiv 2505.22689.
Code: guojialong1/Slimllm.

Layers. With c_l = mean over tokens of cos(x_l, x_{l+1}), the layers with the highest c_l, 26 of 32 in the paper, lose
a share of their heads and channels, the same of both:

    share_l = t softmax(alpha c)_l

Heads. o_h (T, D) is what head h adds. The heads K that stay have the highest

    s(K) = sum over d of |Pearson correlation of sum_{h in K} o_h with sum_h o_h|_d

They are those whose leaving alone costs most, changed by swaps of a head that goes and one that stays wherever s rises.

Channels. Channel j has a score of ||g_j x|| + ||u_j x|| + ||m_j (|V^T w_j| sigmoid(lambda / mean lambda))||. x are the
norms of what enters the MLP by feature, g_j and u_j rows of gate and up, w_j the column of down, m_j the norm of the
channel, lambda and V eigenvalues and eigenvectors of the covariance of the MLP's output.

It is a plugin, to be compared with methods that have the same last fit:

    python docs/studies/unused_windows.py --plugin docs/studies/slimllm.py --ratio 0.2 \
        --methods slimllm+refit,flap+refit

docs/studies/laco-puzzle.md has the figures, and why it is no method of the suite.

Departures from the authors' code. Statistics are of the dense model; there those of a layer are of the layers before it
as they are cut. There each feature of an output is fitted by a factor and a bias; `+refit` fits all of the matrix. t is
solved for, and where whole heads miss the ratio, channels close the gap. A head is a key/value head with its query
heads. The lowest hundredth of the channels stays there, and the next ones go; here the lowest go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Positive, Pruner, Share, register
from methods.model.activations import Step, collect_by_layer
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import Structure, cuts_of, structures_of
from methods.width.llm_pruner import parameters_at_most
from methods.width.widths import fewest_of, refuse_beyond_reach


@register("slimllm")
@dataclass(frozen=True)
class SlimLLM(Pruner):
    """Remove heads by correlation and channels by principal directions, more of layers that turn less (Guo et al.)."""

    alpha: Positive = 10.0  # of the softmax over layers
    layers: Share = 26 / 32  # share of the layers that lose something

    uneven_because = "it chooses the width of each layer"
    cost = "1 forward"
    axes = ("heads", "channels")

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return nothing. Raises OutOfReach where so much cannot go."""
        refuse_beyond_reach(ratio, parameters_at_most(structures_of(model, "kv_heads", "channels")) / parameters(model))
        return {}

    @torch.no_grad()
    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Cut heads and channels of the layers that turn the residual least."""
        self.plan(model, ratio)
        layers = model.layers

        def of_layer(number: int, steps: Iterator[Step]) -> list[Tensor]:
            return statistics_of(layers[number], steps)

        statistics = collect_by_layer(model, calibration, of_layer)
        structures = structures_of(model, "kv_heads", "channels")
        shares = self.shares(torch.stack([cos for cos, *_ in statistics]))
        for structure, count in zip(structures, counts_of(structures, shares, ratio * parameters(model)), strict=True):
            if not count:
                continue
            _, moments, sums, score = statistics[structure.number]
            if structure.kind == "channels":
                structure.remove(score, count)
            else:
                structure.drop(choose_heads(moments, sums, count))
        return cuts_of(model, structures) | {"parameters": parameters(model), "shares": shares.tolist()}

    def shares(self, cos: Tensor) -> Tensor:
        """Return the share of each layer but for the factor t, (L,)."""
        chosen = cos.sort(descending=True, stable=True).indices[: max(1, round(self.layers * len(cos)))]
        shares = torch.zeros_like(cos)
        shares[chosen] = (self.alpha * cos[chosen]).softmax(0) * len(chosen)
        return shares


def statistics_of(layer: Any, steps: Iterator[Step]) -> list[Tensor]:
    """Return cos, (), moments and means of what heads add, (G, G, D) and (G, D), and the score of channels, (I,)."""
    G, width, D = layer.kv_heads, layer.out.in_features // layer.kv_heads, layer.out.out_features
    moments, sums = torch.zeros(G, G, D, dtype=torch.float64), torch.zeros(G, D, dtype=torch.float64)
    cos, count = 0.0, 0
    entering, channels = torch.zeros(D, dtype=torch.float64), torch.zeros(layer.down.in_features, dtype=torch.float64)
    total, products = torch.zeros(D, dtype=torch.float64), torch.zeros(D, D, dtype=torch.float64)
    W = layer.out.weight.float().view(D, G, width)
    for step in steps:
        where = step.mask
        cos += float(nn.functional.cosine_similarity(step.x[where].float(), step.y[where].float(), dim=-1).sum())
        count += int(where.sum())
        o = torch.einsum("tgw,dgw->tgd", step.heads[where].float().view(-1, G, width), W)
        moments += torch.einsum("tgd,thd->ghd", o, o)
        sums += o.sum(0)
        normed = layer.mlp_norm(step.x[where] + step.a[where]).float()
        entering += normed.square().sum(0)
        channels += step.channels[where].float().square().sum(0)
        m = step.m[where].double()
        total += m.sum(0)
        products += m.T @ m
    eigenvalues, V = torch.linalg.eigh(products - total[:, None] * total / count)
    weight = (eigenvalues.abs() / eigenvalues.abs().mean()).sigmoid()
    down = (layer.down.weight.double().T @ V).abs() * weight  # (I, D)
    score = down.norm(dim=1) * channels.sqrt()
    for matrix in layer.up:
        for rows in matrix.weight.double().split(layer.down.in_features):
            score += (rows * entering.sqrt()).norm(dim=1)
    return [torch.tensor(cos / count, dtype=torch.float64), moments / count, sums / count, score]


def correlation(moments: Tensor, sums: Tensor, K: list[int]) -> float:
    """Return s(K) from moments (G, G, D) and means (G, D) of what the heads add."""
    C = moments - sums[:, None] * sums  # covariances
    both, kept, whole = C[K].sum((0, 1)), C[K][:, K].sum((0, 1)), C.sum((0, 1))
    return float((both / (kept * whole).clamp_min(1e-300).sqrt()).abs().sum())


def choose_heads(moments: Tensor, sums: Tensor, count: int) -> list[int]:
    """Return the `count` heads that go."""
    every = list(range(len(sums)))
    without = [correlation(moments, sums, [head for head in every if head != one]) for one in every]
    order = sorted(every, key=lambda head: -without[head])
    go, stay = order[:count], order[count:]
    best = correlation(moments, sums, stay)
    for head in go:
        chosen = stay
        for place in range(len(stay)):
            swapped = [*stay[:place], head, *stay[place + 1 :]]
            if (s := correlation(moments, sums, swapped)) > best:
                best, chosen = s, swapped
        stay = chosen
    return sorted(set(every) - set(stay))


def counts_of(structures: list[Structure], shares: Tensor, budget: float) -> list[int]:
    """Return how many units of each structure go, so that `budget` parameters do, as nearly as may be."""

    def at(t: float, of_channels: float) -> list[int]:
        factor = {"kv_heads": t, "channels": t * of_channels}
        counts = [round(min(1.0, float(shares[each.number]) * factor[each.kind]) * each.size) for each in structures]
        return [min(n, each.size - fewest_of(each)) for n, each in zip(counts, structures, strict=True)]

    def freed(counts: list[int]) -> int:
        return sum(each.cost * count for each, count in zip(structures, counts, strict=True))

    def solve(make: Any, high: float) -> float:
        low = 0.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if freed(make(middle)) <= budget else (low, middle)
        return low

    t = solve(lambda t: at(t, 1.0), 20.0)
    return at(t, solve(lambda factor: at(t, factor), 20.0))
