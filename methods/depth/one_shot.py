"""The one-shot depth method: score every layer of the dense model once, and drop those with the lowest scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from methods.base import Pruner
from methods.budget import whole_layers
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.structures import drop_lowest


class OneShot(Pruner):
    """A depth method that is a score; a subclass gives `scores`."""

    only_cuts = True
    paper_ratio = "layers, by their number"
    keep_first = 0  # layers at the front that stay; a field where the method lets a user choose
    keep_last = 0  # layers at the end that stay

    def scores(self, model: Decoder, calibration: Calibration) -> list[float]:
        """Return the importance of every layer."""
        raise NotImplementedError

    def candidates(self, L: int, n: int) -> Sequence[int]:
        """Return the numbers of the layers, of L, that may go; n of them will."""
        return range(self.keep_first, L - self.keep_last)

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        return {"layers": whole_layers(model, ratio, stay=self.keep_first + self.keep_last)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        said = self.plan(model, ratio)
        n = said.pop("layers")
        if not n:
            return {"removed_layers": []}
        scores = self.scores(model, calibration)
        gone = drop_lowest(model, scores, self.candidates(len(scores), n), n)
        return {"removed_layers": gone, "scores": scores} | said
