"""Search how much each layer loses, by swaps between matrices that optimal brain surgery has made: Týr-the-Pruner.

Li, Zhao, Liu, Barsoum 2025, "Týr-the-Pruner: Structural Pruning LLMs via Global Sparsity Distribution Optimization",
NeurIPS, arXiv 2503.09657. Code: AMD-AGI/Tyr-the-Pruner. `darwinlm` searches alike, and trains each candidate a little.

A structure is the key/value heads of a layer's attention or the channels of its MLP. It has as many levels as

    units left = w + j d,    |j| <= (levels - 1) / 2,

of which w is what it has left so far, at first the same in all layers, and d a step. For each level the output matrix
is what optimal brain surgery leaves (methods/width/obs.py): units go in the order of their cost, and the rest is solved
for on what enters the matrix in the model whose structures have w units left up to there. A state chooses a level of
each structure, and its fitness is

    KL(p || q)    the mean over tokens of the dense model's distribution of the next token, p, to the pruned one's, q.

A child of a state has min(a, b) swaps, a and b uniform in 1 .. mutations: one structure goes a level down and another
one of its kind a level up, so that as many parameters are left. How the fittest are found is in
methods/trials/evolution.py. In each of `rounds` rounds the levels lie around the winner of the round before, with d
half as large: at first an eighth of the channels, and one head where there are eight or fewer. At last the model is cut
to the winner's widths, layer by layer, so that each matrix is solved for on what the cut layers in front of it give.

Departures from the authors' code. There the H of a layer's two output matrices are of one forward, before either is
cut; here the MLP is fed by what is left of the attention. There the score of a unit has a term that is not its cost
(obs.py, `tyr-release`), which `score=tyr-release` gives here as well; channels go in 16 rounds, heads all at once, and
here one unit goes after another. There the matrices of the last round's levels are the model's; here they are solved
for once more, on their own prefix. Divergence is of the 8,192 likeliest words there, here of all. The script compares
128 children on 2,048 tokens, 16 of them on 16,384 and 4 on 131,072, for 50 generations in each round; here 16 children
are compared on `tokens`, two and their parent on `final_tokens`, for 6 generations. As there, the tokens that matrices
are solved on are those that states are compared on; the script has 4,194,304 of them, and on the few thousand of a
usual run a state diverges far less than on other text (docs/studies/laco-puzzle.md). One head and 16 channels stay in
each layer, or an eighth of fewer than 128 channels. Matrices of levels are kept in the type of the model's weights, as
there.

Cost. In each round and at the end that of `obs`, with a triangular solve for each level; and for each generation most
of a forward over `tokens` tokens for each child, and of four over `final_tokens`. Memory holds a copy of the model as
it is cut, and on the host the output matrices of all levels. `minutes` ends the search after the generation in which
they have passed, and the record says how many there were. A search that was interrupted goes on behind the last
generation, and makes the matrices of its round once more.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from methods.base import Count, Holds, Look, Positive, Pruner, Tokens, register
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder, make_twin
from methods.model.layer import Layer
from methods.model.sizes import parameters
from methods.model.structures import Narrowed, Structure, cuts_of, keep, structures_of
from methods.trials.blocks import Replacements
from methods.trials.evolution import Fitness, Generations, Narrow, draw_distinct, end_of_search
from methods.width.obs import OBS, Counts, Cut, CutTarget, Prefix, Problem, Score
from methods.width.widths import fewest_of, find_equal_widths

COARSEST = 8  # of a structure's units, at least one, are the first round's step


@register("tyr")
@dataclass(frozen=True)
class Tyr(Pruner):
    """Search how many heads and channels each layer loses, the rest updated by second order (Li et al. 2025)."""

    rounds: Count = 4  # in each of which the steps between levels are half as large
    generations: Count = 6  # of a round
    offspring: Count = 16  # children in each generation
    levels: Count = 9  # of a structure, half of them above what it has left and half below
    survivors: Count = 2  # children that are compared on final_tokens
    mutations: Count = 4  # swaps of a child at most
    tokens: Tokens = 512  # calibration tokens of a first comparison
    final_tokens: Tokens = 2048  # and of a second one, between the fittest children and their parent
    damping: Positive = 0.01  # what is added to the diagonal of H, as a share of its mean
    score: Score = "cost"  # cost: what the output misses; tyr-release: as the authors' code computes it
    multiple: Count = 1  # what is left of the channels is a multiple of it
    minutes: Positive | None = None  # after which the search ends with what it has

    cost = "that of obs 5 times, and 24 times 16 over 512 tokens and 4 over 2,048"
    uneven_because = "it chooses the width of each layer"
    axes = ("heads", "channels")
    leaves = ("heads",)
    paper_ratio = "the heads and channels"
    paper_reads = "4,194,304 tokens of FineWeb-Edu in sequences of up to 4,096 tokens"  # script/example.sh
    look = Look("long", "X")
    tiny = "rounds=2,generations=1,offspring=3,levels=3,tokens=48,final_tokens=48"

    @property
    def holds(self) -> Holds:
        """Return the memory of obs, and of its models at all levels on the host."""
        return Holds(states=2, squares=5, copies=1, hosted=self.levels / 3)

    @property
    def mlp_solves(self) -> float:
        """Return the number of obs for each round and for the last cut."""
        return (self.rounds + 1) * OBS.mlp_solves

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return the forwards of obs for each round, and of all comparisons."""
        compared = (self.offspring + 1) * self.tokens + (self.survivors + 2) * self.final_tokens
        of_states = self.rounds * self.generations * compared / max(tokens, self.final_tokens)
        return (self.rounds + 1) * OBS().forwards(layers, removed, tokens) + of_states

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the parameters that are left."""
        structures = structures_of(model)
        counts = find_equal_widths(model, structures, ratio, self.multiple)
        return {"parameters": parameters(model) - sum(counts[each.kind] * each.cost for each in structures)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Search how many units each layer keeps, and cut them as obs does."""
        structures = structures_of(model)
        counts, outcome = find_equal_widths(model, structures, ratio, self.multiple), dict[str, Any]()
        units_left = {(each.number, each.kind): each.size - counts[each.kind] for each in structures}
        missed = list[dict[str, float]]()
        if any(counts.values()):
            units_left, outcome = self.search(model, calibration, units_left)
            obs = OBS(damping=self.damping, score=self.score)
            size = {(each.number, each.kind): each.size for each in structures}
            removed = {at: size[at] - units_left[at] for at in size if at in units_left and units_left[at] < size[at]}
            missed = obs.sweep(model, structures, removed, calibration)
        return {"parameters": parameters(model), "missed": missed} | cuts_of(model, structures) | outcome

    def search(self, model: Decoder, calibration: Calibration, units_left: Counts) -> tuple[Counts, dict[str, Any]]:
        """Return the units that each structure has left, and for the record the length of the search."""
        alone = replace(calibration, keep=None, note=None, sweeps=None, order=())  # logs are of other sweeps
        generator, until = random.Random(calibration.seed), end_of_search(self.minutes)
        best, forwards = list[float | None](), 0.0
        for number in range(self.rounds):
            log = calibration.log([], "tyr", self, number, sorted(units_left.items()))
            until -= log.seconds
            if number and time.monotonic() > until:
                break
            levels = self.around(units_left, structures_of(model), number)
            sizes = 1, self.survivors, self.tokens, self.final_tokens
            how = Generations(self.generations, *sizes, until, log, levels.every())
            fitness = Fitness(model, alone, generator, self.narrow(model, alone, levels, units_left))
            children = partial(levels.children, count=self.offspring, mutations=self.mutations, generator=generator)
            (winner, *_), kl = how.evolve([state_of(units_left)], children, fitness)
            units_left, best, forwards = widths_of(winner), best + kl, forwards + fitness.forwards
        outcome = {"generations": len(best), "of_generations": self.rounds * self.generations, "kl": best}
        return units_left, outcome | {"forwards": round(forwards, 2)}

    def around(self, units_left: Counts, structures: list[Structure], number: int) -> Levels:
        """Return the levels of a round, around the units that are left so far."""
        return Levels.around(units_left, structures, self.levels, COARSEST * 2**number, self.multiple)

    def narrow(self, model: Decoder, calibration: Calibration, levels: Levels, units_left: Counts) -> Narrow:
        """Return a function that narrows layers to the levels of a round. Its first call makes all matrices."""
        make_supernet = cache(lambda: self.supernet(model, calibration, levels, units_left))

        def narrowed(layer: Layer, to: Collection[Narrowed]) -> Layer:
            return make_supernet()(layer, to)

        return narrowed

    def supernet(self, model: Decoder, calibration: Calibration, levels: Levels, units_left: Counts) -> Supernet:
        """Return the matrices of all levels, each solved for on a model with `units_left`."""
        return make_supernet(model, calibration, levels, units_left, OBS(damping=self.damping, score=self.score))


