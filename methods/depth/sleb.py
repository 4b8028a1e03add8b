"""Drop one layer after the other, each time the one that the shortened model misses least: SLEB.

Song, Oh, Kim, Kim, Kim, Kim 2024, "SLEB: Streamlining LLMs through Redundancy Verification and Elimination of
Transformer Blocks", ICML, arXiv 2402.09025. Code: jiwonsong-dev/SLEB.

With the set S of layers removed already, the next one is (algorithm 1)

    j* = argmin over j of    - sum over tokens k of log p(w_k | w_<k; model without S and j)

Every choice sees the model as it has become, while one-shot scores all see the dense one. The first and the last layer
stay. The order of removal does not depend on how many go: one search gives every smaller model as well, and a run over
several ratios continues from what an earlier cell has found. `loss=kl` (or js) asks for the distance of the next
token's distribution to the dense model's instead of the loss.

Departures from the authors' code. A trial runs only what lies behind the layer on trial, since nothing before it has
changed, which halves the cost and changes no value. 2,048 tokens of the run's calibration text are read; the code joins
128 lines of WikiText-2, which many evaluations use, and cuts them into sequences of 2,048, which are four or five.
Padding is left out of the loss. A loss that is not a number never wins.

Cost. About L/2 forward passes per layer removed, of L layers. Eight of the 30 layers of SmolLM2-135M cost 91 passes; a
search without kept states would cost 196. Memory is the model and L states of all tokens (151 MB there).

Measured. docs/studies/departures.md has what 512 instead of 2,048 tokens do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from methods.base import Holds, Layers, Look, Pruner, Tokens, register
from methods.budget import whole_layers
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters
from methods.model.structures import sublayers_of
from methods.trials.blocks import Trial
from methods.trials.selection import search_and_remove


@register("sleb")
@dataclass(frozen=True)
class SLEB(Pruner):
    """Drop one layer after the other, each time the one without which the loss is lowest (Song et al. 2024)."""

    loss: Literal["nll", "kl", "js"] = "nll"  # nll: of the next token; kl, js: of its distribution to the dense model's
    keep_first: Layers = 1  # layers at the front that stay
    keep_last: Layers = 1  # layers at the end that stay
    tokens: Tokens = 2048  # calibration tokens that are read

    cost = "about L/2 forwards over 2,048 tokens per layer removed"
    reuses = "removals"
    only_cuts = True
    paper_ratio = "layers, by their number"
    paper_reads = "128 lines of WikiText-2 in sequences of 2,048 tokens"  # sleb.py, utils/data_utils.py
    look = Look("mixed", "P")
    tiny = "tokens=96"

    @property
    def holds(self) -> Holds:
        """Return the memory of states in front of every layer and of the logits that the loss needs."""
        return Holds(all_layers=1.5, steps=2, logits=3 if self.loss == "nll" else 8)

    def tokens_read(self, tokens: int) -> int:
        """Return the tokens of its parameter at most."""
        return min(tokens, self.tokens)

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return half a model for each layer that is left out in each step."""
        tried = removed * (layers / 2) * (1 - removed / (2 * layers)) ** 2  # half of a model, which loses layers
        return (1 + tried) * self.tokens_read(tokens) / tokens

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the number of layers to remove; the first and last ones are protected."""
        return {"layers": whole_layers(model, ratio, stay=max(self.keep_first, model.fixed_layers) + self.keep_last)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Drop one layer after the other, each time that without which the loss is lowest."""
        n, L = self.plan(model, ratio)["layers"], len(model.layers)
        if not n:
            return {"removed_layers": []}
        candidates = [b for b in sublayers_of(model, "layer") if self.keep_first <= b.layer < L - self.keep_last]
        budget = n * sum(map(layer_parameters, model.layers)) / L
        trial = Trial(model, calibration.first(self.tokens), self.loss)
        return search_and_remove(trial, candidates, budget, calibration)
