"""Rescale each channel of the residual at each cut, by least squares: first-compensation.

AUTHORS YEAR, "TITLE", VENUE, arXiv NUMBER. Code: OWNER/REPOSITORY.

Y is the residual that the pruned model has at a cut, and Z what the dense model has behind the removed blocks. Each
channel k has the factor that brings it nearest,

    c_k = sum over tokens of Y_k Z_k / sum over tokens of Y_k^2,    y = x diag(c)

The map stays in the model, D^2 parameters for each cut, which are counted. D = residual width, k = a channel.

Departures from the authors' code. SAY WHAT IS COMPUTED OTHERWISE, AND WHY.

Families. Methods that remove layers, attentions or MLPs, in every family.

Cost. Two forward passes over the calibration tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Tokens
from methods.compensation.base import BoundaryStates, ResidualMap, register_compensation
from methods.least_squares import Fitted, Sinks


@register_compensation("first-compensation")
@dataclass(frozen=True)
class FirstCompensation(ResidualMap):
    """A factor for each channel of the residual at each cut (AUTHORS YEAR)."""

    sinks: Sinks = "apart"  # attention sinks are left out of the sums, or alike, as all other tokens in them
    tokens: Tokens | None = None  # calibration tokens that are read; None: all

    forwards = 0.9

    def fit(self, batches: list[BoundaryStates]) -> Fitted:
        """Return M (D, D) of y = x + x M, in float64."""
        products = torch.stack([sum_products(each.y, each.z, each.measured(self.sinks)) for each in batches]).sum(0)
        squares = torch.stack([sum_products(each.y, each.y, each.measured(self.sinks)) for each in batches]).sum(0)
        c = products / squares.clamp_min(torch.finfo(torch.float64).tiny)
        return Fitted(torch.diag(c - 1), None)


def sum_products(first: Tensor, second: Tensor, where: Tensor) -> Tensor:
    """Return the sum over the tokens of `where` (B, T) of the products of each channel, (B, T, D) twice -> (D,)."""
    return (first[where].double() * second[where].double()).sum(0)
