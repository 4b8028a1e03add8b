"""Collapse rear layers into a prior one, which is refitted by least squares to do their work.

Of this project. The collapse into a prior layer is that of Yang, Cao, Zhao 2024 (methods/depth/laco.py), whose merge
adds differences of weights; the fold of a map into the prior layer is that of Shopkhoev et al. 2025
(methods/compensation/replaceme.py); the greedy loop is that of methods/depth/sleb.py. New are the refit of the whole
down matrix, its penalty, and how windows are found.

The layers s .. e-1 of a window become layer s, whose down matrix W is the only weight that changes. It is fitted to
z_e, the dense model's states behind the window, window by window from the front:

    W* = argmin ||r + C W^T + b - z_e||^2  +  ridge * sum over channels i of ||C_i||^2 ||W_i - W0_i||^2

r is what layer s has before its MLP adds to it, C what enters the down matrix. No parameter is added, and the ratio is
met to the layer. Attention sinks weigh as a population of their own (methods/model/sinks.py).
methods/depth/collapse_fit.py has the fit and what can be fitted beside it.

Windows are found one layer at a time: each step lets a window take in the layer behind it. A map T of the MLP's output
m, fitted on dense states, predicts what a candidate would do, and

    u(s, e) = 1 - mean over tokens of cos(r + m T, z_e)

is what the fit leaves of the window's block influence. With `choose=error` it is ||r + m T - z_e||^2 / ||z_e||^2, over
attention sinks and over all other tokens (methods/model/sinks.py), with `choose=cosine` the angle without a fit, T = 1.
The `trials` candidates that add least to the sum of u are put into the model, each with its T, and the one with the
lowest KL divergence from the dense model's next token on `trial_tokens` tokens stays. A smaller ratio is the beginning
of a larger one, so a run does not search twice.

Where a norm stands behind the MLP (gemma2, olmo2), the survivor's down matrix is fitted together with the norm's
gains, and so is a candidate's T, which maps what the norm is given (methods/normed_fit.py). `attention` and `sweeps`,
which take what is added for linear in the matrix, are for other families.

L = layers, D = residual width, I = MLP width, B = sequences of a micro-batch, T = tokens.

Cost. About 3 forward passes over the calibration text (2 for the fit, with `attention` 3, for each further sweep 2
more), 7 over `trial_tokens` for each layer removed, a Cholesky solve of size D for each window that is looked at and
two of size I for each that stays. During the search 2 L D numbers are kept for each of `search_tokens`.

Measured. docs/studies/laco-ls.md compares it with other methods, and docs/studies/compensation.md its own settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from methods.base import register
from methods.budget import whole_layers
from methods.depth.collapse_fit import Collapse, Fit, Window
from methods.errors import Unsupported
from methods.least_squares import Rows, fit, total_error
from methods.model.activations import Entry, beside, enter, enter_all, step
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sinks import Sinks, find_sinks, wanted_states
from methods.normed_fit import Norm, fit_normed
from methods.progress import over
from methods.ranges import Count, Positive, Tokens
from methods.search.trials import ROUNDING, TOKENS_AT_ONCE, kl, summed

Choice = Literal["fit", "error", "cosine"]
Mapped = Callable[[Tensor], Tensor]  # what an MLP adds -> what it adds once T is in it, (B, T, D) both


@register("laco-ls")
@dataclass(frozen=True)
class LaCoLS:
    """Collapse rear layers into a prior one whose down matrix is refitted by least squares (after Yang et al. 2024)."""

    ridge: Positive = 1.0  # penalty of each channel's distance from its weights, as a share of its energy
    choose: Choice = "fit"  # candidates by the angle or the error that a fit leaves, or by the cosine before it
    trials: Count = 12  # candidates of a step that are tried in the model; the others are ruled out by their fit alone
    trial_tokens: Tokens = 512  # calibration tokens of a trial
    search_tokens: Tokens = 4096  # calibration tokens on which windows are judged by their fit
    attention: bool = False  # refit the attention's output matrix too, together with the down matrix
    later: bool = False  # refit the down matrices of all layers behind the first window too
    sweeps: Count = 1  # over the survivors; from the second on each makes up for the error behind the next window
    sinks: Sinks = "apart"  # attention sinks weigh as a population of their own, or alike, as all other tokens
    tokens: Tokens | None = None  # calibration tokens that are fitted; None: all

    fixed = False
    needs = "calibration"
    cost = "3 forwards, and about 7 over 512 tokens for each layer removed"
    axes = ("layers", "channels")  # which a survivor takes over from its window

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        model.refuse_experts()
        if model.family.post_norms and (self.attention or self.sweeps > 1):
            raise Unsupported(
                f"{model.config.model_type} norms what an MLP adds to the residual, so that neither attention=yes nor "
                "sweeps have a fit that is linear"
            )
        if not all(layer.has_mlp for layer in model.layers):
            raise Unsupported("a layer has lost its MLP, whose down matrix would take up what its window did")
        return {"layers": whole_layers(model, ratio)}

    @torch.no_grad()
    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        n = self.plan(model, ratio)["layers"]
        if not n:
            return {"removed_layers": []}
        read, layers = calibration.first(self.tokens), model.layers
        found = self.found(model, read, n)
        how = Fit(self.ridge, self.sinks, self.attention, self.later, self.sweeps)
        errors = Collapse(model, found.windows, read, how).run()
        survivors = [s for s, _ in found.windows]
        model.set_layers([layers[s] for s in survivors])
        return {
            "removed_layers": [number for number in range(len(layers)) if number not in survivors],
            "windows": [[s, e - 1] for s, e in found.windows if e > s + 1],
            "errors": errors,
            "removal_order": found.names(),
            "free_removals": len(found.order),
            "losses": found.losses,
            "tokens": int(read.mask.sum()),
        }

    def found(self, model: Decoder, calibration: Calibration, n: int) -> FoundCollapse:
        """Return the windows; the states that the search needs are gone afterwards."""
        dense = DenseStates(model, calibration.first(self.search_tokens), self.sinks, self.ridge, self.choose)
        trial = CollapseTrial(dense, calibration.first(self.trial_tokens))
        return self.search(dense, trial, n, calibration)

    def search(self, dense: DenseStates, trial: CollapseTrial, n: int, calibration: Calibration) -> FoundCollapse:
        """Find n layers, one after the other; the first are those of `calibration.order`."""
        known = [int(name.split()[1]) for name in calibration.order]
        found = FoundCollapse([(s, s + 1) for s in range(len(dense.layers))])
        for count in range(n):
            windows, loss = found.windows, None
            if count < len(known):
                swallowed = known[count]
            else:
                before = [dense.left(window) if window[1] > window[0] + 1 else 0.0 for window in windows]
                pairs = [(a[0], b[1]) for a, b in pairwise(windows)]
                gain = [dense.left(pair) - before[i] - before[i + 1] for i, pair in enumerate(pairs)]
                promising = sorted(range(len(pairs)), key=lambda i: (gain[i], i))[: self.trials]
                trial.fix(windows)
                shown = f"layer {count + 1} of {n} to remove"
                losses = dict.fromkeys(promising, math.inf)
                for i in over(promising, shown, "trial"):
                    losses[i] = trial.loss(joined(windows, i), i, min(losses.values()))
                best = min(promising, key=lambda i: losses[i])
                swallowed, loss = windows[best + 1][0], losses[best]
            place = next(i for i, (s, _) in enumerate(windows) if s == swallowed)
            found.windows = joined(windows, place - 1)
            found.order.append(swallowed)
            found.losses.append(loss if loss is not None and math.isfinite(loss) else None)
            if calibration.note is not None and count >= len(known):
                calibration.note(found.names())
        return found


@dataclass
class FoundCollapse:
    """Holds the windows, the layers with which swallowed ones began, and the KL after each, None where it was known."""

    windows: list[Window]
    order: list[int] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)

    def names(self) -> list[str]:
        """Return the order as records and `Calibration.order` have it."""
        return [f"layer {number}" for number in self.order]


def joined(windows: list[Window], i: int) -> list[Window]:
    """Return the windows after number i has swallowed the next."""
    return [*windows[:i], (windows[i][0], windows[i + 1][1]), *windows[i + 2 :]]


class DenseStates:
    """Holds the dense model's states on the calibration tokens, and the maps T that are fitted on them.

    x  (B, T, D) in front of every layer and behind the last, for each micro-batch        m  what each MLP adds
    """

    def __init__(
        self, model: Decoder, calibration: Calibration, sinks: Sinks, ridge: float, choose: str = "fit"
    ) -> None:
        self.model, self.layers, self.ridge, self.choose, self.sinks = model, model.layers, ridge, choose, sinks
        values, self.wait = 2 * (len(self.layers) + 8) * model.embed.embedding_dim, calibration.wait
        self.entries, self.masks = enter_all(model, calibration, values)
        self.where = [mask.to(model.embed.weight.device) for mask in self.masks]
        self.x, self.m = [[entry.x for entry in self.entries]], list[list[Tensor]]()
        for number, layer in enumerate(over(self.layers, "reading calibration tokens", "layer")):
            model.read_ahead(number + 1)
            self.m.append([])
            self.x.append([])
            with layer.visiting():
                for x, entry, mask in zip(self.x[-2], self.entries, self.masks, strict=True):
                    taken = step(layer, x, entry.arguments[layer.kind], mask)
                    self.m[-1].append(self.wait(taken.m))
                    self.x[-1].append(self.wait(taken.y))
        self.fits: dict[Window, tuple[Mapped, float]] = {}

    def mapped(self, window: Window, m: Tensor) -> Tensor:
        """Return what the survivor of a window adds in place of m (B, T, D)."""
        return self._fit(window)[0](m)

    def left(self, window: Window) -> float:
        """Return what is left of the window's work when T has been fitted, as `choose` measures it."""
        return self._fit(window)[1]

    def _fit(self, window: Window) -> tuple[Mapped, float]:
        if window not in self.fits:
            s, e = window
            m, y = self.m[s], self.x[s + 1]
            z, where = beside(y, self.x[e], self.where)
            z = wanted_states(where, y, z, self.sinks, self.wait)
            sinks = find_sinks(where, y, z)
            rows = [Rows(a, self.wait(c - (b - a)), c, *of) for a, b, c, *of in zip(m, y, z, where, sinks, strict=True)]
            identity = torch.eye(y[0].shape[-1], dtype=torch.float64, device=y[0].device)
            mapped = self._mapped(s, rows, identity)
            found = y if self.choose == "cosine" else [self.wait(b - a + mapped(a)) for a, b in zip(m, y, strict=True)]
            if self.choose == "error":
                missed = total_error(sinks, where, z, found)
            else:
                missed = turned([(a[w], b[w]) for a, b, w in zip(found, z, where, strict=True)])
            self.fits[window] = mapped, missed
        return self.fits[window]

    def _mapped(self, s: int, rows: list[Rows], identity: Tensor) -> Mapped:
        """Return the map T of what the MLP of layer s adds, fitted to rows of it."""
        if not self.layers[s].family.post_norms:
            T = fit(rows, self.ridge, identity, self.sinks, hold_out=False).W.to(rows[0].x.dtype)
            return lambda m: m @ T
        norm = Norm.behind(self.layers[s], 1)
        given = [replace(each, x=self.wait(norm.undone(each.x))) for each in rows]
        found, _ = fit_normed(given, self.ridge, identity, self.sinks, norm, hold_out=False)
        return lambda m: found(norm.undone(m))


