"""Shares statistics of the dense model on calibration tokens between cells that need the same ones.

A method that looks at the dense model before it cuts looks at the same whatever the ratio is and whatever compensation
follows. It asks for what it needs as `shared(function, model, calibration, *arguments)`, and the name under which a run
keeps the answer says all that it depends on: the function, the tokens and the arguments. The model is left to the run
(`Calibration.keep`), which knows which one it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from methods.model.calibration import Calibration
from methods.model.decoder import Decoder


def shared(
    function: Callable[..., list[Tensor]], model: Decoder, calibration: Calibration, *arguments: Any
) -> list[Tensor]:
    """Return function(model, calibration, *arguments), on the CPU, as another cell has found it where one has.

    The model is dense: no method has changed it yet. `function` is a function of a module, which reads nothing but what
    it is given, and `repr` of an argument says all of it.
    """

    def found() -> list[Tensor]:
        return [statistic.cpu() for statistic in function(model, calibration, *arguments)]

    if calibration.keep is None:
        return found()
    tokens = (calibration.sha256, tuple(calibration.ids.shape), calibration.memory)
    asked = repr((function.__module__, function.__qualname__, tokens, arguments))
    return calibration.keep(hashlib.sha256(asked.encode()).hexdigest(), found)
