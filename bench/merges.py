"""What becomes of a model when a window of its layers is merged into one, at every position and by every rule.

The window of m layers p .. p+m-1 is replaced by one layer. Two figures say what that does: the cosine of the last
normed state to the dense model's, flattened over the tokens of a window of text (as methods.laco compares sentences),
mean over windows; and the nats per token of held-out text. Only the layers from p on are run, on states that the dense
model left in front of p, which is exact: the layers below have not changed.

Letters: M = windows of text, W = their tokens, B = those of a micro-batch, D = residual width, m = layers that become
one, p = number of the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.stats import mean_stderr, ratio_interval
from methods import laco
from methods.anatomy import Decoder, Layer
from methods.progress import over
from methods.signals import Entry, enter

TOKENS_AT_ONCE = 512  # in one forward of a merged model, and through its head
RULES = {
    "released": "matrices of the window's last layer, norms of its first (the authors' code)",
    "published": "the sum of differences, norms of the first (equation 1)",
    "mean": "the mean of the window's matrices, norms of the first",
    "deletion": "control: the last layer stays as it is, the others are deleted",
}


def plain(values: Tensor) -> Any:
    """Nested lists of floats of six digits; None for what is no finite number."""
    if values.ndim:
        return [plain(value) for value in values]
    return float(f"{float(values):.6g}") if bool(values.isfinite()) else None


@torch.no_grad()
def merged(window: list[Layer], rule: str) -> Layer:
    """The one layer that `window` becomes by one of RULES; the window is left alone."""
    if rule == "deletion":
        return window[-1]
    if rule != "mean":
        return laco.merge(window, {"released": "last", "published": "sum"}[rule], "base")
    survivor = window[0].copy_sharing_matrices()
    for slot, matrix in enumerate(survivor.matrices):
        total = torch.stack([layer.matrices[slot].weight.float() for layer in window]).mean(0)
        matrix.weight = nn.Parameter(total.to(matrix.weight.dtype))
    return survivor


@dataclass(frozen=True)
class _Batch:
    """Windows of text in the dense model: the states in front of each layer, and the last one, normed."""

    entry: Entry
    targets: Tensor  # (B, W - 1)
    scored: Tensor  # (B, W - 1) true where the target counts
    states: list[Tensor]  # (B, W, D) each
    final: Tensor  # (B, W, D)


class Merges:
    """The dense model on held-out windows, and what becomes of it when a window of its layers is merged.

    ids (M, W); scored (M, W) as in bench.data.EvaluationText.
    """

    @torch.no_grad()
    def __init__(self, model: Decoder, ids: Tensor, scored: Tensor) -> None:
        self.model, self.layers, self.batches = model, model.layers, []
        rows = max(1, TOKENS_AT_ONCE // ids.shape[1])
        for some, wanted in zip(torch.split(ids, rows), torch.split(scored, rows), strict=True):
            entry = enter(model, some)
            states = [entry.x]
            for layer in self.layers:
                states.append(entry.run([layer], states[-1]))
            on = entry.x.device
            final = model.normed(states[-1])
            self.batches.append(_Batch(entry, some[:, 1:].to(on), wanted[:, 1:].to(on), states, final))

    def dense(self) -> dict[str, Any]:
        """The dense model's figures, as `at` has them."""
        return self._figures([], len(self.layers))

    def curve(self, m: int, rule: str) -> list[dict[str, Any]]:
        """`at` of every position, rising."""
        positions = range(len(self.layers) - m + 1)
        return [self.at(p, m, rule) for p in over(positions, f"{m} layers by {rule}", "merge")]

    def at(self, p: int, m: int, rule: str) -> dict[str, Any]:
        """The layers p .. p+m-1 merged by `rule`.

        position; cosine and cosine_stderr over windows; nll, nll_low, nll_high (95 %), nats per token. A figure that is
        no finite number, and with a single window its interval, is None.
        """
        window = self.layers[p : p + m]
        return {"position": p} | self._figures([merged(window, rule), *self.layers[p + m :]], p)

    @torch.no_grad()
    def _figures(self, layers: list[Layer], p: int) -> dict[str, Any]:
        cosines, sums, counts = [], [], []
        for batch in self.batches:
            x = batch.entry.run(layers, batch.states[p])
            a, b = (state.float().flatten(1) for state in (self.model.normed(x), batch.final))
            cosines += nn.functional.cosine_similarity(a, b, dim=1, eps=1e-12).tolist()
            sums += self._nll(x[:, :-1], batch).tolist()
            counts += batch.scored.sum(1).tolist()
        cosine, stderr = mean_stderr(cosines)
        low, high = ratio_interval(sums, counts) if len(sums) > 1 else (None, None)
        figures = {"cosine": cosine, "cosine_stderr": stderr, "nll": sum(sums) / sum(counts)}
        return {
            name: None if value is None else plain(torch.tensor(value, dtype=torch.float64))
            for name, value in (figures | {"nll_low": low, "nll_high": high}).items()
        }

    def _nll(self, x: Tensor, batch: _Batch) -> Tensor:
        """(B, W - 1, D) -> float64 (B,), summed over each window's scored tokens."""
        places = batch.scored.flatten().nonzero()[:, 0]
        states, targets = x.flatten(0, 1)[places], batch.targets.flatten()[places]
        nll = torch.cat(
            [
                nn.functional.cross_entropy(self.model.logits(some).float(), wanted, reduction="none")
                for some, wanted in zip(*(torch.split(t, TOKENS_AT_ONCE) for t in (states, targets)), strict=True)
            ]
        )
        rows = places // batch.targets.shape[1]
        total = torch.zeros(len(batch.targets), dtype=torch.float64, device=nll.device)
        return total.index_add_(0, rows, nll.double())
