"""Put a linear map of the residual in place of the removed blocks at each cut: ghost.

Yun, Jo, Karimireddy, Lee 2026, "Ghosted Layers: Unconstrained Activation Alignment for Recovering Layer-Pruned LLMs",
arXiv 2605.15491. Code: daniel-eai/ghosted_layers_official_repository.

X is the residual that the pruned model has at a cut, Z what the dense model has behind the removed blocks. The map is
the unconstrained least squares of the gap between them,

    M = argmin ||X + X M - Z||^2,    y = x + x M

and stays in the model: D^2 parameters and one product for each cut, which no norm lets one fold into a matrix. They are
counted, and the method removes so much more. D = residual width.

Departures from the paper. The states are taken from the pruned model with its earlier cuts repaired, from front to
rear; the paper takes them from the dense one. Neighbouring blocks share one cut; the authors' code puts a map at every
removed layer. Each channel is penalised in proportion to its energy (see methods/least_squares.py) instead of by an
absolute 1e-6. Attention sinks, whose states are of huge norm, weigh as a population of their own (see
methods/least_squares.py) instead of deciding the squares; `ghost.sinks=alike` weighs all tokens alike, as the authors
do.

Families. Methods that remove layers, attentions or MLPs, in every family. The model loads with `methods.checkpoint`.

Cost. Two forward passes over the calibration text and two Cholesky solves of size D for each cut, one of them to judge
the fit by sequences that it has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from methods.base import Look, Positive, Tokens
from methods.compensation.base import BoundaryStates, ResidualMap, register_compensation
from methods.least_squares import Fitted, Rows, Sinks, fit


@register_compensation("ghost")
@dataclass(frozen=True)
class Ghost(ResidualMap):
    """A linear map of the residual at each cut, by least squares (Yun et al. 2026)."""

    ridge: Positive = 1.0  # penalty of each channel, as a share of its energy
    sinks: Sinks = "apart"  # attention sinks weigh as a population of their own, or alike, as all other tokens
    tokens: Tokens | None = None  # calibration tokens that are read; None: all

    forwards = 0.9
    paper_reads = "32 x 2,048 tokens of C4"  # scripts/run_examples.sh
    look = Look("solid", "D", "blue")

    def fit(self, batches: list[BoundaryStates]) -> Fitted:
        """Return M (D, D), in float64, as the fit's W."""
        D = batches[0].y.shape[-1]
        rows = [Rows(each.y, each.wait(each.z - each.y), each.z, each.where, each.sink) for each in batches]
        return fit(rows, self.ridge, torch.zeros(D, D, dtype=torch.float64, device=batches[0].y.device), self.sinks)
