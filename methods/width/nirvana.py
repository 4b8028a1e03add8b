"""Remove the heads and channels below one threshold each, scored by the gradient of the largest logits: NIRVANA.

Ai, Wei, Chen, He 2025, "NIRVANA: Structured pruning reimagined for large language models compression",
arXiv 2509.14230. Code: iDEA-iSAIL-Lab-UIUC/NIRVANA.

With the logits z_{j,t,v} of sequence j, position t and word v,

    f = mean over j and v of max over t of z_{j,t,v}

no loss and no target. A unit is a key/value head with its query heads, or a channel of the MLP. Its score is the sum of
|w df/dw| over all its weights: rows of q, k, v, gate and up, columns of the output matrix and down. The authors derive
it from the neural tangent kernel under Adam. One threshold for the heads and one for the channels hold in all layers:

    share of all heads that go = share of all channels that go / gamma

so that attention loses less than the MLP. Each layer keeps one head, and a multiple of 8 channels: of those below the
threshold the best ones stay until it is one.

Departures from the authors' code. gamma is 3.36, the code's value for Llama-3.1-8B, for all models. The share is solved
for, so that the ratio is met behind the rounding to multiples of 8. There the seed of the text is chosen among several
by the divergence of the pruned model, which is a search over draws; here the text is that of all methods. Where all
heads of a layer are below the threshold the best one stays; there it is the last one. Gradients are summed in float32,
and scores in float64. Padding is left out of the largest logit.

Cost. Two forwards and one backward pass over 32 x 128 tokens in short pieces. Memory holds the model, what enters its
layers, one piece, and one layer's gradient in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Count, Holds, Look, Positive, Pruner, Tokens, register
from methods.errors import Unsupported
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.gradients import LARGEST_LOGITS, Sums, collect_gradients
from methods.model.sizes import parameters
from methods.model.structures import Structure, cuts_of, structures_of
from methods.width.widths import refuse_beyond_reach

MULTIPLE = 8  # of which the channels are that a layer keeps


@register("nirvana")
@dataclass(frozen=True)
class Nirvana(Pruner):
    """Remove heads and channels below one threshold each, by gradients of the largest logits (Ai et al. 2025)."""

    gamma: Positive = 3.36  # share of all channels that go, as a multiple of the share of all heads
    sequences: Count = 32  # pieces of the calibration text
    tokens: Tokens = 128  # of a piece

    looks_at = "gradients"
    cost = "4 forwards over 32 x 128 tokens"
    holds = Holds(all_layers=1, layers=1, logits=9)
    uneven_because = "it chooses the width of each layer"
    only_cuts = True
    reuses = "statistics"
    axes = ("heads", "channels")
    leaves = ("heads",)
    paper_ratio = "the heads and channels"
    paper_reads = "32 x 128 tokens of BookCorpus"  # Llama/run.sh
    look = Look("dashed", "d")
    tiny = "sequences=4,tokens=24"

    def tokens_read(self, tokens: int) -> int:
        """Return the tokens of the pieces that give gradients."""
        return min(tokens, self.sequences * self.tokens)

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return a forward, a backward, and what gradients layer by layer repeat."""
        return 4 * self.tokens_read(tokens) / tokens

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the parameters that are wanted. Raises OutOfReach where so much cannot go."""
        structures, dense = structures_of(model), parameters(model)
        refuse_beyond_reach(ratio, sum(each.cost * (each.size - _fewest(each)) for each in structures) / dense)
        return {"budget": round((1 - ratio) * dense)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Cut the units with the lowest scores of all layers."""
        plan, structures = self.plan(model, ratio), structures_of(model)
        if ratio:
            scores = shared_statistics(scores_of_units, model, calibration, self.sequences, self.tokens)
            share = self.solve(structures, scores, ratio * parameters(model))
            for structure, score, count in zip(structures, scores, self.counts(structures, scores, share), strict=True):
                if count:
                    structure.remove(score, count)
            plan |= {"share_of_channels": min(share, 1.0), "share_of_heads": min(share / self.gamma, 1.0)}
        return plan | {"parameters": parameters(model)} | cuts_of(model, structures)

    def counts(self, structures: list[Structure], scores: list[Tensor], share: float) -> list[int]:
        """Return how many units of each structure go, where this share of all channels is below the threshold."""
        counts = [0] * len(structures)
        for is_of_heads, part in ((True, share / self.gamma), (False, share)):
            places = [place for place, structure in enumerate(structures) if structure.is_of_heads == is_of_heads]
            pooled = torch.cat([scores[place] for place in places]).sort().values if places else torch.empty(0)
            lowest = int(min(part, 1.0) * len(pooled))
            for place in places if lowest else ():
                structure = structures[place]
                kept = structure.size - int((scores[place] <= pooled[lowest - 1]).sum())
                if not is_of_heads:
                    kept = min(structure.size, -(-kept // MULTIPLE) * MULTIPLE)
                counts[place] = structure.size - max(kept, _fewest(structure))
        return counts

    def solve(self, structures: list[Structure], scores: list[Tensor], budget: float) -> float:
        """Return the share of channels with which `budget` parameters go, as nearly as the steps allow."""

        def miss(share: float) -> float:
            counts = self.counts(structures, scores, share)
            return sum(each.cost * count for each, count in zip(structures, counts, strict=True)) - budget

        low, high = 0.0, max(1.0, self.gamma)
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if miss(middle) <= 0 else (low, middle)
        return min(low, high, key=lambda share: abs(miss(share)))


def _fewest(structure: Structure) -> int:
    """Return how many units stay at least: one head, 8 channels."""
    return min(structure.size, MULTIPLE if structure.kind == "channels" else 1)


def scores_of_units(model: Decoder, calibration: Calibration, sequences: int, tokens: int) -> list[Tensor]:
    """Return the score of each unit, (units,) for each structure, in float64. Raises Unsupported where one overflows.

    The text is that of the first `sequences` pieces of `tokens` tokens.
    """
    structures = structures_of(model)
    weights = {part.matrix.weight for structure in structures for part in structure.parts}

    def of_layer(number: int, g: Sums, _: Sums) -> list[Tensor]:
        return [score_units(structure, g) for structure in structures if structure.number == number]

    pieces = divide_into_pieces(calibration, sequences, tokens)
    scores_by_layer = collect_gradients(model, pieces, weights, of_layer, objective=LARGEST_LOGITS)
    scores = [score for number in sorted(scores_by_layer) for score in scores_by_layer[number]]
    if not all(bool(score.isfinite().all()) for score in scores):
        raise Unsupported("gradients overflow; load the model in bfloat16 or float32")
    return scores


def divide_into_pieces(calibration: Calibration, sequences: int, tokens: int) -> Calibration:
    """Return the first pieces of the calibration's sequences, at most so many, of at most so many tokens each."""
    length = min(tokens, calibration.ids.shape[1])
    rest = -calibration.ids.shape[1] % length
    ids, mask = (nn.functional.pad(each, (0, rest)).view(-1, length) for each in (calibration.ids, calibration.mask))
    real = mask.any(1).nonzero()[:sequences, 0]
    return replace(calibration, ids=ids[real], mask=mask[real])


@torch.no_grad()
def score_units(structure: Structure, g: Sums) -> Tensor:
    """Return the sum of |w g| over all weights of each unit, (units,), in float64 on the CPU."""
    scores = []
    for part in structure.parts:
        w = part.matrix.weight.float()
        salience = (w * g[part.matrix.weight]).abs().sum(1 - part.axis, dtype=torch.float64).cpu()
        scores.append(salience[part.index].sum(1))
    return torch.stack(scores).sum(0)
