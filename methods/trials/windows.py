"""Chooses windows of layers to collapse: by the error of a linear map for each, and by trials of whole divisions.

A map T of the MLP's output m, fitted on dense states, predicts the output of a window's survivor. The part of the
window's work that it leaves undone, u(s, e), does not depend on other windows. So dynamic programming gives the
divisions of all layers into windows with the least sum of u. A trial measures the loss of a division: a few tokens run
through the model, each window collapsed by its T.

B = sequences of a micro-batch, T = tokens, D = residual width, V = vocabulary.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from methods.console import show_progress
from methods.least_squares import Norm, Rows, Sinks, find_sinks, fit, fit_normed, states_to_fit, total_error_of_fit
from methods.model.activations import Entry, enter, enter_all, move_beside, run_any_step, run_step
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.trials.blocks import TOKENS_AT_ONCE, kl, sum_loss
from methods.trials.collapse_fit import Window

Division = tuple[Window, ...]  # all layers, in windows
Mapped = Callable[[Tensor], Tensor]  # addition of an MLP -> its addition with T in it, (B, T, D) both


def division_into_layers(L: int) -> Division:
    """Return the division of L layers in which each is a window of its own."""
    return tuple((s, s + 1) for s in range(L))


def division_from_starts(starts: Sequence[int], L: int) -> Division:
    """Return the division of L layers whose windows begin at the layers `starts`. The first of them is 0."""
    return tuple(zip(starts, [*starts[1:], L], strict=True))


def exchange_layers(division: Division) -> list[Division]:
    """Return the divisions in which one layer begins a window that did not before, and another one no longer does.

    The first layer always begins a window.
    """
    L = division[-1][1]
    starts = {s for s, _ in division}
    divisions = []
    for new in sorted(set(range(L)) - starts):
        for old in sorted(starts - {0}):
            divisions.append(division_from_starts(sorted({*starts, new} - {old}), L))
    return divisions


def join_windows(division: Division, i: int) -> Division:
    """Return a division after its window number i has taken in the next."""
    return (*division[:i], (division[i][0], division[i + 1][1]), *division[i + 2 :])


def find_lightest(L: int, n: int, count: int, weight: Callable[[Window], float]) -> list[Division]:
    """Return the `count` divisions of L layers into L - n windows whose sum of weights is least, the lightest first.

    This is dynamic programming over the end of the last window: the windows before it in one of the lightest divisions
    are themselves one of the lightest. Of equal divisions the one whose windows end earlier is first.
    """
    best: dict[tuple[int, int], list[tuple[float, Division]]] = {(0, 0): [(0.0, ())]}
    for e in range(1, L + 1):
        for m in range(min(n, e - 1) + 1):  # layers that go of the first e
            longer = []
            for s in range(e - 1 - m, e):
                for before, division in best.get((s, m - (e - s - 1)), ()):
                    longer.append((before + weight((s, e)), (*division, (s, e))))
            best[e, m] = heapq.nsmallest(count, longer)
    return [division for _, division in best[L, n]]


class DenseStates:
    """Holds the dense model's states on the calibration tokens, and the maps T that are fitted on them.

    x  (B, T, D) in front of every layer and behind the last, for each micro-batch
    m  (B, T, D) addition of each MLP, for each micro-batch
    """

    def __init__(
        self, model: Decoder, calibration: Calibration, sinks: Sinks, ridge: float, choose: str = "fit"
    ) -> None:
        self.model, self.layers, self.ridge, self.choose, self.sinks = model, model.layers, ridge, choose, sinks
        values, self.wait = 2 * (len(self.layers) + 8) * model.embed.embedding_dim, calibration.wait
        self.entries, self.masks = enter_all(model, calibration, values)
        self.where = [mask.to(model.embed.weight.device) for mask in self.masks]
        self.x, self.m = [[entry.x for entry in self.entries]], list[list[Tensor]]()
        for number, layer in enumerate(show_progress(self.layers, "reading calibration tokens", "layer")):
            model.read_ahead(number + 1)
            self.m.append([])
            self.x.append([])
            with layer.visiting():
                for x, entry, mask in zip(self.x[-2], self.entries, self.masks, strict=True):
                    step = run_step(layer, x, entry.arguments[layer.kind], mask)
                    self.m[-1].append(self.wait(step.m))
                    self.x[-1].append(self.wait(step.y))
        self._undone_work: dict[Window, float] = {window: 0.0 for window in division_into_layers(len(self.layers))}
        self._maps: dict[Window, Mapped] = {}

    def map_addition(self, window: Window, m: Tensor) -> Tensor:
        """Return the addition of the survivor of a window in place of m (B, T, D)."""
        if window not in self._maps:
            self._fit(window)
        return self._maps[window](m)

    def undone_work(self, window: Window) -> float:
        """Return u of a window, the part of its work that T leaves undone, as `choose` measures it; 0 for one layer."""
        if window not in self._undone_work:
            self._fit(window)
            del self._maps[window]  # few are tried, and the maps of all would take more memory than all else
        return self._undone_work[window]

    def keep_maps(self, windows: Iterable[Window]) -> None:
        """Keep the maps of these windows alone. Maps of other windows are fitted anew where they are used again."""
        kept = set(windows)
        self._maps = {window: mapped for window, mapped in self._maps.items() if window in kept}

    def _fit(self, window: Window) -> None:
        s, e = window
        m, y = self.m[s], self.x[s + 1]
        z, where = move_beside(y, self.x[e], self.where)
        z = states_to_fit(where, y, z, self.sinks, self.wait)
        sinks = find_sinks(where, y, z)
        rows = [Rows(a, self.wait(c - (b - a)), c, *of) for a, b, c, *of in zip(m, y, z, where, sinks, strict=True)]
        identity = torch.eye(y[0].shape[-1], dtype=torch.float64, device=y[0].device)
        mapped = self._maps[window] = self._mapped(s, rows, identity)
        if window in self._undone_work:
            return
        outputs = y if self.choose == "cosine" else [self.wait(b - a + mapped(a)) for a, b in zip(m, y, strict=True)]
        if self.choose == "error":
            self._undone_work[window] = total_error_of_fit(sinks, where, z, outputs)
        else:
            self._undone_work[window] = cosine_distance_of(
                [(a[w], b[w]) for a, b, w in zip(outputs, z, where, strict=True)]
            )

    def _mapped(self, s: int, rows: list[Rows], identity: Tensor) -> Mapped:
        """Return the map T of the addition of the MLP of layer s, fitted to the rows."""
        if not self.layers[s].family.post_norms:
            T = fit(rows, self.ridge, identity, self.sinks, hold_out=False).W.to(rows[0].x.dtype)
            return lambda m: m @ T
        norm = Norm.behind(self.layers[s], 1)
        given = [replace(each, x=self.wait(norm.undo(each.x))) for each in rows]
        fitted_map, _ = fit_normed(given, self.ridge, identity, self.sinks, norm, hold_out=False)
        return lambda m: fitted_map(norm.undo(m))


def cosine_distance_of(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Return 1 - mean over tokens of cos(y, z), for y and z (M, D) of each micro-batch."""
    total = sum(float((1 - cosine_similarity(y.float(), z.float(), dim=-1)).sum()) for y, z in pairs)
    return total / sum(len(y) for y, _ in pairs)