@dataclass
class Supernet:
    """Holds the order in which units of each structure go, and its output matrix at each level, by layer and kind.

    matrices  (D, K) by the number of units that are left, which have K columns
    """

    order: dict[tuple[int, str], list[int]] = field(default_factory=dict)
    matrices: dict[tuple[int, str], dict[int, Tensor]] = field(default_factory=dict)

    def __call__(self, layer: Layer, narrowed: Collection[Narrowed]) -> Layer:
        """Return a layer of its own at these levels."""
        small = layer.copy_sharing_matrices()
        small.store = None  # the store knows the layer itself, and keeps no copy
        self.narrow_in_place(small, narrowed)
        return small

    def narrow_in_place(self, layer: Layer, narrowed: Iterable[Narrowed]) -> None:
        """Bring a layer to these levels. It has the matrices of the dense model so far."""
        for level in narrowed:
            structure = Structure(level.layer, level.kind, layer)
            dropped = self.order[level.layer, level.kind][: structure.size - level.units]
            keep(layer, level.kind, sorted(set(range(structure.size)) - set(dropped)))
            V = self.matrices[level.layer, level.kind][level.units].to(layer.device)
            structure.writer.weight = nn.Parameter(V, requires_grad=False)


def make_supernet(
    model: Decoder,
    calibration: Calibration,
    levels: Levels,
    units_left: Counts,
    obs: OBS,
    *,
    prefix: Prefix = "pruned",
) -> Supernet:
    """Return the matrices of all levels.

    prefix  what each is solved for on: a model with `units_left` in front of it, or the dense model
    """
    supernet, pruned = Supernet(), make_twin(model)
    structures = structures_of(pruned)

    def cut(target: CutTarget, H: Tensor) -> Cut:
        structure, size = target.structure, target.structure.size
        at, problem = (structure.number, structure.kind), Problem(structure, H, obs.damping)
        order = supernet.order[at] = problem.cheapest(size - levels.units[at][0], obs.score)
        levels_and_matrices = zip(levels.units[at], problem.nested(order, levels.units[at]), strict=True)
        supernet.matrices[at] = {units: V.cpu() for units, V in levels_and_matrices}
        return problem.without(order[: size - units_left[at]])

    removed = {(each.number, each.kind): each.size - units_left[each.number, each.kind] for each in structures}
    obs.sweep(pruned, structures, removed, calibration, cut, prefix=prefix)
    return supernet


