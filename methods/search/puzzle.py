"""Choose how much stays of each layer by one integer program over damages that are measured alone: Puzzle.

Bercovich, Ronen, Abramovich, Ailon, Assaf, Dabbah, Galil, Geifman, Geifman, Golan and others 2024, "Puzzle:
Distillation-Based NAS for Inference-Optimized LLMs", ICML 2025, arXiv 2411.19146. Code: NVIDIA/Model-Optimizer.

Layer l is replaced by one of several choices c: its attention whole, with fewer key/value heads, or gone; and its MLP
whole, with fewer channels, or gone. s_lc is the damage where this replacement alone is made, and m_lc what a choice
costs. With y_lc = 1 where layer l has choice c,

    minimise  sum_lc s_lc y_lc    so that  sum_c y_lc = 1 for every l  and  sum_lc m_lc y_lc is the budget.

The damage is KL(p || q), the mean over tokens of the dense model's distribution of the next token, p, to the other's,
q; or with `score=nll` what the mean of -log q(token) rises by. Units that stay are those with the largest contribution,

    C_j = mean over tokens of |X_tj| times ||W_:j||,

for X what enters the output matrix W; a head's is the sum over its channels.

That damages add up is assumed, and neighbours are worse together than their sum. So the program is solved `best` times,
each time without the solutions that are known, and the solution with the lowest damage of all replacements together is
taken. The record has both, the sum that the program saw and the damage that was measured.

A budget (--budget kv=0.5) is what the program is solved under: m is then the quantity itself, and not parameters.

Departures from the authors' code. There a head's contribution is the mean norm of all that it writes, in which channels
may cancel out, its query heads stay as zeros, and most configurations rank channels anew, step by step, without those
that have gone. No choice is trained: there each is distilled alone before it is scored, and the whole model afterwards.
The code's damage is by default a distance of hidden states; KL is one of its metrics. Its widths are multiples of 256,
here equal steps of what a layer has. Its budgets are upper bounds; here what stays is held to the budget from both
sides, as that of every method of this suite, by half of the smallest replacement with which a thousandth or more of
what all layers hold goes. A table of latencies has smaller steps, where widths take the same time but for its noise.

Cost. Half a forward over `tokens` tokens for each choice, of which a layer has nine that change it, and `best`
forwards. Cells of a run that differ in their ratio or compensation measure the damages once, and what was interrupted
goes on from those that it had measured. The solver ends after 10,000 branches with the best solution that it has, of
which `unproven` in the record says how many there are; where it has none, what goes may be further from the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from methods.base import Count, Holds, Look, Pruner, Tokens, register
from methods.budget import parameters_of_blocks
from methods.counted import Budget, quantity_of_layer
from methods.errors import OutOfReach
from methods.model.activations import Step, collect_by_layer
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.sizes import layer_parameters, parameters
from methods.model.structures import Narrowed, Sublayer, count_units_left, cut, keep, kinds_of, sublayers_of
from methods.trials.blocks import Replacements, Trial

Numbers = NDArray[np.float64]
Ranks = dict[tuple[int, str], list[int]]  # by layer and kind: heads or channels, the one that stays longest first
Quantity = Callable[[Layer], float]  # how much of it a layer holds
Score = Literal["kl", "nll"]
WINDOW = 0.5  # of the smallest replacement: how far what goes may be from the budget
LEAST = 0.001  # of what all layers hold: a replacement with which less goes makes no window, as noise of a table
EXACT = {"mip_rel_gap": 0, "node_limit": 10_000}  # of the solver: the best solution of all, or of 10,000 branches
SOLVED = 0  # the solver's status where its solution is the best of all
WIDER = 2  # factor of the window where no choice of all layers lies within


@register("puzzle")
@dataclass(frozen=True)
class Puzzle(Pruner):
    """Choose how much stays of each layer by an integer program over damages (Bercovich et al. 2024)."""

    steps: Count = 4  # of a layer's channels that may go: 4 leaves 3/4, 1/2, 1/4 or none
    heads: Count = 1  # of a layer's key/value heads that may go; 1 leaves all or none
    score: Score = "kl"  # the damage: KL(p || q), or what -log q(token) rises by
    tokens: Tokens = 2048  # calibration tokens on which a damage is measured
    best: Count = 8  # solutions that are measured, of which the best is taken

    cost = "about 1 forward, and half of one over 2,048 tokens for each of 9 choices of L layers"
    holds = Holds(all_layers=1.5, steps=2, logits=6.5)
    reuses = "statistics"
    takes_budget = True
    only_cuts = True
    uneven_because = "it chooses the width of each layer"
    axes = ("channels", "layers")
    takes_first = True
    leaves = ("attentions", "mlps", "channels")
    paper_ratio = "what a budget names"
    paper_reads = "1,000 x 8,192 tokens of Nemotron-Post-Training-Dataset-v2; 8 x 8,192 for damages"  # llama-3_1-8B*
    look = Look("mixed", "d")
    tiny = "steps=2,tokens=48,best=3"

    def tokens_read(self, tokens: int) -> int:
        """Return the tokens of its parameter at most."""
        return min(tokens, self.tokens)

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return the forwards of every choice of every layer, and of the best solutions."""
        choices = (self.steps + 1) * (self.heads + 1) - 1
        tried = 0.8 * layers * choices + self.best * (1 - removed / layers)
        return 1 + tried * self.tokens_read(tokens) / tokens

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the parameters that are left."""
        choices_of_layers(model, self.steps, self.heads)
        return {"parameters": parameters(model) - parameters_of_blocks(model, ratio, blocks_of(model))}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Choose what stays of each layer by a mixed-integer program over damages measured alone."""
        to_remove = parameters_of_blocks(model, ratio, blocks_of(model))
        return self.solve(model, calibration, layer_parameters, to_remove)

    def prune_to(self, model: Decoder, calibration: Calibration, budget: Budget) -> dict[str, Any]:
        """Prune to a budget, in place, and return the decisions. Raises OutOfReach."""

        def of_layer(layer: Layer) -> float:
            return quantity_of_layer(layer, budget.of, budget.context, budget.table)

        return self.solve(model, calibration, of_layer, (1 - budget.share) * budget.dense)

    def solve(self, model: Decoder, calibration: Calibration, quantity: Quantity, to_remove: float) -> dict[str, Any]:
        """Remove `to_remove` of a quantity, in place, by the best measured solution; return the decisions."""
        if not to_remove:
            return {}
        widths = (self.steps, self.heads)
        every, tokens = choices_of_layers(model, *widths), calibration.first(self.tokens)
        m = costs_of_choices(model, every, quantity)
        statistics = shared_statistics(library, model, calibration, widths, self.score, self.tokens)
        s, ranks = statistics[: len(every)], ranking(model, statistics[len(every) :])
        program = Program([damages.double().numpy() for damages in s], m)
        solutions = program.solutions(to_remove, self.best)
        states = [replacements_of(solution, every) for solution in solutions]
        trial = Trial(model, tokens, self.score, narrow=Narrow(ranks))
        # where next to nothing goes, a solution may be nothing
        distinct = list(dict.fromkeys([Replacements(), *states]))
        losses = dict(zip(distinct, trial.losses(distinct, "measuring solutions"), strict=True))
        together = [losses[state] - losses[Replacements()] for state in states]
        best = min(range(len(solutions)), key=lambda at: math.inf if math.isnan(together[at]) else together[at])
        decided = to_decisions(states[best], model, ranks)
        cut(model, decided)
        decided |= {"unproven": program.unproven} if program.unproven else {}
        return decided | {
            "parameters": parameters(model),
            **count_units_left(model),
            "expected_damage": [_finite(program.damage(solution)) for solution in solutions],
            "damage": [_finite(damage) for damage in together],
            "solution": best,
        }


