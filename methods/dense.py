"""The dense model, the baseline of every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from methods.base import Look, Pruner, register
from methods.errors import OutOfReach
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder


@register("dense")
@dataclass(frozen=True)
class Dense(Pruner):
    """The model as it is, the baseline of every table."""

    looks_at = "nothing"
    cost = ""
    takes_ratio = False
    leaves = ()
    look = Look("dotted", "*", "black")

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return an empty plan. Raises OutOfReach for any ratio."""
        if ratio:
            raise OutOfReach(f"dense removes nothing; it cannot reach ratio {ratio:g}")
        return {}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Change nothing."""
        return self.plan(model, ratio)
