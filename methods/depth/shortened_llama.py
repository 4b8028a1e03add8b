"""Drop the layers that the loss misses least, by trial or by Taylor's formula: Shortened LLaMA.

Kim, Kim, Kim, Castells, Choi, Shin, Song 2024, "Shortened LLaMA: Depth Pruning for Large Language Models with
Comparison of Retraining Methods", arXiv 2402.02834. Code: Nota-NetsPresso/shortened-llm.

The importance of layer l, over N sequences of calibration text with the mean loss L of the next token:

    PPL       I_l = perplexity of the model without layer l                  `shortened-llama`
    Taylor+   I_l = sum over the layer's weights W of |W dL/dW|              `shortened-llama-taylor`

The n layers with the smallest importance go at once, and none is computed again; of equal ones the lower stays. Taylor+
keeps the first 4 and the last 2 layers (that is its "+"), which matter although their scores do not show it. A layer's
weights are its matrices and the gains of its norms, without biases, as in the authors' code.

Departures from the authors' code. The code and its scripts keep the first 4 and the last 2 layers for PPL too
(`keep_first=4,keep_last=2`); the paper's "+" is Taylor's, and `shortened-llama` protects none. For more than 10
sequences the code's Taylor scores weigh batches of 10 alike, a short last one included. Where more layers must go than
Taylor+ leaves unprotected, its protection shrinks in proportion, and the record names the layers that were still
protected; the code has no such case. The scores of PPL are recorded as losses, the logarithms of the perplexities.
Nothing is trained afterwards, which the paper compares.

Cost. PPL takes half a forward pass per layer, since a layer on trial lies behind half of the others, which need not run
again. Taylor+ takes two forward passes and one backward pass; memory holds the model, what enters its layers, and the
float32 gradient of one layer.

Measured. docs/studies/departures.md: with the code's kept ends `shortened-llama` removes the same layers of the default
model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.base import Holds, Layers, Look, Tokens, register
from methods.budget import whole_layers
from methods.errors import Unsupported
from methods.model.activations import refuse_overflow
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.gradients import Sums, collect_gradients
from methods.model.structures import Sublayer
from methods.trials.blocks import Trial
from methods.trials.selection import OneShot


@register("shortened-llama")
@dataclass(frozen=True)
class ShortenedLlama(OneShot):
    """Drop the layers without which, one at a time, perplexity is lowest (Kim et al. 2024)."""

    keep_first: Layers = 0  # layers at the front that stay; the authors' code keeps 4
    keep_last: Layers = 0  # layers at the end that stay; the authors' code keeps 2
    tokens: Tokens = 1280  # calibration tokens that are read; the authors take 10 x 128

    cost = "half a forward over 1,280 tokens per layer"
    holds = Holds(all_layers=1.5, steps=2, logits=3)
    reuses = "statistics"
    paper_reads = "10 x 128 tokens of BookCorpus"  # script/prune_llama2-7b_crit-*.sh
    look = Look("solid", "h")

    def tokens_read(self, tokens: int) -> int:
        """Return the tokens of its parameter at most."""
        return min(tokens, self.tokens)

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return half a model for each layer that is left out."""
        return layers / 2 * self.tokens_read(tokens) / tokens

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Remove the layers. Raises Unsupported where one would go whose loss is no finite number."""
        decided = super().prune(model, calibration, ratio)
        if "scores" in decided:
            refuse_overflow(torch.tensor([decided["scores"][l] for l in decided["removed_layers"]]).isfinite().all())
            decided["scores"] = [score if math.isfinite(score) else None for score in decided["scores"]]
        return decided

    def scores(self, model: Decoder, calibration: Calibration) -> list[float]:
        """Return the loss without each layer, infinite where it is no finite number."""
        (losses,) = shared_statistics(losses_without_layers, model, calibration.first(self.tokens))
        return [loss if math.isfinite(loss) else math.inf for loss in losses.tolist()]


@register("shortened-llama-taylor")
@dataclass(frozen=True)
class ShortenedLlamaTaylor(OneShot):
    """Drop the layers whose weights times gradients are smallest, the outer ones protected (Kim et al. 2024)."""

    keep_first: Layers = 4  # layers at the front that stay
    keep_last: Layers = 2  # layers at the end that stay
    tokens: Tokens = 1280  # calibration tokens that are read; the authors take 10 x 128

    looks_at = "gradients"
    cost = "4 forwards over 1,280 tokens"
    holds = Holds(all_layers=1, layers=1, logits=9)
    reuses = "statistics"
    paper_reads = "10 x 128 tokens of BookCorpus"  # script/prune_llama2-7b_crit-*.sh
    look = Look("dashed", "d")

    def tokens_read(self, tokens: int) -> int:
        """Return the tokens of its parameter at most."""
        return min(tokens, self.tokens)

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return a forward, a backward, and what gradients layer by layer repeat."""
        return 4 * self.tokens_read(tokens) / tokens

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the number of layers to remove, and the numbers of the protected layers."""
        n = whole_layers(model, ratio)
        candidates = self.candidates(len(model.layers), n)
        return {"layers": n, "protected_layers": [l for l in range(len(model.layers)) if l not in candidates]}

    def scores(self, model: Decoder, calibration: Calibration) -> list[float]:
        """Return the importance I_l of every layer, from gradients."""
        (importances,) = shared_statistics(importance_by_taylor, model, calibration.first(self.tokens))
        return importances.tolist()

    def candidates(self, L: int, n: int) -> range:
        """Return the layers that may go, at least n. Both protected ends shrink together where they leave fewer."""
        protected = self.keep_first + self.keep_last
        stay = min(protected, L - n)
        last = stay * self.keep_last // max(1, protected)
        return range(stay - last, L - last)


def losses_without_layers(model: Decoder, calibration: Calibration) -> list[Tensor]:
    """Return the loss per token without each layer, (L,), in float64."""
    trial = Trial(model, calibration, "nll")
    every = [Sublayer("layer", number) for number in range(len(model.layers))]
    return [torch.tensor(trial.losses_without(every), dtype=torch.float64)]


def importance_by_taylor(model: Decoder, calibration: Calibration) -> list[Tensor]:
    """Return I_l of every layer by Taylor's formula, (L,), in float64.

    Raises Unsupported where one is no finite number.
    """
    layers = model.layers

    def weights(l: int) -> list[Tensor]:
        return [parameter for name, parameter in layers[l].module.named_parameters() if not name.endswith("bias")]

    def of_layer(l: int, g: Sums, _: Sums) -> list[Tensor]:
        sizes = [float((W.detach() * g[W]).abs().sum(dtype=torch.float64)) for W in weights(l)]
        return [torch.tensor(sum(sizes), dtype=torch.float64)]

    sums_by_layer = collect_gradients(model, calibration, {W for l in range(len(layers)) for W in weights(l)}, of_layer)
    scores = torch.stack([sums_by_layer[l][0] for l in range(len(layers))])
    if not scores.isfinite().all():
        raise Unsupported("gradients overflow; load the model in bfloat16 or float32")
    return [scores]
