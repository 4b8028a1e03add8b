"""Collapse some layers and narrow the others under one budget, then refit what has been narrowed.

Of this project. The parts are those of methods/depth/laco_ls.py, after Yang, Cao, Zhao 2024 (arXiv 2402.11187), of
methods/search/puzzle.py, after Bercovich et al. 2024 (arXiv 2411.19146), and of methods/compensation/refit.py, after
Putri 2026. New is how they share a budget.

Of the P parameters that have to go, whole layers hold at most n of the model's L. For each of `depths` numbers of
layers,

    k = n (1 - i / (depths - 1)),    i = 0 .. depths - 1    (n alone where depths is 1),

k layers collapse into others, which are refitted by least squares to do their work; of what is left an integer program
narrows or removes heads, channels, attentions and MLPs until P parameters have gone; and the output matrices that have
lost something are refitted, layer by layer, to what the collapsed model computes. The k with the lowest

    KL(p || q) = mean over tokens of sum over words of p log(p / q)

is taken, p and q being the dense and the pruned model's distributions of the next token on `tokens` calibration tokens
that were kept from all fits until then. With this k the model is made on all of them.

Why both. A layer whose work another one can take over is cheap to collapse, and there are a few of them; behind these
each further one costs more than the last. Heads and channels of little use are in every layer, and there too the first
are the cheapest.

The windows for each smaller k are found on the way to those for the largest, so that they are searched once.

Cost. That of `laco-ls` for all n layers, and `depths` times that of `puzzle+refit` on `tokens` tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from methods.base import register
from methods.budget import block_parameters, whole_layers
from methods.compensation.base import CompensatedPruner
from methods.compensation.refit import Refit
from methods.depth.laco_ls import LaCoLS
from methods.model.activations import enter
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder, twin
from methods.model.sizes import layer_parameters, parameters
from methods.model.structures import sublayers_of
from methods.progress import over
from methods.ranges import Count, Positive, Tokens
from methods.search.puzzle import Puzzle, choices
from methods.search.trials import TOKENS_AT_ONCE, kl, summed

LISTS = ("removed_attention", "removed_mlp")  # of numbers of layers
BY_LAYER = ("removed_kv_heads", "removed_channels")  # a list for each layer


@register("laco-puzzle")
@dataclass(frozen=True)
class LaCoPuzzle:
    """Collapse some layers and narrow the others under one budget, then refit (after LaCo and Puzzle)."""

    depths: Count = 4  # numbers of layers that are collapsed, from none to all that fit, of which the best is taken
    tokens: Tokens = 512  # calibration tokens on which a damage is measured, and others on which depths are compared
    steps: Count = 4  # of a layer's channels that may go: 4 leaves 3/4, 1/2, 1/4 or none
    heads: Count = 1  # of a layer's key/value heads that may go; 1 leaves all or none
    best: Count = 4  # solutions of the program that are measured, of which the best is taken
    ridge: Positive = 1.0  # penalty of each channel's distance from its weights, as a share of its energy

    fixed = False
    uneven = "it chooses the width of each layer"
    needs = "calibration"
    cost = "that of laco-ls, and 5 times that of puzzle+refit on 512 tokens"
    axes = ("channels", "layers")

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        LaCoLS().plan(model, ratio)
        choices(model, self.steps, self.heads)
        return {"parameters": parameters(model) - self._gone(model, ratio)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        gone = self._gone(model, ratio)
        if not gone:
            return {}
        each = sum(map(layer_parameters, model.layers)) / len(model.layers)
        most = min(int(gone / each), whole_layers(model, ratio))
        steps = max(1, self.depths - 1)
        counts = sorted({round(most * (1 - i / steps)) for i in range(self.depths)}, reverse=True)
        alone = replace(calibration, keep=None, note=None, sweeps=None)  # what others keep is of the dense model
        if len(counts) == 1:
            return self.pruned(model, alone, counts[0], gone)
        fitted, judged = parted(alone, self.tokens)
        divergence, tried = Divergence(model, judged), list[dict[str, Any]]()
        for k in over(counts, "trying depths", "depth"):
            candidate = twin(model)
            decisions = self.pruned(candidate, replace(fitted, order=alone.order), k, gone)
            alone = replace(alone, order=max(alone.order, tuple(decisions.get("removal_order", ())), key=len))
            loss = divergence.of(candidate)
            tried.append({"layers": k, "damage": loss if math.isfinite(loss) else None})
        k = min(tried, key=lambda one: math.inf if one["damage"] is None else one["damage"])["layers"]
        searched = {"removal_order": list(alone.order), "free_removals": len(alone.order)}  # for the most layers
        return self.pruned(model, alone, k, gone) | searched | {"depths": tried}

    def pruned(self, model: Decoder, calibration: Calibration, k: int, gone: int) -> dict[str, Any]:
        """Collapse k layers of a model and narrow the others until `gone` parameters are gone, in place.

        Returns what was decided, with the dense model's numbers of layers.
        """
        total, L = parameters(model), len(model.layers)
        each = sum(map(layer_parameters, model.layers)) / L
        collapsed = LaCoLS(ridge=self.ridge).prune(model, calibration, k * each / total)
        kept = [number for number in range(L) if number not in collapsed["removed_layers"]]
        left = 1 - (total - gone) / parameters(model)
        narrow = Puzzle(steps=self.steps, heads=self.heads, tokens=self.tokens, best=self.best)
        both = CompensatedPruner(narrow, Refit(ridge=self.ridge))  # type: ignore[arg-type]  # named by its decorator
        narrowed = both.prune(model, replace(calibration, order=()), left) if left > 0 else {}
        return collapsed | in_dense_numbers(narrowed, kept, L, collapsed["removed_layers"])

    def _gone(self, model: Decoder, ratio: float) -> int:
        return block_parameters(model, ratio, sublayers_of(model, "attention", "mlp"))


def parted(calibration: Calibration, tokens: int) -> tuple[Calibration, Calibration]:
    """Return the sequences to fit on, and the last ones, which hold `tokens` tokens or more, to judge by.

    At least one is of either; where there is one alone, it is both.
    """
    N = len(calibration.ids)
    if N == 1:
        return calibration, calibration
    from_behind = calibration.mask.sum(1).flip(0).cumsum(0)
    count = min(N - 1, int((from_behind < tokens).sum()) + 1)
    parts = ((calibration.ids[some], calibration.mask[some]) for some in (slice(0, N - count), slice(N - count, N)))
    fitted, judged = (replace(calibration, ids=ids, mask=mask) for ids, mask in parts)
    return fitted, judged


def in_dense_numbers(decisions: dict[str, Any], kept: list[int], L: int, collapsed: list[int]) -> dict[str, Any]:
    """Return decisions on a model of the layers `kept`, of L, with the numbers that these had, and the lists of all.

    collapsed  the layers that are in none of `kept`
    """
    found = dict(decisions)
    found["removed_layers"] = sorted([*collapsed, *(kept[number] for number in decisions.get("removed_layers", []))])
    found |= {name: [kept[number] for number in decisions[name]] for name in LISTS if name in decisions}
    for name in BY_LAYER:
        if name in decisions:
            units = dict(zip(kept, decisions[name], strict=True))
            found[name] = [units.get(number, []) for number in range(L)]
    for refitted in decisions.get("compensation", {}).get("refitted", ()):
        refitted["layer"] = kept[refitted["layer"]]
    return found


class Divergence:
    """Measures KL(p || q) between the dense model and others with its head and its final norm."""

    @torch.no_grad()
    def __init__(self, dense: Decoder, calibration: Calibration) -> None:
        self.ids, self.wanted = calibration.ids, calibration.mask[:, 1:]
        self.dense, self.states = dense, self._states(dense)

    @torch.no_grad()
    def of(self, model: Decoder) -> float:
        """Return the mean over tokens of KL(p || q), in nats."""
        total, states = 0.0, self._states(model)
        pairs = (torch.split(each, TOKENS_AT_ONCE) for each in (self.states, states))
        for p, q in zip(*pairs, strict=True):
            wanted, found = self.dense.logits(p), model.logits(q)
            total += float(summed(kl, found, wanted.float().log_softmax(-1), found))
        return total / len(states)

    def _states(self, model: Decoder) -> Tensor:
        """Return what leaves the last layer at tokens that have a successor, (tokens, D)."""
        entry = enter(model, self.ids)
        x = entry.run(model.layers, entry.x)
        return x[:, :-1][self.wanted.to(x.device)]
