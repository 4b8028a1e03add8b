"""Collapse some layers and narrow the others under one budget, then refit what has been narrowed.

Of this project. The parts are those of methods/depth/laco_ls.py, after Yang, Cao, Zhao 2024 (arXiv 2402.11187), of
methods/search/puzzle.py, after Bercovich et al. 2024 (arXiv 2411.19146), and of methods/compensation/refit.py, after
Putri 2026. New is that they share a budget.

Of the P parameters that have to go, whole layers of p parameters each take the share `collapsed`:

    k = round(collapsed P / p)

layers collapse into others, which are refitted by least squares to do their work; in the model that is left an integer
program narrows or removes heads, channels, attentions and MLPs until P parameters have gone; and the output matrices
that have lost something are refitted, layer by layer, to what the collapsed model computes.

Why both. A layer whose work another one can take over is cheap to collapse, and there are a few of them; behind these
each further one costs more than the last. Heads and channels of little use are in every layer, and there too the first
are the cheapest.

What was tried. To choose k by the divergence from the dense model on two of 16 sequences that had no part in the fits:
by these two no collapse was better than six layers of nine, by the windows of two texts six were, so that a share is
taken which is good by draws and texts that no comparison uses (docs/studies/laco-puzzle.md).

Cost. That of `laco-ls` for k layers, and that of `puzzle+refit` for the rest.

Measured. docs/studies/laco-puzzle.md sets it beside its parts, and says which share layers should take.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from methods.base import Count, Holds, Look, Positive, Pruner, Share, Tokens, register
from methods.budget import parameters_of_blocks, whole_layers
from methods.compensation.base import CompensatedPruner
from methods.compensation.refit import Refit
from methods.decisions import prune
from methods.depth.laco_ls import LaCoLS
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters
from methods.model.structures import HEADS_AND_CHANNELS, sublayers_of
from methods.search.puzzle import Puzzle, choices_of_layers

LISTS = ("removed_attention", "removed_mlp")  # of numbers of layers
BY_LAYER: dict[str, Any] = {f"removed_{kind}": [] for kind in HEADS_AND_CHANNELS}  # what a gone layer has
BY_LAYER |= dict.fromkeys(HEADS_AND_CHANNELS, 0)


@register("laco-puzzle")
@dataclass(frozen=True)
class LaCoPuzzle(Pruner):
    """Collapse some layers and narrow the others under one budget, then refit (after LaCo and Puzzle)."""

    collapsed: Share = 0.67  # of what goes: layers that collapse; the rest are heads and channels of those that stay
    tokens: Tokens = 512  # calibration tokens on which the damage of a choice is measured
    steps: Count = 4  # of a layer's channels that may go: 4 leaves 3/4, 1/2, 1/4 or none
    heads: Count = 1  # of a layer's key/value heads that may go; 1 leaves all or none
    best: Count = 4  # solutions of the program that are measured, of which the best is taken
    ridge: Positive = 1.0  # penalty of each channel's distance from its weights, as a share of its energy

    cost = "those of laco-ls, and of puzzle+refit on 512 tokens"
    uneven_because = "it chooses the width of each layer"
    axes = ("channels", "layers")
    takes_first = True
    needs_mlps = True
    leaves = ("attentions", "mlps", "channels")
    look = Look("dotted", "p")
    tiny = "steps=2,tokens=48,best=2"

    @property
    def holds(self) -> Holds:
        """Return the memory of laco-ls."""
        return LaCoLS().holds

    def tokens_read(self, tokens: int) -> int:
        """Return the tokens of laco-ls."""
        return LaCoLS().tokens_read(tokens)

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return the forwards of laco-ls, of puzzle and of refit together."""
        of_windows = LaCoLS().forwards(layers, self.collapsed * removed, tokens)
        narrow = Puzzle(steps=self.steps, heads=self.heads, tokens=self.tokens, best=self.best)
        return of_windows + narrow.forwards(layers, removed, tokens) + Refit.forwards

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the parameters that are left."""
        LaCoLS().plan(model, self._by_layers(model, ratio))
        choices_of_layers(model, self.steps, self.heads)
        return {"parameters": parameters(model) - self._count_collapsed(model, ratio)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Collapse windows for a share of the budget, narrow what is left for the rest, and refit."""
        to_remove = self._count_collapsed(model, ratio)
        if not to_remove:
            return {}
        total, L = parameters(model), len(model.layers)
        dense = replace(calibration, keep=None)
        collapsed = LaCoLS(ridge=self.ridge).prune(model, dense, self._by_layers(model, ratio))
        kept = [number for number in range(L) if number not in collapsed["removed_layers"]]
        share_left = 1 - (total - to_remove) / parameters(model)
        narrow = Puzzle(steps=self.steps, heads=self.heads, tokens=self.tokens, best=self.best)
        both = CompensatedPruner(narrow, Refit(ridge=self.ridge))
        alone = replace(dense, sweeps=None, note=None, order=())  # logs and known removals are of the dense model
        narrowed = prune(both, model, alone, share_left) if share_left > 0 else {}
        return collapsed | to_dense_numbers(narrowed, kept, L, collapsed["removed_layers"])

    def _by_layers(self, model: Decoder, ratio: float) -> float:
        """Return the ratio that is exactly k layers."""
        each = sum(map(layer_parameters, model.layers)) / len(model.layers)
        k = round(self.collapsed * self._count_collapsed(model, ratio) / each)
        return min(k, whole_layers(model, ratio)) * each / parameters(model)

    def _count_collapsed(self, model: Decoder, ratio: float) -> int:
        return parameters_of_blocks(model, ratio, sublayers_of(model, "attention", "mlp"))


def to_dense_numbers(decisions: dict[str, Any], kept: list[int], L: int, collapsed: list[int]) -> dict[str, Any]:
    """Return decisions on a model of the layers `kept`, with the numbers of the dense model and its lists of L layers.

    collapsed  all layers that are not in `kept`
    """
    renumbered = dict(decisions)
    removed = [kept[number] for number in decisions.get("removed_layers", [])]
    renumbered["removed_layers"] = sorted([*collapsed, *removed])
    for name in LISTS:
        if name in decisions:
            renumbered[name] = [kept[number] for number in decisions[name]]
    for name, of_gone in BY_LAYER.items():
        if name in decisions:
            units = dict(zip(kept, decisions[name], strict=True))
            renumbered[name] = [units.get(number, of_gone) for number in range(L)]
    numbers_left = [number for number in kept if number not in renumbered["removed_layers"]]
    for refitted in decisions.get("compensation", {}).get("refitted", ()):
        refitted["layer"] = numbers_left[refitted["layer"]]
    return renumbered
