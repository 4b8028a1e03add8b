"""Remove the experts that add least to a mixture where it takes them, weighed by the router: REAP, and its controls.

Lasby, Lazarevich, Sinnadurai, Lie, Ioannou, Thangarasa 2025, "REAP the Experts: Why Pruning Prevails for One-Shot MoE
Compression", ICLR 2026, arXiv 2510.13999. Code: CerebrasResearch/reap.

A mixture takes k of its experts for each token, MoE(x) = sum over them of g_j(x) f_j(x). With X_j the calibration
tokens that are routed to expert j, N_j of them, the methods score

    reap               S_j = 1 / N_j  sum over x in X_j of g_j(x) ||f_j(x)||     equation 9
    expert-norm        S_j = sum over x in X_j of ||f_j(x)||                     expert activation norm (EAN)
    expert-frequency   S_j = N_j
    expert-random      nothing: experts are drawn

g_j(x) is what multiplies the expert's output in the model: where the router divides the k best weights by their sum,
what comes of that. The n experts with the lowest score go, as many from every layer, so that the model keeps the shape
of its family; where a router takes groups of experts, as many from every group. Of equal scores the lower number goes
first, and an expert that no token is routed to scores 0. The router keeps k: tokens of an expert that has gone take the
next best. Removing experts makes a model smaller and computes no less for a token, so that records have
`active_parameters` beside the parameters. EAN is of Jaiswal, Wang, Li, Li, Chen, Wang, Wang, Pang, Du 2025, "Finding
Fantastic Experts in MoEs: A Unified Study for Expert Dropping Strategies and Observations", arXiv 2504.05586.

Departures from the authors' code. What is g in the model is g in the score whatever the router is; the code takes a
softmax of the router's logits, and divides it by the sum of the k best where `renormalize_router_weights` says so. Sums
are float64, and means are taken at the end; the code's running means are float32. Padding is left out of the sums.
Groups lose as many experts each; the code knows no groups. No expert is spared for a large activation, as
`perserve_super_experts` does there. n is the number whose parameters, with the router's rows, come nearest to the
ratio; the code takes a share of the experts, rounded down. Fewer than k experts are refused.

Cost. One forward, in which the experts that are taken compute twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.base import Count, Holds, Look, Pruner, RandomPruner, register
from methods.errors import OutOfReach, Unsupported
from methods.model.activations import Step, collect_by_layer
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import mixtures_of, remove_experts


class LowestExperts(Pruner):
    """A method that is a score of experts; a subclass gives `scores`."""

    holds = Holds(states=2, layers=0.4)
    only_cuts = True
    axes = ("experts",)
    leaves = ("experts",)
    paper_ratio = "the experts of each layer"

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return two forwards, since experts that are taken compute twice; none without calibration."""
        return 0.0 if self.looks_at == "nothing" else 2.0  # experts that are taken compute twice

    def scores(self, model: Decoder, calibration: Calibration) -> list[Tensor]:
        """Return the importance of every expert, (J,) for each mixture, by layer."""
        raise NotImplementedError

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the experts to remove from each layer."""
        return {"removed_per_layer": {"experts": experts_to_go(model, ratio)}}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Remove the experts with the lowest scores from each layer."""
        plan = self.plan(model, ratio)
        n, mixtures = plan["removed_per_layer"]["experts"], mixtures_of(model)
        removed: list[list[int]] = [[] for _ in model.layers]
        scores = self.scores(model, calibration) if n else []
        for (number, experts), score in zip(mixtures.items(), scores, strict=bool(n)):
            removed[number] = lowest_of_groups(score, n, experts.groups)
        remove_experts(model, removed)
        counts = [0 if layer.experts is None else layer.experts.count for layer in model.layers]
        return plan | {"experts": counts, "removed_experts": removed} | self.notes_of_scores(scores)

    def notes_of_scores(self, units: Sequence[Tensor]) -> dict[str, Any]:
        """Return the record's entries on the scores of units; none where there are no scores."""
        return {"scores": [score.tolist() for score in units]} if units else {}


@register("reap")
@dataclass(frozen=True)
class Reap(LowestExperts):
    """Remove the experts of least output where they are taken, weighed by the router (Lasby et al. 2025)."""

    paper_reads = "1,024 x 2,048 tokens of evol-codealpaca-v1"  # experiments/pruning-cli.sh
    look = Look("mixed", "P")

    def scores(self, model: Decoder, calibration: Calibration) -> list[Tensor]:
        """Return for each layer the mean of gate times norm over the tokens that an expert gets."""
        return [weighed / N.clamp(min=1) for N, _, weighed in shared_statistics(sum_routed_outputs, model, calibration)]


