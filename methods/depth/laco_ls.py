"""Collapse rear layers into a prior one, which is refitted by least squares to do their work.

Of this project. The collapse into a prior layer is that of Yang, Cao, Zhao 2024 (methods/depth/laco.py), whose merge
adds differences of weights; the fold of a map into the prior layer is that of Shopkhoev et al. 2025
(methods/compensation/replaceme.py); the greedy loop is that of methods/depth/sleb.py. New are the refit of the whole
down matrix, its penalty, and how windows are found.

The layers s .. e-1 of a window become layer s, whose down matrix W is the only weight that changes. It is fitted to
z_e, the dense model's states behind the window, window by window from the front:

    W* = argmin ||r + C W^T + b - z_e||^2  +  ridge * sum over channels i of ||C_i||^2 ||W_i - W0_i||^2

r is what layer s has before its MLP adds to it, C what enters the down matrix. No parameter is added, and the ratio is
met to the layer. Attention sinks weigh as a population of their own (methods/least_squares.py).
methods/trials/collapse_fit.py has the fit and what can be fitted beside it.

Windows are found one layer at a time. A map T of the MLP's output m, fitted on dense states, predicts what the survivor
of a window would do, and

    u(s, e) = 1 - mean over tokens of cos(r + m T, z_e)

is what the fit leaves of the window's block influence. With `choose=error` it is ||r + m T - z_e||^2 / ||z_e||^2, over
attention sinks and over all other tokens (methods/least_squares.py), with `choose=cosine` the angle without a fit, T =
1. Candidates of a step are

trials     the windows of the step before, one of which takes in the layer behind it: those with the least sum of u
divisions  of all divisions of the layers into as many windows, those with the least sum of u, by dynamic programming

Each is put into the model, every window with its T, and the one with the lowest KL divergence from the dense model's
next token on `trial_tokens` tokens stays. The first alone lead from layers that are cheap one by one past windows that
are cheap as a whole, the second alone undervalue what long windows do (docs/studies/laco-ls.md). What each step finds
serves larger ratios, so a run does not search twice.

When enough layers are gone, up to `finalists` of what the last step has tried, whose KL is within `close` of the
lowest, are compared once more, on `final_tokens`. Of the best one the `exchanges` divisions that have one of its layers
back and another gone, those with the least sum of u, are candidates too, until none of them is better.

Where a norm stands behind the MLP (gemma2, olmo2), the survivor's down matrix is fitted together with the norm's
gains, and so is a candidate's T, which maps what the norm is given (methods/least_squares.py). `attention` and
`sweeps`, which take what is added for linear in the matrix, are for other families.

L = layers, D = residual width, I = MLP width, B = sequences of a micro-batch, T = tokens.

Cost. About 3 forward passes over the calibration text (2 for the fit, with `attention` 3, for each further sweep 2
more), 9 over `trial_tokens` for each layer removed and as many for each round of exchanges, one over `final_tokens` for
each finalist, a Cholesky solve of size D for each window of up to n + 1 layers, n being the layers that go, and one for
each that is tried, and two of size I for each that stays. During the search 2 L D numbers are kept for each of
`search_tokens`.

Measured. docs/studies/laco-ls.md compares it with other methods, and docs/studies/compensation.md its own settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from methods.base import Count, Holds, Look, Positive, Pruner, Share, Tokens, Whole, register
from methods.budget import whole_layers
from methods.console import show_progress
from methods.errors import Unsupported
from methods.least_squares import Sinks
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.trials.collapse_fit import Collapse, Fit
from methods.trials.windows import (
    CollapseTrial,
    DenseStates,
    Division,
    division_from_starts,
    division_into_layers,
    exchange_layers,
    find_lightest,
    join_windows,
)

Choice = Literal["fit", "error", "cosine"]
NAMED = "layers "  # begins the name of a division
FINAL = "finally "  # stands before the name of the last division


EXCHANGES = 2  # rounds of them at the end of a search
MAP = 0.33  # of a layer's forward over the search's tokens that the fit of a map costs


@register("laco-ls")
@dataclass(frozen=True)
class LaCoLS(Pruner):
    """Collapse rear layers into a prior one whose down matrix is refitted by least squares (after Yang et al. 2024)."""

    ridge: Positive = 1.0  # penalty of each channel's distance from its weights, as a share of its energy
    choose: Choice = "fit"  # candidates by the angle or the error that a fit leaves, or by the cosine before it
    trials: Count = 12  # candidates of a step in which a window takes in a layer; their fit alone rules others out
    divisions: Whole = 3  # candidates of a step that divide all layers anew; 0: none
    trial_tokens: Tokens = 512  # calibration tokens of a trial
    close: Share = 0.1  # by which the KL of a trial may be above the lowest for a candidate to be a finalist
    finalists: Count = 8  # candidates at the end that are tried once more
    final_tokens: Tokens = 4096  # calibration tokens of that trial
    exchanges: Whole = 12  # candidates at the end that have one layer of the best back and another gone; 0: none
    search_tokens: Tokens = 4096  # calibration tokens on which windows are judged by their fit
    attention: bool = False  # refit the attention's output matrix too, together with the down matrix
    later: bool = False  # refit the down matrices of all layers behind the first window too
    sweeps: Count = 1  # over the survivors; from the second on each makes up for the error behind the next window
    sinks: Sinks = "apart"  # attention sinks weigh as a population of their own, or alike, as all other tokens
    tokens: Tokens | None = None  # calibration tokens that are fitted; None: all

    cost = "15 forwards, and about 9 over 512 tokens for each layer removed"
    reuses = "removals"
    axes = ("layers", "channels")  # which a survivor takes over from its window
    takes_first = True
    needs_mlps = True
    look = Look("mixed", "D")
    tiny = "trial_tokens=48,final_tokens=96"

    @property
    def holds(self) -> Holds:
        """Return the memory of states of several layers, of the sums of a fit and of logits."""
        return Holds(all_layers=3.5, squares=6.5 if self.attention else 3, logits=6)

    def tokens_read(self, tokens: int) -> int:
        """Return the tokens of the longer of the two searches."""
        return min(tokens, max(self.search_tokens, self.final_tokens))

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return the forwards of the fits, of the trials, and of the finalists."""
        fits = 2 * self.sweeps + 1 + self.attention
        steps = max(1.0, removed)
        trials = steps * (self.trials + self.divisions + 2) / 2 + EXCHANGES * (self.exchanges / 2 + 1)
        maps = steps * (4 + layers * (self.divisions > 0)) / layers
        finals = 0.75 * (self.finalists + 1)
        of_some = trials * self.trial_tokens + MAP * maps * self.search_tokens + finals * self.final_tokens
        return fits + of_some / max(tokens, self.final_tokens)

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the layers to remove. Raises Unsupported for models whose fit is not linear."""
        model.refuse_experts()
        model.refuse_fixed()
        if model.family.post_norms and (self.attention or self.sweeps > 1):
            raise Unsupported(
                f"{model.whole_config.model_type} norms what an MLP adds to the residual, so that neither "
                "attention=yes nor sweeps have a fit that is linear"
            )
        if not all(layer.has_mlp for layer in model.layers):
            raise Unsupported("a layer has no MLP, whose down matrix would take up what its window did")
        return {"layers": whole_layers(model, ratio)}

    @torch.no_grad()
    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Search a division into windows, and fit one layer to each window; return both."""
        n = self.plan(model, ratio)["layers"]
        if not n:
            return {"removed_layers": []}
        read, layers = calibration.first(self.tokens), model.layers
        how = Fit(self.ridge, self.sinks, self.attention, self.later, self.sweeps)
        path = self.search_divisions(model, read, n)
        errors = Collapse(model, path.windows, read, how).run()
        survivors = [s for s, _ in path.windows]
        model.set_layers([layers[s] for s in survivors])
        return {
            "removed_layers": [number for number in range(len(layers)) if number not in survivors],
            "windows": [[s, e - 1] for s, e in path.windows if e > s + 1],
            "errors": errors,
            "removal_order": path.names(),
            "free_removals": n - 1,
            "losses": path.losses,
            "finalists": [
                {"layers": name_of_division(division).removeprefix(NAMED), "kl": kl}
                for division, kl in path.finals.items()
            ],
            "tokens": int(read.mask.sum()),
        }

    def search_divisions(self, model: Decoder, calibration: Calibration, n: int) -> DivisionPath:
        """Return the path of divisions with 1 to n layers less. The first ones are those of `calibration.order`."""
        L, order = len(model.layers), calibration.order
        noted = [division_of_name(name, L) for name in order[: n - 1] if name.startswith(NAMED)]
        path = DivisionPath(L, n, noted, [None] * len(noted))
        if len(order) == n == len(noted) + 1 and order[-1].startswith(FINAL):
            path.take(division_of_name(order[-1].removeprefix(FINAL), L), None)
            return path
        log = calibration.log(
            [], "laco-ls", n, [name_of_division(division) for division in noted]
        )  # of an interrupted attempt
        for entry in log.kept():
            path.recall(*entry)
            if calibration.note is not None:
                calibration.note(path.names())
        if len(path.divisions) == n:
            return path
        dense = DenseStates(model, calibration.first(self.search_tokens), self.sinks, self.ridge, self.choose)
        trial = CollapseTrial(dense, calibration.first(self.trial_tokens))
        for count in range(len(path.divisions) + 1, n + 1):
            title = f"layer {count} of {n} to remove"
            candidates = self._candidates(dense, path.windows, count, title)
            trial.fix(path.windows)
            losses = dict(zip(candidates, trial.losses(candidates, title), strict=True))
            if count == n:
                finals = self._finals(dense, trial, calibration, losses)
                path.finals = {division: kl if math.isfinite(kl) else None for division, kl in finals.items()}
                losses |= finals
                path.take(min(finals, key=finals.__getitem__), losses)
            else:
                path.take(min(losses, key=losses.__getitem__), losses)
            dense.keep_maps(window for each in candidates for window in each)
            log.add(path.last_step(), [])
            if calibration.note is not None:
                calibration.note(path.names())
        return path

    def _finals(
        self, dense: DenseStates, trial: CollapseTrial, calibration: Calibration, losses: dict[Division, float]
    ) -> dict[Division, float]:
        """Return the KL on `final_tokens` of each finalist of the last step.

        losses  KL of each candidate on `trial_tokens`. The exchanged divisions that are tried are added to it
        """
        if self.finalists == 1 and not self.exchanges:
            return dict([min(losses.items(), key=lambda item: item[1])])
        final, kl_by_division = CollapseTrial(dense, calibration.first(self.final_tokens)), dict[Division, float]()
        best: Division | None = None
        while True:
            first, *rest = sorted(losses, key=losses.__getitem__)[: self.finalists]
            near = [first, *(each for each in rest if losses[each] <= (1 + self.close) * losses[first])]
            new = [each for each in near if each not in kl_by_division]
            if new:
                kl_by_division |= zip(new, final.losses(new, "comparing finalists"), strict=True)
            before, best = best, min(kl_by_division, key=kl_by_division.__getitem__)
            if best == before or not self.exchanges:
                return kl_by_division
            sums = {each: sum(map(dense.undone_work, each)) for each in exchange_layers(best) if each not in losses}
            exchanged = sorted(sums, key=sums.__getitem__)[: self.exchanges]
            if exchanged:
                trial.fix(best)
                losses |= zip(exchanged, trial.losses(exchanged, "exchanging layers"), strict=True)

    def _candidates(self, dense: DenseStates, windows: Division, count: int, title: str) -> list[Division]:
        """Return the divisions that a step tries, none twice; `title` is the title of a progress bar."""
        L = len(dense.layers)
        if self.divisions:  # they have windows of at most count + 1 layers, whose maps are fitted first
            for s in show_progress(range(L - count), f"{title}, fitting", "window"):
                dense.undone_work((s, s + count + 1))
        joined = [join_windows(windows, i) for i in range(len(windows) - 1)]
        sums = {division: sum(map(dense.undone_work, division)) for division in joined}
        longer = sorted(sums, key=sums.__getitem__)[: self.trials]
        anew = find_lightest(L, count, self.divisions, dense.undone_work) if self.divisions else []
        return list(dict.fromkeys([*longer, *anew]))


