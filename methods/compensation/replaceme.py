"""Fold a linear map that makes up for the removed blocks into the matrix in front of each cut: ReplaceMe.

Shopkhoev, Ali, Zhussip, Malykh, Lefkimmiatis, Komodakis, Zagoruyko 2025, "ReplaceMe: Network Simplification via Depth
Pruning and Transformer Block Linearization", NeurIPS, arXiv 2505.02819. Code: mts-ai/ReplaceMe.

At a cut the pruned model's residual is r + n, n what its last block adds; the dense model has z behind the removed
blocks. The map T is the least squares of what n ought to have been,

    T = argmin ||R + N T - Z||^2,    W <- T^T W    of the block's output matrix,

so that no parameter is added and the model remains one of its family. The block is the MLP of the last layer that is
left, or its attention where the MLP has gone. D = residual width, T (D, D), W (D, I) the output matrix, R, N, Z
(tokens, D).

Departures from the authors' code. Any method chooses the layers, and cuts may be several; each is fitted on the pruned
model with its earlier cuts repaired. T is drawn towards the identity, each channel in proportion to its energy (see
methods/least_squares.py), where the code's alpha is 0. Where the removed run ends with the last layer, the code fits
the state behind the final norm, and this the state before it. Attention sinks, whose states are of huge norm, weigh as
a population of their own (see methods/least_squares.py); `replaceme.sinks=alike` weighs all tokens alike, as the
authors do. The variant that minimises a cosine by gradient descent is not built.

Where a norm stands behind the block (as in gemma2 or olmo2), T maps what the norm is given, and is fitted together with
the norm's gains (methods/least_squares.py).

Families. Methods that remove layers, attentions or MLPs, and not for a cut before the first layer. Transformers alone
loads the result.

Cost. Two forward passes over the calibration text and two Cholesky solves of size D for each cut, one of them to judge
the fit by sequences that it has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Look, Positive, Tokens
from methods.compensation.base import (
    Boundary,
    BoundaryStates,
    Compensation,
    Pruning,
    Repair,
    register_compensation,
    repair_at_boundaries,
    require_boundaries,
)
from methods.errors import Unsupported
from methods.least_squares import Fitted, Norm, Rows, Sinks, fit, fit_normed
from methods.model.calibration import Calibration
from methods.model.layer import Layer


@register_compensation("replaceme")
@dataclass(frozen=True)
class ReplaceMe(Compensation):
    """A least-squares map folded into the output matrix in front of each cut, no parameter added (Shopkhoev 2025)."""

    ridge: Positive = 1.0  # penalty of each channel's distance from the identity, as a share of its energy
    sinks: Sinks = "apart"  # attention sinks weigh as a population of their own, or alike, as all other tokens
    tokens: Tokens | None = None  # calibration tokens that are read; None: all

    needs_one_mlp = True
    forwards = 0.99
    paper_reads = "8,000 examples of SlimOrca in sequences of up to 1,024 tokens"  # reproduce/*_lstsq.yaml
    look = Look("solid", "o", "vermillion")

    def parameters_added(self, pruning: Pruning) -> int:
        """Return 0: the map is folded in. Raises Unsupported where no layer is left in front of the first boundary."""
        if require_boundaries(pruning)[0].behind < 0:
            raise Unsupported("nothing is left in front of the first cut that could take a map; ghost serves it")
        return 0

    def repair(self, pruning: Pruning, calibration: Calibration) -> dict[str, Any]:
        """Fit a map at each boundary, fold it into the MLP in front, and return the fits."""

        def at(cut: Boundary, batches: list[BoundaryStates]) -> Repair:
            layer = pruning.pruned.layers[cut.behind]
            if layer.family.post_norms:
                with layer.visiting():
                    return self.fold_before_the_norm(layer, batches)
            fitted = self.fit(batches)
            with layer.visiting():
                for matrix in layer.writers(1 if layer.has_mlp else 0):
                    fold_map(matrix, fitted.W)
            T = fitted.W.to(batches[0].y.dtype)
            return Repair(lambda each: each.y - each.n + each.n @ T, fitted=fitted)

        return repair_at_boundaries(pruning, calibration.first(self.tokens), self.sinks, at)

    def fit(self, batches: list[BoundaryStates]) -> Fitted:
        """Return T (D, D), in float64, as the fit's W."""
        D = batches[0].y.shape[-1]
        rows = [Rows(each.n, each.wait(each.z - (each.y - each.n)), each.z, each.where, each.sink) for each in batches]
        return fit(rows, self.ridge, torch.eye(D, dtype=torch.float64, device=batches[0].y.device), self.sinks)

    def fold_before_the_norm(self, layer: Layer, batches: list[BoundaryStates]) -> Repair:
        """Fit T and the gains of the norm behind it, and put both into the layer."""
        which = 1 if layer.has_mlp else 0
        norm, D = Norm.behind(layer, which), batches[0].y.shape[-1]
        rows = [
            Rows(
                batch.wait(norm.undo(batch.n)),
                batch.wait(batch.z - (batch.y - batch.n)),
                batch.z,
                batch.where,
                batch.sink,
            )
            for batch in batches
        ]
        T = torch.eye(D, dtype=torch.float64, device=batches[0].y.device)
        fitted_map, fitted = fit_normed(rows, self.ridge, T, self.sinks, norm)
        scale = norm.g / norm.divisor  # of each channel that the matrix gives, in what T was fitted to
        fold_map(layer.down if layer.has_mlp else layer.out, scale[:, None] * fitted_map.W)
        fitted_map.norm.write_gains(layer, which)
        return Repair(lambda each: each.y - each.n + fitted_map(norm.undo(each.n)), fitted=fitted)


def fold_map(matrix: nn.Linear, T: Tensor) -> None:
    """Map the output of a matrix by T, (D, D) in float64: W <- T^T W, b <- T^T b."""
    matrix.weight = nn.Parameter((T.T @ matrix.weight.double()).to(matrix.weight.dtype), matrix.weight.requires_grad)
    if matrix.bias is not None:
        matrix.bias = nn.Parameter((T.T @ matrix.bias.double()).to(matrix.bias.dtype), matrix.bias.requires_grad)
