"""Trains one layer by itself, from states in front of it to states behind it: llm-streamline and +blockwise do so.

A copy f of the layer, in float32, is trained on given states,

    min over f of  mean over tokens and channels of (f(x) - z)^2.

AdamW takes `passes` passes over the sequences, `batch` of them a step. The learning rate rises over a twentieth of the
steps and falls to nearly zero along a cosine, as where pruned models are healed (--heal). An eighth of the sequences,
the last ones, are not trained on. The layer becomes the f that missed least on them after any pass, or before the
first. Of a single sequence nothing can be held back, and f is trained on what it is judged by.

Letters: N = sequences, T = tokens, D = residual width, x and z (N, T, D).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from methods.console import show_progress
from methods.least_squares import Rows, Sinks, find_sinks, weight_of_sinks
from methods.model.activations import enter
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.gradients import make_repeatable
from methods.model.layer import Layer

RATE, WIDTH = 2e-4, 4096  # of LLM-Streamline's script, and of the models that it was run on
WARM_UP = 0.05  # of the steps
HELD_OUT = 8  # an eighth of the sequences is not trained on, and judges the layer


@dataclass(frozen=True)
class LayerRecipe:
    """Says how a layer is trained.

    passes         over the sequences
    batch          sequences of a step
    learning_rate  the highest; None: 2e-4 at a residual width of 4,096, at others as 1 / width (Yang, Hu and others
                   2022, arXiv 2203.03466)
    sinks          whether attention sinks weigh as all other tokens, or as a population of their own
    """

    passes: int
    batch: int
    learning_rate: float | None
    sinks: Sinks


def fit_layer(
    recipe: LayerRecipe, model: Decoder, layer: Layer, calibration: Calibration, ends: tuple[list[Tensor], list[Tensor]]
) -> list[float | None]:
    """Train a layer, in place, and return its errors: one before the first pass, and one after each.

    model  any model that gives its layers the same positions and masks
    ends   N of (T, D) each: the states in front of the layer, and the target states behind it

    An error is the mean square over that of the target states, on the sequences that are not trained on, or on the only
    one. It is None where it is no finite number.
    """
    x, N = ends[0], len(ends[0])
    train, judge = list(range(N - max(1, N // HELD_OUT))), list(range(N - max(1, N // HELD_OUT), N))
    with layer.visiting():
        steps = recipe.passes * math.ceil(len(train or judge) / recipe.batch)
        rate = recipe.learning_rate or RATE * WIDTH / x[0].shape[-1]
        training = LayerTraining(model, layer, calibration, ends, (rate, steps))
        if recipe.sinks == "apart":
            training.weigh_sinks()
        missed, best = [training.missed(judge)], training.weights()
        generator = torch.Generator().manual_seed(calibration.seed)
        for _ in show_progress(range(recipe.passes), "training a layer", "pass"):
            order = torch.randperm(len(train or judge), generator=generator).tolist()
            for start in range(0, len(order), recipe.batch):
                rows = [(train or judge)[at] for at in order[start : start + recipe.batch]]
                training.step(rows)
            missed.append(training.missed(judge))
            if missed[-1] <= min(filter(math.isfinite, missed), default=-math.inf):
                best = training.weights()
        put_weights(layer, best)
    return [value if math.isfinite(value) else None for value in missed]


class LayerTraining:
    """Trains a copy of a layer, in float32.

    model  any model that gives its layers the same positions and masks
    ends   N of (T, D) each: the states in front of the layer, and the target states behind it
    how    the highest learning rate, and the number of steps
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


def put_weights(layer: Layer, weights: dict[str, Tensor]) -> None:
    """Give the layer these weights, by name, in its own type."""
    old = dict(layer.module.named_parameters())
    for name, weight in weights.items():
        path, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(weight.to(old[name].dtype), old[name].requires_grad)
        setattr(layer.module.get_submodule(path), leaf, parameter)
    layer.settle()