def costs_of_choices(model: Decoder, every: Sequence[Sequence[Replacements]], quantity: Quantity) -> list[Numbers]:
    """Return for each layer how much of the quantity goes with each of its choices."""
    costs = []
    for layer, choices in zip(model.layers, every, strict=True):
        costs.append(np.array([cost_of_choice(choice, layer, quantity) for choice in choices], dtype=float))
    return costs


def replacements_of(solution: Sequence[int], every: Sequence[Sequence[Replacements]]) -> Replacements:
    """Return all that a solution replaces; it has the number of a choice for each layer."""
    chosen = [choices[number] for choices, number in zip(every, solution, strict=True)]
    return Replacements().union(*chosen)


def blocks_of(model: Decoder) -> list[Sublayer]:
    """Return the attentions and the MLPs of a model, by layer."""
    return sublayers_of(model, "attention", "mlp")


def choices_of_layers(model: Decoder, steps: int, heads: int) -> list[list[Replacements]]:
    """Return the choices of each layer; the first one replaces nothing.

    Raises Unsupported where a choice loses heads and the model's family cannot.
    """
    model.refuse_fixed()
    if heads > 1:
        model.refuse("heads")
    choices = []
    for number, layer in enumerate(model.layers):
        parts: list[list[Replacements]] = []
        if layer.has_attention:
            kind = layer.kind_of_heads
            parts.append(_of_part("attention", kind, number, layer.heads, heads if kind else 1))
        if layer.has_mlp:
            parts.append(_of_part("mlp", "channels", number, layer.down.in_features, steps))
        choices.append([Replacements().union(*combination) for combination in product(*parts)])
    return choices


