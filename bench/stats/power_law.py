"""Fits a power law to a learning curve, and says after how many tokens it reaches a level.

excess(t) = scale t^slope is a line in logarithms, log e = a + b log t, by least squares. The tokens at a level follow
by inverting the line. Their 95 % interval is Fieller's: all log t at which the line is not shown to miss the level,

    (a + b x - log level)^2 <= q^2 s^2 (1 / n + (x - mean x)^2 / sum (x - mean x)^2),

with Student's q of n - 2 degrees of freedom (Fieller 1954, "Some Problems in Interval Estimation"). It is the interval
of the fit: points of one training share their text and their noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

FEWEST = 4  # points of a fit


@dataclass(frozen=True)
class PowerLaw:
    """Holds the line through n points: its slope, its mean point, the residual variance, and the spread of log t."""

    slope: float
    mean_x: float
    mean_y: float
    variance: float
    spread: float
    n: int

    def find_tokens(self, level: float) -> tuple[float, float, float] | None:
        """Return (tokens, low, high) at which the excess is `level`; None where the slope is not shown to be negative.

        A number beyond what a float holds is infinite.
        """
        squared = float(stdtrit(self.n - 2, 0.975)) ** 2 * self.variance
        d, b = self.mean_y - math.log(level), self.slope
        leading = b * b - squared / self.spread
        if b >= 0 or leading <= 0:
            return None
        root = math.sqrt(max(0.0, (b * d) ** 2 - leading * (d * d - squared / self.n)))
        ends = [(-b * d + sign * root) / leading for sign in (-1, 1)]
        tokens, low, high = (_exp(self.mean_x + u) for u in (-d / b, *ends))
        return tokens, low, high


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def fit_power_law(tokens: Sequence[float], excess: Sequence[float]) -> PowerLaw | None:
    """Return the power law through points with tokens and excess above 0; None for fewer than FEWEST such points."""
    pairs = [(math.log(t), math.log(e)) for t, e in zip(tokens, excess, strict=True) if t > 0 and e > 0]
    if len(pairs) < FEWEST:
        return None
    x, y = np.array(pairs).T
    spread = float(((x - x.mean()) ** 2).sum())
    if spread == 0:
        return None
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    residuals = y - y.mean() - slope * (x - x.mean())
    variance = float((residuals**2).sum()) / (len(pairs) - 2)
    return PowerLaw(slope, float(x.mean()), float(y.mean()), variance, spread, len(pairs))
