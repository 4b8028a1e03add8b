"""Drop attentions and MLPs that an evolutionary search finds to be missed least together: EvoPress.

Sieberling, Kuznedelev, Kurtic, Alistarh 2025, "EvoPress: Accurate Dynamic Model Compression via Evolutionary Search",
ICML, arXiv 2410.14649. Code: IST-DASLab/EvoPress.

Blocks that are harmless alone need not be so together, and a greedy search never takes a choice back. Here a state is a
set of k attentions and k MLPs, and its fitness is

    KL(p || q)    the mean over tokens of the dense model's distribution of the next token, p, to the pruned one's, q

on a few sequences that are drawn anew for every comparison. Of `initial` random states the fittest are the parents,
`population` of them. In each generation they have `offspring` children. A child is one of them after min(a, b) swaps,
a and b uniform in 1 .. mutations; a swap takes attentions or MLPs, by a coin, and lets one that is gone stay and one
that stays go. The children are compared on `tokens` tokens, the `survivors` fittest of them and the parents on
`final_tokens`, and the fittest are the next parents. With k of the blocks of L layers gone there are k (L - k) / 1.5
generations, as in the authors' script. The fittest of the last parents is what is left.

`whole=yes` lets whole layers go, so that attention and MLP of a layer share their fate.

Departures from the authors' code. With `whole=yes` every swap is of two layers; there half of the swaps are of MLPs
alone, and are lost when whole layers are made of the attentions. k is what the ratio asks for, which counts parameters;
as many attentions as MLPs go, as there. Where blocks of a kind differ in size, as in mixtures whose first MLPs are
dense, only states are drawn that miss the budget by half an attention and half an MLP at most, as those of blocks of
one size do; where none is drawn in a hundred draws for each that is wanted, all are. The sequences that are read are
the run's calibration text, of which 512 tokens serve a first comparison and 4,096 a second one; the script takes 2,048
and 32,768 of sequences of 8,192. Positions with a successor are compared, as there. The dense model runs on what is
drawn; the code keeps its logits of all tokens.

Cost. k (L - k) / 1.5 generations, each of half to all of a forward over `tokens` tokens for each child, and of two over
`final_tokens` where these are all calibration tokens, else of four. `minutes` ends the search after the generation in
which they have passed, and the record says how many there were: what was found then depends on the machine. A search
that was interrupted goes on behind the last generation.
"""

from __future__ import annotations

import random
from collections.abc import Set
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from methods.base import Count, Holds, Look, Positive, Pruner, Tokens, register
from methods.budget import parameters_of_blocks
from methods.errors import OutOfReach
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import Sublayer, remove_sublayers, sizes_of_sublayers, sublayers_of
from methods.trials.blocks import Replacements
from methods.trials.evolution import Fitness, Fits, Generations, draw_distinct, end_of_search, is_any_state

ROUNDING = 1e-9  # of the size of a block: the error of a mean of equal sizes