class CollapseTrial:
    """Runs the model on a few tokens with windows collapsed by their maps T. It changes no module."""

    @torch.no_grad()
    def __init__(self, dense: DenseStates, calibration: Calibration) -> None:
        self.dense, self.mask, self.wait = dense, calibration.mask, calibration.wait
        self.entry: Entry = enter(dense.model, calibration.ids)
        self.has_successor = calibration.mask[:, 1:].to(self.entry.x.device)
        self.expected = self._states_with_successor(self.entry.run(dense.layers, self.entry.x))
        self.fixed: Division = ()
        self.states = [self.entry.x]

    @torch.no_grad()
    def fix(self, division: Division) -> None:
        """Keep the states in front of each window of a division, for divisions that begin with the same windows."""
        self.fixed, self.states = division, [self.entry.x]
        for window in division:
            self.states.append(self.wait(self._run(window, self.states[-1])))

    @torch.no_grad()
    def losses(self, divisions: Sequence[Division], title: str) -> list[float]:
        """Return the KL from the dense model per token of each division, infinite where it is no number.

        `title` is the title of the progress bar.
        """
        ends = [self.wait(self._end(division)) for division in show_progress(divisions, title, "trial")]
        totals, tokens = [0.0] * len(ends), len(self.expected)
        for piece in show_progress(torch.split(torch.arange(tokens), TOKENS_AT_ONCE), f"{title}, comparing", "piece"):
            p = self.dense.model.logits(self.expected[piece]).float().log_softmax(-1)
            for number, end in enumerate(ends):
                logits = self.dense.model.logits(end[piece].to(p.device))
                totals[number] += float(sum_loss(kl, logits, p, logits))
        return [math.inf if math.isnan(total) else total / tokens for total in totals]

    def _end(self, division: Division) -> Tensor:
        """Return the states behind the last window of the tokens that have a successor, (tokens, D)."""
        differ = (i for i, (window, fixed) in enumerate(zip(division, self.fixed, strict=False)) if window != fixed)
        first = next(differ, min(len(division), len(self.fixed)))
        x = self.states[first]
        for window in division[first:]:
            x = self._run(window, x)
        return self._states_with_successor(x)

    def _run(self, window: Window, x: Tensor) -> Tensor:
        s, e = window
        layer = self.dense.layers[s]
        arguments = self.entry.arguments[layer.kind]
        if e == s + 1:
            return layer(x, arguments)
        step = run_any_step(layer, x, arguments, self.mask)
        return step.y - step.m + self.dense.map_addition(window, step.m)

    def _states_with_successor(self, x: Tensor) -> Tensor:
        """Return the states of the tokens that have a successor, (tokens, D)."""
        return x[:, :-1][self.has_successor.to(x.device)]
