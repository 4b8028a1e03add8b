"""Train each changed layer by itself to give the states that the dense model has behind it: block-wise distillation.

Bercovich and others 2024, "Puzzle: Distillation-Based NAS for Inference-Optimized LLMs", arXiv 2411.19146, train each
candidate block so, before they choose among the blocks and train the whole model. The authors have released no code of
this step: NVIDIA's Model-Optimizer begins such blocks without training them.

A layer f of the pruned model has changed where it has lost parameters, or where layers behind it have gone. It stands
for the layers s .. e of the dense model, up to the one in front of the next layer that is left. With x_s the state in
front of layer s,

    min over f of  mean over tokens of ||f(x_s) - x_{e+1}||^2.

With `inputs=dense` x_s is the dense model's, so that no layer's training depends on another's, as in Puzzle. With
`inputs=pruned` it is what the layers in front, which have been trained already, give. Layers before the first one that
is left count to it. How a layer is trained, and by which sequences it is judged, methods/layer_training.py says. A
layer that no pass improves on those stays as it was.

Departures from the paper. It trains all candidates of a search; here the chosen layers alone are trained, on the
calibration text of the run. The paper divides the loss by the mean square of the target, which changes no minimum; here
it is not divided.

Families. Every method but those that cut the residual. Transformers alone loads the result where it loads the method's.

Cost. Two forward passes over the calibration text, and for each pass a forward and a backward one through the changed
layers, of the seven eighths of the sequences that are trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from methods.base import Count, Holds, Look, Positive, Tokens
from methods.compensation.base import Compensation, Pruning, register_compensation
from methods.console import show_progress
from methods.layer_training import LayerRecipe, fit_layer
from methods.least_squares import Sinks
from methods.model.activations import States, enter_all, values_of_a_step
from methods.model.calibration import Calibration
from methods.model.sizes import layer_parameters


@register_compensation("blockwise")
@dataclass(frozen=True)
class Blockwise(Compensation):
    """Each changed layer is trained by itself on the dense model's states (Bercovich 2024)."""

    passes: Count = 4  # over the calibration tokens
    learning_rate: Positive | None = None  # the highest; None: 2e-4 at a width of 4,096, at others as 1 / width
    batch: Count = 4  # sequences of a step
    inputs: Literal["dense", "pruned"] = "dense"  # what enters a layer: dense states, or what trained layers give
    sinks: Sinks = "alike"  # attention sinks weigh as all other tokens, or apart, as a population of their own
    tokens: Tokens | None = None  # calibration tokens that are read; None: all

    holds = Holds(states=6, layers=5, steps=4)
    look = Look("solid", "D", "purple")
    follows = "flap"
    tiny = "passes=1"

    @property
    def forwards(self) -> float:  # type: ignore[override]  # it follows from the passes
        """Return two forwards, and for each pass a forward and a backward pass of the changed layers."""
        return 2 + 3 * self.passes

    def parameters_added(self, pruning: Pruning) -> int:
        """Return 0: layers are trained that are there."""
        return 0

    def repair(self, pruning: Pruning, calibration: Calibration) -> dict[str, Any]:
        """Train the changed layers, from front to rear, and return which, and the errors of each."""
        read, report = calibration.first(self.tokens), list[dict[str, Any]]()
        with torch.no_grad():
            entries, _ = enter_all(pruning.dense, read, values_of_a_step(pruning.dense))
        dense = States(pruning.dense, entries, read.wait)
        own = States(pruning.pruned, entries, read.wait) if self.inputs == "pruned" else dense
        recipe = LayerRecipe(self.passes, self.batch, self.learning_rate, self.sinks)
        for span in show_progress(spans_of_changed_layers(pruning), "distilling", "layer"):
            with torch.no_grad():
                x = rows_of_batches(own.advance(2 * (span.place if own is not dense else span.first)))
                z = rows_of_batches(dense.advance(2 * span.end))
            missed = fit_layer(recipe, pruning.pruned, pruning.pruned.layers[span.place], read, (x, z))
            held_out = {"missed": missed} if len(read.ids) > 1 else {}
            report.append({"layer": span.place, "stands_for": [span.first, span.end - 1]} | held_out)
        return {"distilled": report, "tokens": int(read.mask.sum())}


@dataclass(frozen=True)
class Span:
    """Says which layers of the dense model a changed layer of the pruned one stands for.

    place  number of the pruned model's layer
    first  number of the first layer of the dense model
    end    number behind the last one
    """

    place: int
    first: int
    end: int


def spans_of_changed_layers(pruning: Pruning) -> list[Span]:
    """Return the spans of the layers that have lost parameters or stand for several layers."""
    dense, pruned = pruning.dense.layers, pruning.pruned.layers
    firsts = [0, *pruning.kept[1:]]
    spans = list[Span]()
    for place, (first, end) in enumerate(zip(firsts, [*firsts[1:], len(dense)], strict=True)):
        narrowed = layer_parameters(pruned[place]) != layer_parameters(dense[pruning.kept[place]])
        if narrowed or end - first > 1:
            spans.append(Span(place, first, end))
    return spans


def rows_of_batches(states: list[Tensor]) -> list[Tensor]:
    """Return the states of each sequence, (T, D), from those of micro-batches, (B, T, D)."""
    return [row for batch in states for row in batch]
