"""Collapses windows of layers into their first layers, whose output matrices are refitted to do the window's work.

The layers s .. e-1 become layer s. With the dense model's states z_e behind the window, r the residual of layer s in
front of its MLP's addition, C (tokens, I) the input of its down matrix W, and b its bias,

    W* = argmin ||r + C W^T + b - z_e||^2  +  ridge * sum over channels i of ||C_i||^2 ||W_i - W0_i||^2

window by window from the front, each fed by the windows before it as they have been refitted. Further fits:

attention   the attention's output matrix too: both are fitted together, for r without the attention's share and H
            (tokens, heads) beside C; since the MLP reads what the attention adds, W* is then fitted anew
later       the down matrices of all layers behind the first window, each to the dense state behind its layer
sweeps      from the second on, every survivor but the last is fitted to the error that is left behind the next window
            (whose end is E), as if what it adds passed on through the residual alone,

                W = argmin ||y_E - C W_now^T + C W^T - z_E||^2  +  the same penalty

            and the next window's survivor anew behind it. Where that does not lower ||y_E - z_E||, it is undone.

Where a family multiplies the addition of a block by a number c (granite), c (C W^T + b) stands for C W^T + b.

Attention sinks weigh as a population of their own (methods/least_squares.py). Where a norm stands behind the MLP, its
gains are fitted together with W (methods/least_squares.py).

B = sequences of a micro-batch, T = tokens, D = residual width, I = MLP width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from methods.console import show_progress
from methods.least_squares import (
    Fitted,
    Norm,
    Rows,
    Sinks,
    errors_of_fit,
    find_sinks,
    fit,
    fit_normed,
    states_to_fit,
    total_error_of_fit,
)
from methods.model.activations import States, Step, enter_all, move_beside, run_step, values_of_a_step
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder, make_twin
from methods.model.layer import Layer
from methods.model.precision import widen

Window = tuple[int, int]  # s, e: the layers s .. e-1 have become one


@dataclass(frozen=True)
class Fit:
    """Says which matrices are fitted, and how; see the head of this file."""

    ridge: float = 1.0
    sinks: Sinks = "apart"
    attention: bool = False
    later: bool = False
    sweeps: int = 1


class Collapse:
    """Refits the survivors of a model's windows, in place, on the calibration tokens. All layers stay in the model."""

    @torch.no_grad()
    def __init__(self, model: Decoder, windows: Sequence[Window], calibration: Calibration, how: Fit) -> None:
        self.layers, self.windows, self.how, self.wait = model.layers, windows, how, calibration.wait
        self.dense = make_twin(model)
        values = values_of_a_step(model) + 3 * model.embed.embedding_dim
        self.entries, self.masks = enter_all(model, calibration, values)
        self.where = [mask.to(model.embed.weight.device) for mask in self.masks]

    @torch.no_grad()
    def run(self) -> list[dict[str, Any]]:
        """Refit, and return for each fitted window the errors behind it (methods/least_squares.py)."""
        states = States(self.dense, self.entries, self.wait)
        x, report = self._start(), dict[Window, dict[str, Any]]()
        for s, e in show_progress(self.windows, "refitting", "layer"):
            if e == s + 1 and not (report and self.how.later):
                x = self._through([(s, e)], x) if report else states.advance(2 * e)
                continue
            missed, x = self._fit(s, x, states.advance(2 * e))
            report[s, e] = {"window": [s, e - 1]} | missed
        for _ in range(1, self.how.sweeps):
            self._sweep(report)
        return list(report.values())

    def _sweep(self, report: dict[Window, dict[str, Any]]) -> None:
        """Go once more over the windows, each refitted for the error behind the next."""
        states, x, at = States(self.dense, self.entries, self.wait), self._start(), 0
        merged = [number for number, (s, e) in enumerate(self.windows) if e > s + 1]
        for current, following in pairwise(merged):
            x, at = self._through(self.windows[at:current], x), current
            near, far = self.windows[current], self.windows[following]
            z, z_E = states.advance(2 * near[1]), states.advance(2 * far[1])
            between = self.windows[current + 1 : following]
            down, next_down = self.layers[near[0]].down, self.layers[far[0]].down
            W, W_next = down.weight, next_down.weight
            y_E = self._through([near, *between, far], x)
            self._refit_for_the_next(near[0], x, y_E, z_E)
            y = self._through([near], x)
            missed, new = self._fit(far[0], self._through(between, y), z_E, attention=False)
            if self._missed(new, z_E) < self._missed(y_E, z_E):
                z, where = move_beside(y, z, self.where)
                z = states_to_fit(where, y, z, self.how.sinks, self.wait)
                _set_after(report[near], errors_of_fit(find_sinks(where, y, z), where, z, y, y))
                _set_after(report[far], missed)
            else:
                down.weight, next_down.weight = W, W_next

    def _refit_for_the_next(self, s: int, x: list[Tensor], y_E: list[Tensor], z_E: list[Tensor]) -> None:
        """Refit the down matrix of layer s for the error behind the window that follows."""
        with self.layers[s].visiting(), self.dense.layers[s].visiting():
            W, steps, c = self.layers[s].down.weight, self._steps(s, x), self.layers[s].factor(1)
            y_E, z_E, where = move_beside([step.y for step in steps], y_E, z_E, self.where)
            z_E = states_to_fit(where, y_E, z_E, self.how.sinks, self.wait)

            def missed(step: Step, y: Tensor, z: Tensor) -> Tensor:
                return self.wait((z.double() - y).div_(c) + widen(step.channels) @ widen(W).T)

            sinks, rows = find_sinks(where, y_E, z_E), []
            for step, y, z, *of in zip(steps, y_E, z_E, where, sinks, strict=True):
                rows.append(Rows(step.channels, missed(step, y, z), z, *of))
            (self.layers[s].down.weight,), _ = self._solve(rows, [self.dense.layers[s].down.weight], hold_out=False)
        self.layers[s].settle()

    def _fit(
        self, s: int, x: list[Tensor], z: list[Tensor], *, attention: bool | None = None
    ) -> tuple[dict[str, Any], list[Tensor]]:
        """Refit layer s, fed x, to the states z, and return the errors and the layer's outputs."""
        with self.layers[s].visiting(), self.dense.layers[s].visiting():
            return self._fit_layer(s, x, z, attention)

    def _fit_layer(
        self, s: int, x: list[Tensor], z: list[Tensor], attention: bool | None
    ) -> tuple[dict[str, Any], list[Tensor]]:
        layer, whole = self.layers[s], self.dense.layers[s]
        steps = self._steps(s, x)
        before = [step.y for step in steps]
        z, where = move_beside(before, z, self.where)
        z = states_to_fit(where, before, z, self.how.sinks, self.wait)
        sinks = find_sinks(where, before, z)
        given, c = list(zip(z, where, sinks, strict=True)), layer.factor(1)
        if (self.how.attention if attention is None else attention) and layer.has_attention:
            rows = []
            for step, (target, *of) in zip(steps, given, strict=True):
                of_out = layer.factor(0) / c  # times what the attention's matrix gives
                heads = step.heads if of_out == 1 else of_out * step.heads
                entered = self.wait(torch.cat([heads, step.channels], -1))
                a = step.a if layer.mixer_beside is None else layer.scale(0, layer.out(step.heads))
                rest = step.y - a - step.m + c * biases_of(layer, of_out)
                rows.append(Rows(entered, self.wait((target.double() - rest).div_(c)), target, *of))
            (layer.out.weight, _), _ = self._solve(rows, [whole.out.weight, whole.down.weight], hold_out=False)
            steps = self._steps(s, x)
        if layer.family.post_norms:
            return self._fit_normed(layer, whole, steps, given)
        b = 0 if layer.down.bias is None else c * layer.down.bias
        rests, channels = [self.wait(step.y - step.m + b) for step in steps], [step.channels for step in steps]
        del steps  # all else that the steps hold
        rows = [
            Rows(entered, self.wait((target.double() - rest).div_(c)), target, *of)
            for entered, rest, (target, *of) in zip(channels, rests, given, strict=True)
        ]
        (layer.down.weight,), fitted = self._solve(rows, [whole.down.weight])
        layer.settle()
        after = [self.wait(rest + c * (x @ layer.down.weight.T)) for x, rest in zip(channels, rests, strict=True)]
        return errors_of_fit(sinks, where, z, before, after, fitted=fitted), after

    def _fit_normed(
        self, layer: Layer, whole: Layer, steps: list[Step], given: list[tuple[Tensor, Tensor, Tensor]]
    ) -> tuple[dict[str, Any], list[Tensor]]:
        """Refit the down matrix and the gains of the norm behind it; arguments and result as in `_fit`."""
        before, rests = [step.y for step in steps], [self.wait(step.y - step.m) for step in steps]
        rows = [
            Rows(step.channels, self.wait(target.double() - rest), target, *of)
            for step, rest, (target, *of) in zip(steps, rests, given, strict=True)
        ]
        old, norm = whole.down.weight, Norm.behind(whole, 1)
        fitted_map, fitted = fit_normed(rows, self.how.ridge, old.T, self.how.sinks, norm)
        layer.down.weight = nn.Parameter(fitted_map.W.T.to(old.dtype).contiguous(), old.requires_grad)
        fitted_map.norm.write_gains(layer, 1)
        layer.settle()
        added = (layer.post_norm(1)(layer.down(step.channels)) for step in steps)
        after = [self.wait(rest + addition) for addition, rest in zip(added, rests, strict=True)]
        z, where, sinks = map(list, zip(*given, strict=True))
        return errors_of_fit(sinks, where, z, before, after, fitted=fitted), after

    def _solve(
        self, rows: list[Rows], towards: list[Tensor], *, hold_out: bool = True
    ) -> tuple[list[nn.Parameter], Fitted]:
        """Return matrices (D, columns) that together fit the rows, drawn towards the given ones, and the fit."""
        fitted = fit(rows, self.how.ridge, torch.cat(towards, 1).T, self.how.sinks, hold_out=hold_out)
        parts = zip(torch.split(fitted.W, [matrix.shape[1] for matrix in towards]), towards, strict=True)
        return [nn.Parameter(part.T.to(old.dtype).contiguous(), old.requires_grad) for part, old in parts], fitted

    def _start(self) -> list[Tensor]:
        return [entry.x for entry in self.entries]

    def _steps(self, s: int, x: list[Tensor]) -> list[Step]:
        layer = self.layers[s]
        return [
            run_step(layer, state, entry.arguments[layer.kind], mask).waiting(self.wait)
            for state, entry, mask in zip(x, self.entries, self.masks, strict=True)
        ]

    def _through(self, windows: Sequence[Window], x: list[Tensor]) -> list[Tensor]:
        """Return the states behind the survivors of these windows."""
        layers = [self.layers[s] for s, _ in windows]
        return [self.wait(entry.run(layers, state)) for entry, state in zip(self.entries, x, strict=True)]

    def _missed(self, y: list[Tensor], z: list[Tensor]) -> float:
        z, where = move_beside(y, z, self.where)
        z = states_to_fit(where, y, z, self.how.sinks, self.wait)
        return total_error_of_fit(find_sinks(where, y, z), where, z, y)


def _set_after(report: dict[str, Any], missed: dict[str, Any]) -> None:
    """Replace the errors in a window's report by those after a later fit, with those on held-out sequences, if any."""
    of_sinks = [(report["sinks"], missed["sinks"])] if "sinks" in report and "sinks" in missed else []
    for earlier, latest in [(report, missed), *of_sinks]:
        earlier.pop("error_held_out", None)
        earlier |= {name: latest[name] for name in ("error_after", "error_held_out") if name in latest}


def biases_of(layer: Layer, of_out: float) -> Tensor | int:
    """Return `of_out` times the bias of the attention's output matrix and that of the MLP's; 0 where there are none."""
    biases = [c * matrix.bias for c, matrix in ((of_out, layer.out), (1, layer.down)) if matrix.bias is not None]
    return sum(biases) if biases else 0
