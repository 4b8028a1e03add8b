"""Searches by evolution for the replacements that a model misses least: the fittest children are the next parents.

A state is a set of replacements (methods/trials/blocks.py). Its fitness is

    KL(p || q)    the mean over tokens of the dense model's distribution of the next token, p, to the pruned one's, q

on a few sequences that are drawn anew for every comparison, so that no state fits some of them only. The children of a
generation are compared on a few tokens, the fittest of these and the parents on more.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import torch
from torch import Tensor

from methods.console import make_bar
from methods.model.calibration import Calibration, SweepLog
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.structures import Narrowed, Sublayer
from methods.trials.blocks import Replacements, Trial

Narrow = Callable[[Layer, Collection[Narrowed]], Layer]
Fits = Callable[[Replacements], bool]  # whether a state is one to compare
TRIES = 100  # draws at most for each state that is wanted


class Fitness:
    """Compares states by KL(p || q) on sequences that are drawn anew each time.

    Where all calibration tokens are compared, the dense model's outputs are kept for the next time. So are the losses
    of the fittest states, since the next comparison has these states too.

    narrow    as `Trial` takes it
    forwards  number of forwards over all calibration tokens so far
    """

    def __init__(
        self, model: Decoder, calibration: Calibration, generator: random.Random, narrow: Narrow | None = None
    ) -> None:
        self.model, self.calibration, self.generator, self.narrow = model, calibration, generator, narrow
        self.forwards = 0.0
        self.whole: Trial | None = None  # on all calibration tokens
        self.losses_on_all = dict[Replacements, float]()  # on all calibration tokens

    def fittest(self, states: list[Replacements], survivors: int, tokens: int) -> list[tuple[Replacements, float]]:
        """Return the fittest states on `tokens` tokens, each with its loss, the lowest first."""
        every = int(self.calibration.mask.sum())
        loss_by_state = self.losses_on_all if tokens >= every else {}
        new = [state for state in states if state not in loss_by_state]
        trial = self._trial(tokens)
        beside = [loss_by_state[state] for state in states if state in loss_by_state]
        losses = loss_by_state | dict(zip(new, trial.losses(new, lowest=survivors, beside=beside), strict=True))
        self.forwards += min(tokens / every, 1) * trial.runs / len(trial.layers)
        trial.runs = 0.0  # they are counted
        fittest = sorted(((state, losses[state]) for state in states), key=lambda item: item[1])[:survivors]
        if tokens >= every:
            self.losses_on_all = dict(fittest)
        return fittest

    def to_tensors(self) -> list[Tensor]:
        """Return all that the next comparison depends on: the generator's state, and forwards so far."""
        _, state, _ = self.generator.getstate()
        return [torch.tensor(state), torch.tensor(self.forwards, dtype=torch.float64)]

    def go_on(self, state: Tensor, forwards: Tensor, losses: dict[Replacements, float]) -> None:
        """Go on from the tensors of another Fitness, with the losses `losses` of states on all tokens."""
        if losses:
            self._trial(int(self.calibration.mask.sum())).runs = 0.0  # they are counted
        version, _, gauss = self.generator.getstate()
        self.generator.setstate((version, tuple(state.tolist()), gauss))
        self.forwards, self.losses_on_all = forwards.item(), losses

    def _trial(self, tokens: int) -> Trial:
        """Return a trial on `tokens` tokens that are drawn, or the one on all. Both draw as many random numbers."""
        drawn = draw_sequences(self.calibration, tokens, self.generator)
        if tokens < self.calibration.mask.sum():
            return Trial(self.model, drawn, "kl", narrow=self.narrow)
        if self.whole is None:
            self.whole = Trial(self.model, self.calibration, "kl", narrow=self.narrow)
        return self.whole