def _of_part(part: str, kind: str, number: int, size: int, steps: int) -> list[Replacements]:
    """Return the choices for an attention or an MLP with `size` units: all, `steps` - 1 widths, or none of them."""
    widths = sorted({round(size * step / steps) for step in range(1, steps)} - {0, size}, reverse=True)
    return [
        Replacements(),
        *(Replacements([Narrowed(kind, number, width)]) for width in widths),
        Replacements([Sublayer(part, number)]),
    ]


def cost_of_choice(choice: Replacements, layer: Layer, quantity: Quantity) -> float:
    """Return how much of a quantity goes with a choice for a layer, from shapes alone, on a copy without weights."""
    parts = {replacement.part for replacement in choice if isinstance(replacement, Sublayer)}
    if len(parts) == layer.has_attention + layer.has_mlp:
        return quantity(layer)
    smaller = layer.on(torch.device("meta"))
    for replacement in choice:
        if isinstance(replacement, Narrowed):
            keep(smaller, replacement.kind, range(replacement.units))
        elif replacement.part == "attention":
            smaller.remove_attention()
        else:
            smaller.remove_mlp()
    return quantity(layer) - quantity(smaller)


@dataclass(frozen=True)
class Narrow:
    """Returns a layer with fewer units, when called with a layer that has all of them.

    ranks  by layer and kind, the units, the one with the largest contribution first
    """

    ranks: Ranks

    def __call__(self, layer: Layer, narrowed: Collection[Narrowed]) -> Layer:
        """Return a layer that shares its matrices with the given one, narrowed to the units ranked first."""
        smaller = layer.copy_sharing_matrices()
        smaller.store = None  # the store knows the layer itself, and keeps no copy
        for replacement in narrowed:
            keep(
                smaller, replacement.kind, sorted(self.ranks[replacement.layer, replacement.kind][: replacement.units])
            )
        return smaller


