"""Types of parameters that say which values are right; `methods.make` refuses others."""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Ge, Gt, Lt

Layers = Annotated[int, Ge(0)]  # how many layers
Whole = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Tokens = Annotated[int, Ge(2)]  # of which all but the first are predicted
Finite = Annotated[float, Gt(-math.inf), Lt(math.inf)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
Share = Annotated[float, Ge(0), Lt(1)]