@register("evopress")
@dataclass(frozen=True)
class EvoPress(Pruner):
    """Drop the attentions and MLPs that an evolutionary search finds (Sieberling et al. 2025)."""

    generations: Count | None = None  # of the search; None: k (L - k) / 1.5, as in the authors' script
    offspring: Count = 32  # children in each generation
    initial: Count = 64  # random states, of which the fittest is the first parent
    population: Count = 1  # parents of a generation
    survivors: Count = 2  # children that are compared on final_tokens
    mutations: Count = 3  # swaps of a child at most
    tokens: Tokens = 512  # calibration tokens of a first comparison
    final_tokens: Tokens = 4096  # and of a second one, between the fittest children and their parent
    whole: bool = False  # whole layers go
    minutes: Positive | None = None  # after which the search ends with what it has

    cost = "k (L - k) / 1.5 times 32 over 512 tokens and 2 over 4,096, for k of L layers"
    holds = Holds(all_layers=1.5, steps=2, logits=6.5)
    only_cuts = True
    leaves = ("attentions", "mlps")
    paper_ratio = "attentions and MLPs, by their number"
    paper_reads = "131,072 tokens of FineWeb-Edu in sequences of up to 8,192 tokens"  # run_drop_search.sh
    look = Look("mixed", "D")
    tiny = "generations=3,offspring=4,initial=6,tokens=48"

    def tokens_read(self, tokens: int) -> int:
        """Return the tokens of the longest of its comparisons."""
        return min(tokens, max(self.tokens, self.final_tokens))

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return the forwards over all generations, of children on few tokens and of parents on many."""
        share_left, first, final = 1 - removed / layers, min(tokens, self.tokens), min(tokens, self.final_tokens)
        generations = self.generations or generations_of(round(removed), layers)
        children = (1 + self.offspring * share_left) * first
        parents = (1 + (self.survivors + self.population) * share_left) * final
        return ((1 + self.initial * share_left) * first + generations * (children + parents)) / tokens

    @property
    def uneven_because(self) -> str:
        """Return the reason where sublayers go alone."""
        return "" if self.whole else "it removes single attentions and MLPs"

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return how many sublayers of each kind go."""
        return {"blocks_of_each_kind": self.how_many(model, ratio)}

    def how_many(self, model: Decoder, ratio: float) -> int:
        """Return k. Raises OutOfReach where all blocks of a kind would go."""
        fewest, (size, each) = min(map(len, self.blocks(model))), self.sizes(model)
        k = round(parameters_of_blocks(model, ratio, size) / each)
        if k >= fewest:
            raise OutOfReach(
                f"ratio {ratio:g} is out of reach: with all but one of {fewest} blocks of each kind gone, "
                f"{(fewest - 1) * each / parameters(model):.3f} of the parameters are"
            )
        return k

    def sizes(self, model: Decoder) -> tuple[dict[Sublayer, int], float]:
        """Return the parameters of each block, and those of a block of mean size of each kind together."""
        kinds = self.blocks(model)
        size = sizes_of_sublayers(model, [block for blocks in kinds for block in blocks])
        return size, sum(fmean(map(size.__getitem__, blocks)) for blocks in kinds)

    def fits(self, model: Decoder, ratio: float) -> Fits:
        """Return a function that says whether a state comes as near to the budget as k blocks of mean sizes do."""
        size, each = self.sizes(model)
        to_remove, nearest = parameters_of_blocks(model, ratio, size), (0.5 + ROUNDING) * each
        return lambda state: abs(sum(count for block, count in size.items() if block in state) - to_remove) <= nearest

    def blocks(self, model: Decoder) -> list[list[Sublayer]]:
        """Return the blocks of each kind, by layer."""
        return [sublayers_of(model, part) for part in (("layer",) if self.whole else ("attention", "mlp"))]

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Search which sublayers go by mutation and selection, and remove them."""
        k, outcome = self.how_many(model, ratio), dict[str, Any]()
        removed = Replacements()
        if k:
            removed, outcome = self.search(model, calibration, k, self.fits(model, ratio))
        return (
            {"blocks_of_each_kind": k}
            | remove_sublayers(model, (block for block in removed if isinstance(block, Sublayer)))
            | outcome
        )

    def search(
        self, model: Decoder, calibration: Calibration, k: int, fits: Fits = is_any_state
    ) -> tuple[Replacements, dict[str, Any]]:
        """Return the blocks that are missed least together, and for the record the length of the search."""
        kinds, generator = self.blocks(model), random.Random(calibration.seed)
        generations = self.generations or generations_of(k, len(kinds[0]))
        if not (first := draw_states(kinds, k, self.initial, generator, fits=fits)):
            first, fits = draw_states(kinds, k, self.initial, generator), is_any_state
        log = calibration.log([], "evopress", self, [sorted(map(str, state)) for state in first])
        fitness, until = Fitness(model, calibration, generator), end_of_search(self.minutes, log.seconds)
        start = [] if log.done else [state for state, _ in fitness.fittest(first, self.population, self.tokens)]
        sizes = self.population, self.survivors, self.tokens, self.final_tokens
        how = Generations(generations, *sizes, until, log, [block for blocks in kinds for block in blocks])
        parents, best = how.evolve(
            start,
            lambda parents: draw_children(parents, kinds, self.offspring, self.mutations, generator, fits=fits),
            fitness,
        )
        outcome = {"generations": len(best), "of_generations": generations, "kl": best}
        return parents[0], outcome | {"forwards": round(fitness.forwards, 2)}


def generations_of(k: int, L: int) -> int:
    """Return the number of generations of the authors' script where k of L blocks of a kind go."""
    return max(1, int(k * (L - k) / 1.5))


def draw_states(
    kinds: list[list[Sublayer]], k: int, count: int, generator: random.Random, *, fits: Fits = is_any_state
) -> list[Replacements]:
    """Return different sets of k blocks of each kind; see `draw_distinct`."""
    return draw_distinct(
        lambda: Replacements(block for blocks in kinds for block in generator.sample(blocks, k)), count, (), fits
    )


def draw_children(
    parents: list[Replacements],
    kinds: list[list[Sublayer]],
    count: int,
    mutations: int,
    generator: random.Random,
    *,
    fits: Fits = is_any_state,
) -> list[Replacements]:
    """Return different children, none like a parent; see `draw_distinct`."""

    def child() -> Replacements:
        removed = set(generator.choice(parents))
        for _ in range(min(generator.randint(1, mutations), generator.randint(1, mutations))):
            blocks = kinds[generator.randint(0, len(kinds) - 1)]
            removed ^= {
                draw_block(blocks, removed, generator, is_removed=False),
                draw_block(blocks, removed, generator, is_removed=True),
            }
        return Replacements(removed)

    return draw_distinct(child, count, parents, fits)


def draw_block(blocks: list[Sublayer], state: Set[object], generator: random.Random, *, is_removed: bool) -> Sublayer:
    """Return a random block: one that is removed in a state, or one that is not."""
    while True:
        block = blocks[generator.randint(0, len(blocks) - 1)]
        if (block in state) == is_removed:
            return block
