"""Windows of layers collapse into their first: its output matrices are refitted to do the window's work.

The layers s .. e-1 become layer s. With the dense model's states z_e behind the window, r what layer s has before its
MLP adds to it, C (tokens, I) what enters its down matrix W, and b its bias,

    W* = argmin ||r + C W^T + b - z_e||^2  +  ridge * sum over channels i of ||C_i||^2 ||W_i - W0_i||^2

window by window from the front, each fed by what the ones before have become. What can be fitted beside:

attention   the attention's output matrix too: both are fitted together, for r without the attention's share and H
            (tokens, heads) beside C; since the MLP reads what the attention adds, W* is then fitted anew
later       the down matrices of all layers behind the first window, each to the dense state behind its layer
sweeps      from the second on, every survivor but the last is fitted to the error that is left behind the next window
            (whose end is E), as if what it adds passed on through the residual alone,

                W = argmin ||y_E - C W_now^T + C W^T - z_E||^2  +  the same penalty

            and the next window's survivor anew behind it. Where that does not lower ||y_E - z_E||, it is undone.

B = sequences of a micro-batch, T = tokens, D = residual width, I = MLP width, M = fitted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from methods.least_squares import LeastSquares, relative_error
from methods.model.activations import States, Step, enter_all, fitted_tokens, step, values_of_a_step
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder, twin
from methods.model.layer import Layer
from methods.progress import over

Window = tuple[int, int]  # s, e: the layers s .. e-1 have become one


@dataclass(frozen=True)
class Fit:
    """Says what is fitted, and how; see the head of this file."""

    ridge: float = 1.0
    leave_first: bool = True
    attention: bool = False
    later: bool = False
    sweeps: int = 1


class Collapse:
    """Refits the survivors of a model's windows, in place, on the calibration tokens; other layers stay in it."""

    @torch.no_grad()
    def __init__(self, model: Decoder, windows: Sequence[Window], calibration: Calibration, fit: Fit) -> None:
        self.layers, self.windows, self.how = model.layers, windows, fit
        self.dense = twin(model)
        values = values_of_a_step(model) + 3 * model.embed.embedding_dim
        self.entries, self.masks = enter_all(model, calibration, values)
        self.where = fitted_tokens(self.masks, fit.leave_first, model.embed.weight.device)

    @torch.no_grad()
    def run(self) -> list[dict[str, Any]]:
        """Refit, and return for each window that was fitted ||y - z||^2 / ||z||^2 behind it, before and after."""
        states, x, report = States(self.dense, self.entries), self._start(), dict[Window, dict[str, Any]]()
        for s, e in over(self.windows, "refitting", "layer"):
            if e == s + 1 and not (report and self.how.later):
                x = self._through([(s, e)], x) if report else states.advance(2 * e)
                continue
            before, x = self._fit(s, x, z := states.advance(2 * e))
            report[s, e] = {"window": [s, e - 1], "error_before": before, "error_after": self._missed(x, z)}
        for _ in range(1, self.how.sweeps):
            self._sweep(report)
        return list(report.values())

    def _sweep(self, report: dict[Window, dict[str, Any]]) -> None:
        """Go once more over the windows, each refitted for the error behind the next."""
        states, x, at = States(self.dense, self.entries), self._start(), 0
        merged = [number for number, (s, e) in enumerate(self.windows) if e > s + 1]
        for here, following in pairwise(merged):
            x, at = self._through(self.windows[at:here], x), here
            near, far = self.windows[here], self.windows[following]
            z, z_E = states.advance(2 * near[1]), states.advance(2 * far[1])
            between = self.windows[here + 1 : following]
            one, other = self.layers[near[0]].down, self.layers[far[0]].down
            W, W_next = one.weight, other.weight
            y_E = self._through([near, *between, far], x)
            self._refit_for_the_next(near[0], x, y_E, z_E)
            y = self._through([near], x)
            _, new = self._fit(far[0], self._through(between, y), z_E, attention=False)
            if self._missed(new, z_E) < self._missed(y_E, z_E):
                report[near]["error_after"], report[far]["error_after"] = self._missed(y, z), self._missed(new, z_E)
            else:
                one.weight, other.weight = W, W_next

    def _refit_for_the_next(self, s: int, x: list[Tensor], y_E: list[Tensor], z_E: list[Tensor]) -> None:
        """Refit the down matrix of layer s for the error behind the window that follows."""
        W = self.layers[s].down.weight
        rows = [
            (taken.channels[w], z[w].double() - y[w] + taken.channels[w].double() @ W.double().T)
            for taken, y, z, w in zip(self._steps(s, x), y_E, z_E, self.where, strict=True)
        ]
        (fitted,) = solved(rows, [self.dense.layers[s].down.weight], self.how.ridge)
        self.layers[s].down.weight = fitted

    def _fit(
        self, s: int, x: list[Tensor], z: list[Tensor], *, attention: bool | None = None
    ) -> tuple[float, list[Tensor]]:
        """Refit layer s, fed x, to the states z. Returns the error before, and what leaves the layer from then on."""
        layer, whole, ridge = self.layers[s], self.dense.layers[s], self.how.ridge
        taken = self._steps(s, x)
        before = self._missed([one.y for one in taken], z)
        if (self.how.attention if attention is None else attention) and layer.has_attention:
            rows = [
                (
                    torch.cat([one.heads, one.channels], -1)[w],
                    b[w].double() - (one.y - one.a - one.m + biases(layer))[w],
                )
                for one, b, w in zip(taken, z, self.where, strict=True)
            ]
            layer.out.weight, _ = solved(rows, [whole.out.weight, whole.down.weight], ridge)
            taken = self._steps(s, x)
        b = 0 if layer.down.bias is None else layer.down.bias
        rests = [one.y - one.m + b for one in taken]
        rows = [
            (one.channels[w], wanted[w].double() - rest[w])
            for one, rest, wanted, w in zip(taken, rests, z, self.where, strict=True)
        ]
        (layer.down.weight,) = solved(rows, [whole.down.weight], ridge)
        return before, [rest + one.channels @ layer.down.weight.T for one, rest in zip(taken, rests, strict=True)]

    def _start(self) -> list[Tensor]:
        return [entry.x for entry in self.entries]

    def _steps(self, s: int, x: list[Tensor]) -> list[Step]:
        layer = self.layers[s]
        return [
            step(layer, one, entry.arguments[layer.kind], mask)
            for one, entry, mask in zip(x, self.entries, self.masks, strict=True)
        ]

    def _through(self, windows: Sequence[Window], x: list[Tensor]) -> list[Tensor]:
        """Return what leaves the survivors of these windows."""
        layers = [self.layers[s] for s, _ in windows]
        return [entry.run(layers, one) for entry, one in zip(self.entries, x, strict=True)]

    def _missed(self, y: list[Tensor], z: list[Tensor]) -> float:
        """Return ||y - z||^2 / ||z||^2 over the fitted tokens."""
        pairs = [(a[w].double(), b[w].double()) for a, b, w in zip(y, z, self.where, strict=True)]
        return relative_error((a - b, b) for a, b in pairs)


def biases(layer: Layer) -> Tensor | int:
    """Return what the output matrices of attention and MLP add whatever enters them."""
    found = [matrix.bias for matrix in (layer.out, layer.down) if matrix.bias is not None]
    return sum(found) if found else 0


def solved(rows: list[tuple[Tensor, Tensor]], towards: list[Tensor], ridge: float) -> list[nn.Parameter]:
    """Return the least squares of rows (M, all columns) to (M, D) as matrices (D, columns), drawn towards the given."""
    widths = [matrix.shape[1] for matrix in towards]
    sums = LeastSquares(sum(widths), len(towards[0]), towards[0].device)
    for entered, wanted in rows:
        sums.add(entered, wanted)
    W, _ = sums.solve(ridge, torch.cat(towards, 1).T)
    parts = zip(torch.split(W, widths), towards, strict=True)
    return [nn.Parameter(part.T.to(old.dtype).contiguous(), old.requires_grad) for part, old in parts]
