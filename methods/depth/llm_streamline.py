"""Put one layer in the place of the run of layers that turns the state least, and train it for that: LLM-Streamline.

Chen, Hu, Zhang, Wang, Li, Chen 2025, "Streamlining Redundant Layers to Compress Large Language Models", ICLR,
arXiv 2403.19135. Code: RUCKBReasoning/LLM-Streamline.

With n layers to go, a run of n+1 becomes one. It is the run whose ends are most alike,

    s* = argmax  mean over tokens of cos(x_s, x_{s+n+1}),

x_s the state that enters layer s. Layer f, which begins as layer s* of the dense model, is trained on the dense model's
states to give what the run gives,

    min over f of  mean over tokens and channels of (f(x_{s*}) - x_{s*+n+1})^2.

It is trained on the calibration tokens, and judged by an eighth of the sequences that it has not been trained on
(methods/layer_training.py). Of a single sequence the record says nothing of what it misses.

Departures from the authors' code. It trains once, on some 66,000 documents in sequences of 2,048 tokens; here the run's
calibration tokens are read several times, so that its figures are not this method's: more of them
(--calibration-sequences) are what it wants. Batches of 128 sequences, a weight decay of 0.001 and gradients clipped to
norm 5 are not taken over, nor is its schedule, laid out for eight times the steps that are taken: 8 % of them are a
warm-up, and the rate hardly falls afterwards. The recipe is that of healing, with no decay and gradients of norm 1 at
most. The highest rate is theirs, 2e-4, at the width of their models, 4,096, and in inverse proportion at others (Yang,
Hu and others 2022, arXiv 2203.03466). The code compares the state behind the last layer, which the final norm has
changed, with states that no norm has changed; here it is taken in front of the norm. Its other ways, a loss of the next
token and two layers for a run, are not built. `sinks=apart` lets attention sinks weigh as a population of their own:
where they arise inside the run, nearly all of the squares are theirs.

Cost. A forward for the states between all layers, of all tokens, which are held; up to another one to the two ends of
the run, and for each pass a forward and a backward pass of one layer. Memory holds its weights in float32, their
gradients, two moments and the best ones so far.

Measured. docs/studies/all-methods.md has it beside all others, on more than one model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.base import Count, Holds, Look, Positive, Pruner, register
from methods.budget import whole_layers
from methods.depth.angular import cosines_of_rows, states_between_layers
from methods.layer_training import LayerRecipe, fit_layer
from methods.least_squares import Sinks
from methods.model.activations import States, enter_all, values_of_a_step
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.structures import drop_layers


@register("llm-streamline")
@dataclass(frozen=True)
class LLMStreamline(Pruner):
    """Put one layer, trained to do their work, in the place of a run of layers (Chen et al. 2025)."""

    passes: Count = 16  # over the calibration tokens
    learning_rate: Positive | None = None  # the highest; None: 2e-4 at a width of 4,096, at others as 1 / width
    batch: Count = 4  # sequences of a step
    sinks: Sinks = "alike"  # attention sinks weigh as all other tokens, or apart, as a population of their own

    takes_first = True
    looks_at = "gradients"
    cost = "up to 2 forwards, and 16 forward and backward passes of one layer"
    holds = Holds(all_layers=1, layers=5, parks="all_layers")
    paper_ratio = "layers, by their number"
    paper_reads = "about 66,000 documents of SlimPajama in sequences of 2,048 tokens"  # args.py
    look = Look("long", "p")
    tiny = "passes=2"

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return two forwards, and for each pass a forward and a backward pass of one layer."""
        return 2 + 3 * self.passes / layers

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the number of layers to remove, where one stays in their place."""
        model.refuse_fixed()
        return {"layers": whole_layers(model, ratio, stay=1)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Replace the run of layers that changes the residual least by one that is trained."""
        n = self.plan(model, ratio)["layers"]
        if not n:
            return {"removed_layers": []}
        (cos,) = shared_statistics(similarities_of_runs, model, calibration, n + 1)
        s = int(cos.argmax())
        missed = self.train(model, calibration, s, n + 1)
        decided = drop_layers(model, list(range(s + 1, s + n + 1)))
        held_out = {"missed": missed} if len(calibration.ids) > 1 else {}
        return decided | {"similarities": cos.tolist(), "trained_layer": s} | held_out

    def train(self, model: Decoder, calibration: Calibration, s: int, length: int) -> list[float | None]:
        """Train layer s, in place, to do the work of the layers s .. s+length-1; return what `fit_layer` does."""
        recipe = LayerRecipe(self.passes, self.batch, self.learning_rate, self.sinks)
        return fit_layer(recipe, model, model.layers[s], calibration, states_at_ends(model, calibration, s, length))


def similarities_of_runs(model: Decoder, calibration: Calibration, length: int) -> list[Tensor]:
    """Return mean over tokens of cos(x_s, x_{s+length}) for s = 0 .. L-length, (L-length+1,), in float64."""
    h = states_between_layers(model, calibration, "all")
    return [torch.stack([cosines_of_rows(h[s], h[s + length]).mean() for s in range(len(h) - length)])]


@torch.no_grad()
def states_at_ends(model: Decoder, calibration: Calibration, s: int, length: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return each sequence's states in front of layer s and behind the run of `length` layers, N of (T, D) each."""
    entries, _ = enter_all(model, calibration, values_of_a_step(model))
    states = States(model, entries, calibration.wait)
    x = [row for batch in states.advance(2 * s) for row in batch]
    return x, [row for batch in states.advance(2 * (s + length)) for row in batch]
