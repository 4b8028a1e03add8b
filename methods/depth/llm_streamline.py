"""Put one layer in the place of the run of layers that turns the state least, and train it for that: LLM-Streamline.

Chen, Hu, Zhang, Wang, Li, Chen 2025, "Streamlining Redundant Layers to Compress Large Language Models", ICLR,
arXiv 2403.19135. Code: RUCKBReasoning/LLM-Streamline.

With n layers to go, a run of n+1 becomes one. It is the run whose ends are most alike,

    s* = argmax  mean over tokens of cos(x_s, x_{s+n+1}),

x_s the state that enters layer s. Layer f, which begins as layer s* of the dense model, is trained on the dense model's
states to give what the run gives,

    min over f of  mean over tokens and channels of (f(x_{s*}) - x_{s*+n+1})^2.

AdamW takes `passes` passes over the calibration tokens, `batch` sequences a step; the learning rate rises over a
twentieth of the steps and falls to nearly zero along a cosine, about as where pruned models are healed (--heal). An
eighth of the sequences, the last ones, are not trained on, and f is what missed least on them after any pass, or before
the first. Of a single sequence nothing can be held back: f is trained on what it is judged by, and the record says
nothing of what it misses.

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

Measured. docs/studies/models.md has it beside `laco-ls` by three calibration seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from methods.base import Count, Holds, Look, Positive, Pruner, register
from methods.budget import whole_layers
from methods.console import show_progress
from methods.depth.angular import cosines_of_rows, states_between_layers
from methods.least_squares import Rows, Sinks, find_sinks, weight_of_sinks
from methods.model.activations import States, enter, enter_all, values_of_a_step
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.gradients import make_repeatable
from methods.model.layer import Layer
from methods.model.structures import drop_layers

RATE, WIDTH = 2e-4, 4096  # of the authors' script, and of the models that it was run on
WARM_UP = 0.05  # of the steps
HELD_OUT = 8  # an eighth of the sequences is not trained on, and judges the layer


@register("llm-streamline")
@dataclass(frozen=True)
class LLMStreamline(Pruner):
    """Put one layer, trained to do their work, in the place of a run of layers (Chen et al. 2025)."""

    passes: Count = 16  # over the calibration tokens
    learning_rate: Positive | None = None  # the highest; None: 2e-4 at a width of 4,096, at others as 1 / width
    batch: Count = 4  # sequences of a step
    sinks: Sinks = "alike"  # attention sinks weigh as all other tokens, or apart, as a population of their own

    looks_at = "gradients"
    cost = "up to 2 forwards, and 16 forward and backward passes of one layer"
    holds = Holds(all_layers=1, layers=5, parks="all_layers")
    paper_ratio = "layers, by their number"
    paper_reads = "about 66,000 documents of SlimPajama in sequences of 2,048 tokens"  # args.py
    look = Look("blue", "long", "p")
    tiny = "passes=2"

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return three forwards, and those of training one layer."""
        return 3 + 5 * self.passes / layers

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the number of layers to remove, where one stays in their place."""
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
        """Train layer s, in place, to do the work of the layers s .. s+length-1, and return its errors.

        An error is the mean square over that of the run's output, on the sequences that are not trained on, or on the
        only one. There is one before the first pass and one after each; None where it is no finite number.
        """
        x, z = states_at_ends(model, calibration, s, length)
        N = len(x)
        train, judge = list(range(N - max(1, N // HELD_OUT))), list(range(N - max(1, N // HELD_OUT), N))
        layer = model.layers[s]
        with layer.visiting():
            steps = self.passes * math.ceil(len(train or judge) / self.batch)
            rate = self.learning_rate or RATE * WIDTH / x[0].shape[-1]
            training = LayerTraining(model, layer, calibration, (x, z), (rate, steps))
            if self.sinks == "apart":
                training.weigh_sinks()
            missed, best = [training.missed(judge)], training.weights()
            generator = torch.Generator().manual_seed(calibration.seed)
            for _ in show_progress(range(self.passes), "training a layer", "pass"):
                order = torch.randperm(len(train or judge), generator=generator).tolist()
                for start in range(0, len(order), self.batch):
                    rows = [(train or judge)[at] for at in order[start : start + self.batch]]
                    training.step(rows)
                missed.append(training.missed(judge))
                if missed[-1] <= min(filter(math.isfinite, missed), default=-math.inf):
                    best = training.weights()
            _put(layer, best)
        return [value if math.isfinite(value) else None for value in missed]


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


class LayerTraining:
    """Trains a copy of a layer, in float32.

    ends  N of (T, D) each: the states in front of the layer, and the target states behind it
    how   the highest learning rate, and the number of steps
    """

    def __init__(
        self,
        model: Decoder,
        layer: Layer,
        calibration: Calibration,
        ends: tuple[list[Tensor], list[Tensor]],
        how: tuple[float, int],
    ) -> None:
        self.model, self.calibration, (self.x, self.z) = model, calibration, ends
        self.layer = layer.copy()
        self.layer.store = None  # the store knows the layer itself, and keeps no copy
        self.device = layer.device
        self.module = self.layer.module.float().requires_grad_(True)
        self.optimiser, (rate, steps) = torch.optim.AdamW(self.module.parameters(), weight_decay=0.0), how
        warm = WARM_UP if steps * WARM_UP > 1 else 0.0  # up to one step OneCycleLR has no rise, or divides by zero
        self.schedule = OneCycleLR(
            self.optimiser, rate, total_steps=max(2, steps), pct_start=warm, cycle_momentum=False
        )
        self.arguments = dict[int, dict[str, Any]]()  # of the layer, by the sequences that it takes at once
        self.weight: Tensor | None = None  # (N, T) of each token, where they differ

    def weigh_sinks(self) -> None:
        """Let attention sinks weigh as a population of their own, as in fits (methods/least_squares.py)."""

        def as_batches(rows: Iterable[Tensor]) -> list[Tensor]:
            return [row[None].to(self.device) for row in rows]

        x, z, where = as_batches(self.x), as_batches(self.z), as_batches(self.calibration.mask)
        sinks = find_sinks(where, x, z)
        every = [Rows(entered, target, target, *of) for entered, target, *of in zip(x, z, where, sinks, strict=True)]
        self.weight = torch.where(torch.cat(sinks), weight_of_sinks(every), 1.0)

    def squares(self, rows: list[int]) -> tuple[Tensor, int]:
        """Return the sum of squared errors at the real tokens of these sequences, and the number of its terms."""
        if len(rows) not in self.arguments:
            with torch.no_grad():
                entry = enter(self.model, self.calibration.ids[: len(rows)])
            self.arguments[len(rows)] = to_float32(entry.arguments[self.layer.kind])
        mask = self.calibration.mask[rows].to(self.device)
        x = torch.stack([self.x[row] for row in rows]).to(self.device).float()
        z = torch.stack([self.z[row] for row in rows]).to(self.device).float()
        y = self.layer(x, self.arguments[len(rows)])
        return self.weigh((y[mask] - z[mask]).square(), rows), int(mask.sum()) * x.shape[-1]

    def weigh(self, squares: Tensor, rows: list[int]) -> Tensor:
        """Return the sum of squares, (tokens, D) at the real tokens of these sequences, by their tokens' weights."""
        if self.weight is not None:
            squares = squares * self.weight[rows][self.calibration.mask[rows].to(self.device)][:, None]
        return squares.sum()

    def step(self, rows: list[int]) -> None:
        """Take one step of the optimiser on some rows of tokens."""
        with torch.enable_grad(), make_repeatable(self.model):
            total, count = self.squares(rows)
            torch.autograd.backward(total / count)
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()

    @torch.no_grad()
    def missed(self, rows: list[int]) -> float:
        """Return the sum of squared errors over that of the target states, on these sequences."""
        pairs = ((self.z[row], self.calibration.mask[row].to(self.z[row].device)) for row in rows)
        squares_of_targets = sum(
            float(self.weigh(z[mask].float().square(), [row])) for row, (z, mask) in zip(rows, pairs, strict=True)
        )
        return sum(float(self.squares([row])[0]) for row in rows) / squares_of_targets

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the weights by name."""
        return {name: parameter.detach().clone() for name, parameter in self.module.named_parameters()}


def to_float32(given: Any) -> Any:
    """Return a value with all tensors of numbers in it, also in dictionaries and tuples, in float32."""
    if isinstance(given, dict):
        return {name: to_float32(value) for name, value in given.items()}
    if isinstance(given, tuple):
        return tuple(map(to_float32, given))
    return given.float() if isinstance(given, Tensor) and given.is_floating_point() else given


def _put(layer: Layer, weights: dict[str, Tensor]) -> None:
    """Give the layer these weights, by name, in its own type."""
    old = dict(layer.module.named_parameters())
    for name, weight in weights.items():
        path, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(weight.to(old[name].dtype), old[name].requires_grad)
        setattr(layer.module.get_submodule(path), leaf, parameter)
    layer.settle()