@register("expert-norm")
@dataclass(frozen=True)
class ExpertNorm(LowestExperts):
    """Remove the experts whose outputs are smallest in sum, as EAN does (Jaiswal et al. 2025)."""

    look = Look("dotted", "^")

    def scores(self, model: Decoder, calibration: Calibration) -> list[Tensor]:
        """Return for each layer the sums of the norms of experts' outputs."""
        return [norms for _, norms, _ in shared_statistics(sum_routed_outputs, model, calibration)]


@register("expert-frequency")
@dataclass(frozen=True)
class ExpertFrequency(LowestExperts):
    """Remove the experts that fewest tokens are routed to."""

    look = Look("dashed", "v")

    def scores(self, model: Decoder, calibration: Calibration) -> list[Tensor]:
        """Return for each layer how many tokens an expert gets."""
        return [N for N, _, _ in shared_statistics(sum_routed_outputs, model, calibration)]


@register("expert-random")
@dataclass(frozen=True)
class ExpertRandom(LowestExperts, RandomPruner):
    """Remove experts at random, in each layer others."""

    seed: int | None = None  # of the draw; None: one cell for each of the draws, from 1000 times the run's seed on
    draws: Count = 5  # cells of one mention without a seed, which share a row

    looks_at = "nothing"
    cost = ""
    look = Look("mixed", "p")

    def scores(self, model: Decoder, calibration: Calibration) -> list[Tensor]:
        """Return for each layer numbers that are drawn."""
        generator = torch.Generator().manual_seed(self._seed(calibration))
        counts = [experts.count for experts in mixtures_of(model).values()]
        return [torch.rand(count, dtype=torch.float64, generator=generator) for count in counts]

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Remove experts that are drawn; return the seed too."""
        return super().prune(model, calibration, ratio) | {"seed": self._seed(calibration)}

    def notes_of_scores(self, units: Sequence[Tensor]) -> dict[str, Any]:
        """Return nothing, since the scores are drawn."""
        return {}

    def _seed(self, calibration: Calibration) -> int:
        return calibration.seed if self.seed is None else self.seed


def experts_to_go(model: Decoder, ratio: float) -> int:
    """Return the number of experts of each layer whose parameters come nearest to `ratio` of all.

    An expert counts with its row of the router. Raises Unsupported where there are no experts, or where layers have
    different numbers of them. Raises OutOfReach where fewer would stay than a token takes.
    """
    mixtures = list(mixtures_of(model).values())
    if len({(experts.count, experts.groups) for experts in mixtures}) > 1:
        raise Unsupported("the layers have different numbers of experts, so that no equal cut leaves them equal")
    first, total = mixtures[0], parameters(model)
    each = first.groups * sum(experts.parameters for experts in mixtures)  # an expert of every group
    most = (first.count - first.fewest) // first.groups
    n = round(ratio * total / each)
    if n > most:
        fewest, reach = first.count - most * first.groups, max(0, most) * each / total
        raise OutOfReach(
            f"ratio {ratio:g} is out of reach: {fewest} of {first.count} experts must stay in each layer, since a "
            f"token takes {first.experts_per_token}, and the others hold {reach:.3f} of the model"
        )
    return n * first.groups


def lowest_of_groups(score: Tensor, n: int, groups: int) -> list[int]:
    """Return the n experts of lowest score, (J,), as many of each group. Groups lie one behind the other."""
    size = len(score) // groups
    order = score.view(groups, size).argsort(dim=1, stable=True)[:, : n // groups]
    return sorted((order + size * torch.arange(groups)[:, None]).flatten().tolist())


def sum_routed_outputs(model: Decoder, calibration: Calibration) -> list[Tensor]:
    """Return N_j, the sum of ||f_j|| and the sum of g_j ||f_j|| over the tokens that are routed to expert j.

    In float64, (3, J) for each mixture, by layer.
    """
    layers = model.layers

    def of_layer(number: int, steps: Iterator[Step]) -> list[Tensor]:
        layer = layers[number]
        experts = layer.experts
        if experts is None:
            return []
        sums = torch.zeros(3, experts.count, dtype=torch.float64, device=layer.device)
        for step in steps:
            entered = step.x if layer.parallel else step.x + step.a
            h = layer.mlp_norm(entered[step.mask])  # (M, D) of real tokens
            g, chosen = experts.route(h)  # (M, k)
            norms = torch.linalg.vector_norm(experts.outputs(h, chosen), dim=-1, dtype=torch.float64)  # (M, k)
            for sum_, values in zip(sums, (torch.ones_like(norms), norms, g.double() * norms), strict=True):
                sum_.index_add_(0, chosen.flatten(), values.flatten())
        return [sums]

    return [sums for outcome in collect_by_layer(model, calibration, of_layer) for sums in outcome]