@dataclass(frozen=True)
class Generations:
    """Says how long a search goes on, and how many states and tokens it compares.

    count         generations at most
    population    parents of a generation
    survivors     children that are compared on `final_tokens`, with the parents
    tokens        on which all children are compared
    until         when the search ends with what it has, in seconds of time.monotonic
    log           keeps each generation, so that an interrupted search goes on behind it; None: nothing is kept
    blocks        all blocks that states may have, where there is a log
    """

    count: int
    population: int
    survivors: int
    tokens: int
    final_tokens: int
    until: float = math.inf
    log: SweepLog | None = None
    blocks: Sequence[Sublayer | Narrowed] = ()

    def evolve(
        self,
        parents: list[Replacements],
        children: Callable[[list[Replacements]], list[Replacements]],
        fitness: Fitness,
    ) -> tuple[list[Replacements], list[float | None]]:
        """Return the last parents, the fittest first, and the lowest loss of each generation."""
        best = list[float | None]()
        if self.log and self.log.done:
            parents, best = self._kept(self.log, fitness)
        with make_bar(self.count, "searching", "generation", len(best)) as bar:
            while len(best) < self.count and time.monotonic() <= self.until:
                promising = [state for state, _ in fitness.fittest(children(parents), self.survivors, self.tokens)]
                fittest = fitness.fittest(
                    list(dict.fromkeys([*promising, *parents])), self.population, self.final_tokens
                )
                parents = [state for state, _ in fittest]
                best.append(fittest[0][1] if math.isfinite(fittest[0][1]) else None)
                if self.log:
                    self.log.add([*fitness.to_tensors(), *self._to_tensors(parents, [loss for _, loss in fittest])], [])
                bar.update()
            bar.total = len(best)
        return parents, best

    def _to_tensors(self, parents: list[Replacements], losses: list[float]) -> list[Tensor]:
        """Return which blocks each parent has, (parents, blocks), and the losses, (parents,)."""
        masks = []
        for parent in parents:
            masks.append([block in parent for block in self.blocks])
        return [torch.tensor(masks), torch.tensor(losses, dtype=torch.float64)]

    def _kept(self, log: SweepLog, fitness: Fitness) -> tuple[list[Replacements], list[float | None]]:
        """Return the parents of the last generation in a log, and the lowest loss of each generation."""
        every = list(log.kept())
        state, forwards, masks, losses = every[-1]
        parents = [Replacements(compress(self.blocks, row)) for row in masks]
        of_all = self.final_tokens >= fitness.calibration.mask.sum()
        fitness.go_on(state, forwards, dict(zip(parents, losses.tolist(), strict=True)) if of_all else {})
        fittest = [float(entry[-1][0]) for entry in every]
        return parents, [loss if math.isfinite(loss) else None for loss in fittest]


def end_of_search(minutes: float | None, seconds_spent: float = 0.0) -> float:
    """Return when a search ends, in seconds of time.monotonic; `taken` seconds of its minutes are over."""
    return math.inf if minutes is None else time.monotonic() + 60 * minutes - seconds_spent


def draw_sequences(calibration: Calibration, tokens: int, generator: random.Random) -> Calibration:
    """Return random sequences with `tokens` real tokens together, the last one cut, or all where there are fewer."""
    lengths = calibration.mask.sum(1).tolist()
    missing, rows = min(tokens, sum(lengths)), list[int]()
    mask = torch.zeros_like(calibration.mask)
    while missing:
        row = generator.randint(0, len(lengths) - 1)
        if row not in rows:
            rows.append(row)
            mask[row, : min(missing, lengths[row])] = True
            missing -= min(missing, lengths[row])
    width = int(mask.sum(1).max())
    return replace(calibration, ids=calibration.ids[rows, :width], mask=mask[rows, :width])


def is_any_state(state: Replacements) -> bool:
    """Say whether a state fits: every state does."""
    return True


def draw_distinct(
    draw_one: Callable[[], Replacements], count: int, excluded: Collection[Replacements] = (), fits: Fits = is_any_state
) -> list[Replacements]:
    """Return `count` different states that fit and are not known, or as many as TRIES draws for each give."""
    drawn = dict[Replacements, None]()
    for _ in range(TRIES * count):
        if len(drawn) == count:
            break
        state = draw_one()
        if state not in excluded and fits(state):
            drawn[state] = None
    return list(drawn)