def turned(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Return 1 - mean over tokens of cos(y, z), for y and z (M, D) of each micro-batch."""
    left = sum(float((1 - cosine_similarity(y.float(), z.float(), dim=-1)).sum()) for y, z in pairs)
    return left / sum(len(y) for y, _ in pairs)


class CollapseTrial:
    """Runs the model on a few tokens with windows collapsed by their maps T. It changes no module."""

    def __init__(self, dense: DenseStates, calibration: Calibration) -> None:
        self.dense, self.mask, self.wait = dense, calibration.mask, calibration.wait
        self.entry: Entry = enter(dense.model, calibration.ids)
        self.wanted = calibration.mask[:, 1:].to(self.entry.x.device)
        self.states: list[Tensor] = []
        self.fix([(s, s + 1) for s in range(len(dense.layers))])

    @cached_property
    def expected(self) -> Tensor:
        """Return the dense model's log-probabilities of the next token, (tokens, V)."""
        states = self._wanted(self.entry.run(self.dense.layers, self.entry.x))
        return torch.cat([logits.float().log_softmax(-1) for logits in self._logits(states)])

    @torch.no_grad()
    def fix(self, windows: list[Window]) -> None:
        """Keep the states in front of each window for the trials that follow."""
        self.states = [self.entry.x]
        for window in windows:
            self.states.append(self.wait(self._run(window, self.states[-1])))

    @torch.no_grad()
    def loss(self, windows: list[Window], i: int, limit: float = math.inf) -> float:
        """Return KL per token, or anything above `limit` where it is sure to be. One that is no number never wins.

        Before number i nothing has changed since `fix`.
        """
        x = self.states[i]
        for window in windows[i:]:
            x = self._run(window, x)
        states, total = self._wanted(x), 0.0
        for logits, p in zip(self._logits(states), torch.split(self.expected, TOKENS_AT_ONCE), strict=True):
            total += float(summed(kl, logits, p, logits))
            if total > (1 + ROUNDING) * limit * len(states):
                break
        return math.inf if math.isnan(total) else total / len(states)

    def _run(self, window: Window, x: Tensor) -> Tensor:
        s, e = window
        layer = self.dense.layers[s]
        arguments = self.entry.arguments[layer.kind]
        if e == s + 1:
            return layer(x, arguments)
        taken = step(layer, x, arguments, self.mask)
        return taken.y - taken.m + self.dense.mapped(window, taken.m)

    def _wanted(self, x: Tensor) -> Tensor:
        """Return the states of the tokens that have a successor, (tokens, D)."""
        return x[:, :-1][self.wanted.to(x.device)]

    def _logits(self, states: Tensor) -> Iterator[Tensor]:
        """Yield the logits of a few tokens at a time, (M, V), of states (tokens, D)."""
        for few in torch.split(states, TOKENS_AT_ONCE):
            yield self.dense.model.logits(few)