def ranking(model: Decoder, C: list[Tensor]) -> Ranks:
    """Return the units of each layer and kind, the largest of C first; C is that of `contributions_of_units`."""
    orders = [contributions.argsort(descending=True, stable=True).tolist() for contributions in C]
    kinds = [kind for layer in model.layers for kind in (layer.kind_of_heads, "channels")]
    return {(at // 2, kind): order for at, (kind, order) in enumerate(zip(kinds, orders, strict=True))}


def contributions_of_units(model: Decoder, calibration: Calibration) -> list[Tensor]:
    """Return C of the heads, (G,), and of the channels, (I,), of each layer, in float64; (0,) of a removed sublayer."""

    tokens = int(calibration.mask.sum())

    def of_layer(number: int, steps: Iterator[Step]) -> list[Tensor]:
        layer = model.layers[number]
        sums = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
        for step in steps:
            addends = ((X.double().abs() * step.mask[:, :, None]).sum((0, 1)) for X in (step.heads, step.channels))
            sums = [total + addend.cpu() for total, addend in zip(sums, addends, strict=True)]
        contributions = [torch.zeros(0, dtype=torch.float64)] * 2
        if layer.kind_of_heads:
            contributions[0] = (sums[0] / tokens * norms_of_columns(layer.out)).view(layer.heads, -1).sum(1)
        if layer.has_mlp:
            contributions[1] = sums[1] / tokens * norms_of_columns(layer.down)
        return contributions

    return [C for pair in collect_by_layer(model, calibration, of_layer) for C in pair]


def norms_of_columns(matrix: nn.Linear) -> Tensor:
    """Return the norm of each column of a matrix, in float64 on the CPU."""
    return matrix.weight.double().norm(dim=0).cpu()


def library(
    model: Decoder, calibration: Calibration, widths: tuple[int, int], score: Score, tokens: int
) -> list[Tensor]:
    """Return `damages_of_choices` on `tokens` tokens, and behind them `contributions_of_units` on all."""
    C = contributions_of_units(model, calibration)
    return [*damages_of_choices(model, calibration.first(tokens), ranking(model, C), widths, score), *C]


def damages_of_choices(
    model: Decoder, calibration: Calibration, ranks: Ranks, widths: tuple[int, int], score: Score
) -> list[Tensor]:
    """Return the damage s of the choices of each layer, (choices,), in float64. The first one, empty, has 0."""
    every = choices_of_layers(model, *widths)
    trial = Trial(model, calibration, score, narrow=Narrow(ranks))
    candidates = [choice for several in every for choice in several[1:]]
    log = calibration.log([], "puzzle", [sorted(map(str, choice)) for choice in candidates], score)
    dense, *losses = trial.losses([Replacements(), *candidates], "leaving out one", log=log)
    damages, at = [], 0
    for several in every:
        rises = [loss - dense for loss in losses[at : at + len(several) - 1]]
        damages.append(torch.tensor([0.0, *rises], dtype=torch.float64))
        at += len(rises)
    return damages


def to_decisions(state: Replacements, model: Decoder, ranks: Ranks) -> dict[str, Any]:
    """Return the decisions that remove a state, as methods.model.structures.cut reads them."""
    parts: dict[str, set[int]] = {"attention": set(), "mlp": set()}
    for sublayer in state:
        if isinstance(sublayer, Sublayer):
            parts[sublayer.part].add(sublayer.layer)
    whole = []
    for number, layer in enumerate(model.layers):
        has = {"attention": layer.has_attention, "mlp": layer.has_mlp}
        if all(number in parts[part] for part in parts if has[part]):
            whole.append(number)
    narrowed = [replacement for replacement in state if isinstance(replacement, Narrowed)]
    count_by_structure = {(replacement.layer, replacement.kind): replacement.units for replacement in narrowed}

    def list_lost(kind: str) -> list[list[int]]:
        """Return the units of a kind that each layer loses."""
        counts = [count_by_structure.get((number, kind)) for number in range(len(model.layers))]
        return [[] if count is None else sorted(ranks[number, kind][count:]) for number, count in enumerate(counts)]

    return {
        "removed_layers": whole,
        **{f"removed_{part}": sorted(numbers - set(whole)) for part, numbers in parts.items()},
        **{f"removed_{kind}": list_lost(kind) for kind in kinds_of(model)},
    }


class Program:
    """Holds the integer program: of each layer the damages s and the costs m of its choices, (choices,) each.

    unproven  how many of its solutions may not be the best
    """

    def __init__(self, s: list[Numbers], m: list[Numbers]) -> None:
        finite = [damage for several in s for damage in several if math.isfinite(damage)]
        worst = 1e3 * max(1.0, *map(abs, finite))
        self.s = np.concatenate([np.where(np.isfinite(damages), damages, worst) for damages in s])
        self.m = np.concatenate(m)
        self.allowed = np.concatenate([_undominated(damages, cost) for damages, cost in zip(s, m, strict=True)])
        self.starts = np.cumsum([0, *map(len, s)])
        layers, every = len(s), len(self.s)
        self.one_each = np.zeros((layers, every))
        for layer in range(layers):
            self.one_each[layer, self.starts[layer] : self.starts[layer + 1]] = 1
        self.not_empty = np.zeros(every)
        self.not_empty[self.starts[1:] - 1] = 1  # the last choice of each layer leaves nothing of it
        self.unproven = 0

    def damage(self, solution: Sequence[int]) -> float:
        """Return the sum of the damages of a solution, a choice for each layer."""
        return float(self.s[self.starts[:-1] + np.array(solution)].sum())

    def solutions(self, to_remove: float, count: int) -> list[list[int]]:
        """Return the `count` solutions of least damage that remove `to_remove` of the quantity, or all where fewer do.

        Raises OutOfReach where no choice of all layers comes near to it.
        """
        least = LEAST * self.m[self.starts[1:] - 1].sum()
        window = WINDOW * min(map(float, self.m[self.m > least]), default=math.inf)
        while window <= to_remove + self.m.sum():
            solutions = list[list[int]]()
            while len(solutions) < count and (solution := self._next(to_remove, window, solutions)) is not None:
                solutions.append(solution)
            if solutions:
                return solutions
            window *= WIDER
        raise OutOfReach("no choice of what stays of each layer comes near to what has to go")

    def _next(self, to_remove: float, window: float, solutions: Sequence[Sequence[int]]) -> list[int] | None:
        """Return the solution with the least damage that is none of those known, or None."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        layers, every = self.one_each.shape
        limits = [
            LinearConstraint(self.one_each, 1, 1),
            LinearConstraint(self.m[None] / to_remove, 1 - window / to_remove, 1 + window / to_remove),
            LinearConstraint(self.not_empty[None], 0, layers - 1),
        ]
        for solution in solutions:
            row = np.zeros((1, every))
            row[0, self.starts[:-1] + np.array(solution)] = 1
            limits.append(LinearConstraint(row, 0, layers - 1))
        result = milp(self.s, constraints=limits, integrality=1, bounds=Bounds(0, self.allowed), options=EXACT)
        if result.x is None:
            return None
        self.unproven += result.status != SOLVED
        chosen = result.x.round().astype(int)
        return [int(chosen[start:end].argmax()) for start, end in pairwise(self.starts)]


def _undominated(s: Numbers, m: Numbers) -> Numbers:
    """Return for each choice of a layer 0 where another has the same cost and less damage, else 1."""
    same = m[:, None] == m[None]
    return np.array([not (s[row] < damage).any() for damage, row in zip(s, same, strict=True)], dtype=float)


def _finite(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None