def state_of(units_left: Counts) -> Replacements:
    """Return the state in which structures have these numbers of units left."""
    return Replacements(Narrowed(kind, layer, units) for (layer, kind), units in units_left.items())


def widths_of(chosen: Replacements) -> Counts:
    """Return the number of units that each structure has left in a state."""
    narrowed = sorted((level.layer, level.kind, level.units) for level in chosen if isinstance(level, Narrowed))
    return {(layer, kind): units for layer, kind, units in narrowed}


@dataclass(frozen=True)
class Levels:
    """Holds the levels of structures.

    units  by layer and kind, the number of units at each level, the fewest first
    alike  by layer and kind, a value that is equal for two structures if a swap between them keeps the parameters
    """

    units: dict[tuple[int, str], list[int]]
    alike: dict[tuple[int, str], tuple[str, int, int]]

    @classmethod
    def around(
        cls, units_left: Counts, structures: Iterable[Structure], most: int, steps: int, multiple: int = 1
    ) -> Levels:
        """Return at most `most` levels of each structure around the units that it has left.

        steps     of which a structure has as many as that, at most: a step is a share of its units, one at least
        multiple  of which the channels of each level are, unless they are those that are left
        """
        levels = cls({}, {})
        for each in structures:
            unit, at = multiple if each.kind == "channels" else 1, (each.number, each.kind)
            step = max(unit, each.size // steps // unit * unit)
            reach, w = (most - 1) // 2, units_left[at]
            several = (w + j * step for j in range(-reach, reach + 1))
            fewest = fewest_of(each)
            levels.units[at] = [
                units for units in several if units == w or (fewest <= units <= each.size and units % unit == 0)
            ]
            levels.alike[at] = each.kind, each.cost, each.size
        return levels

    def every(self) -> list[Narrowed]:
        """Return all levels of all structures, in an order that is always the same."""
        return [
            Narrowed(kind, layer, units) for (layer, kind), several in sorted(self.units.items()) for units in several
        ]

    def children(
        self, parents: list[Replacements], count: int, mutations: int, generator: random.Random
    ) -> list[Replacements]:
        """Return different children with as many parameters as their single parent; see `draw_distinct`."""
        (parent,) = parents

        def child() -> Replacements:
            units_left = widths_of(parent)
            for _ in range(min(generator.randint(1, mutations), generator.randint(1, mutations))):
                self.swap(units_left, generator)
            return state_of(units_left)

        return draw_distinct(child, count)

    def swap(self, units_left: Counts, generator: random.Random) -> None:
        """Take a structure a level up and one that is alike a level down, in place, or none where none can.

        Both may be the same structure, which then does not change.
        """
        every = sorted(self.units)
        lower = {at for at in every if units_left[at] > self.units[at][0]}
        higher = {at for at in every if units_left[at] < self.units[at][-1]}
        kinds = {self.alike[at] for at in lower}
        higher = {at for at in higher if self.alike[at] in kinds}
        if higher:
            up = draw_structure(every, higher, generator)
            down = draw_structure(every, {at for at in lower if self.alike[at] == self.alike[up]}, generator)
            for at, by in ((up, 1), (down, -1)):
                units_left[at] = self.units[at][self.units[at].index(units_left[at]) + by]


def draw_structure(
    every: list[tuple[int, str]], possible: set[tuple[int, str]], generator: random.Random
) -> tuple[int, str]:
    """Return a random structure of those that are `possible`, from the list of all."""
    while True:
        structure = every[generator.randint(0, len(every) - 1)]
        if structure in possible:
            return structure