@dataclass
class DivisionPath:
    """Holds the division of L layers after each step, and the KL of each, None where it was known before.

    finals  the finalists, each with its KL on more tokens
    """

    L: int
    n: int  # layers that go
    divisions: list[Division]
    losses: list[float | None]
    finals: dict[Division, float | None] = field(default_factory=dict)

    @property
    def windows(self) -> Division:
        """Return the last division, or that into single layers."""
        return self.divisions[-1] if self.divisions else division_into_layers(self.L)

    def take(self, division: Division, losses: dict[Division, float] | None) -> None:
        """Note the next division, and its KL where it was tried."""
        loss = math.inf if losses is None else losses[division]
        self.divisions.append(division)
        self.losses.append(loss if math.isfinite(loss) else None)

    def last_step(self) -> list[Tensor]:
        """Return the last step as tensors: the starts of its windows, its KL, and both for the finalists.

        They are (windows,), (1,), (finalists, windows) and (finalists,).
        """
        finals = torch.tensor([starts_of(division) for division in self.finals]), _of_figures(self.finals.values())
        return [torch.tensor(starts_of(self.windows)), _of_figures(self.losses[-1:]), *finals]

    def recall(self, division: Tensor, loss: Tensor, finalists: Tensor, kl: Tensor) -> None:
        """Note the next division, its KL and the finalists, as `last_step` has given them."""
        self.divisions.append(division_from_starts(division.tolist(), self.L))
        self.losses += _figures(loss)
        self.finals = dict(
            zip((division_from_starts(starts, self.L) for starts in finalists.tolist()), _figures(kl), strict=True)
        )

    def names(self) -> list[str]:
        """Return the names of the divisions after each step, and of the last one, as `Calibration.order` has them."""
        path = [name_of_division(division) for division in self.divisions]
        return [*path[: self.n - 1], *(FINAL + name for name in path[self.n - 1 :])]


def _of_figures(figures: Iterable[float | None]) -> Tensor:
    return torch.tensor([math.inf if figure is None else figure for figure in figures], dtype=torch.float64)


def _figures(kept: Tensor) -> list[float | None]:
    """Return the figures that `_of_figures` has made a tensor of, None for infinite ones."""
    return [figure if math.isfinite(figure) else None for figure in kept.tolist()]


def starts_of(division: Division) -> list[int]:
    """Return the layers at which windows begin."""
    return [s for s, _ in division]


def name_of_division(division: Division) -> str:
    """Return a division as the layers that its windows have taken in: "layers 5+13-18"."""
    runs = ((s + 1, e - 1) for s, e in division if e > s + 1)
    return NAMED + "+".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def division_of_name(name: str, L: int) -> Division:
    """Return the division of L layers that `name_of_division` gives this name."""
    taken_in = set[int]()
    for run in name.removeprefix(NAMED).split("+"):
        first, _, last = run.partition("-")
        taken_in |= set(range(int(first), int(last or first) + 1))
    return division_from_starts([s for s in range(L) if s not in taken_in], L)
