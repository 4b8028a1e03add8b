"""Takes gradients of the loss, or of another objective, one layer at a time, from the last layer to the first.

A forward pass without gradients, each layer for all tokens before the next, keeps what enters each layer. Then each
layer is run once more and differentiated alone. The gradient of its output is the gradient of the next layer's input:

    dL/dx_l = (dy_l/dx_l)^T dL/dy_l,    dL/dW_l = (dy_l/dW_l)^T dL/dy_l,    y_l = x_(l+1)

These are the products of a backward pass through the whole model, in the same order, so that every bit is the same.
Memory holds the gradients and activations of one layer, and the inputs of all layers.

L = loss, x_l, y_l = input and output of layer l, (B, T, D), W_l = its weights. N = sequences, B = sequences of a
micro-batch, T = tokens, D = residual width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.console import show_progress
from methods.model.activations import enter
from methods.model.calibration import Calibration, Wait
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.parts import InPlace

TOKENS_AT_ONCE = 256  # of the calibration in one backward pass; no fewer than a sequence


class Objective(NamedTuple):
    """Is what is differentiated: a mean over some of a micro-batch, with respect to which L is a mean over all.

    value  logits (B, T, V) in float32, targets (B, T-1), -100 for padding -> ()
    count  targets -> of how many it is the mean
    """

    value: Callable[[Tensor, Tensor], Tensor]
    count: Callable[[Tensor], int]


def _loss_of_next_token(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())


def _count_targets(targets: Tensor) -> int:
    return int((targets >= 0).sum())


def _largest_logits(logits: Tensor, targets: Tensor) -> Tensor:
    is_padding = nn.functional.pad(targets < 0, (1, 0))  # never the first token
    return logits.masked_fill(is_padding[:, :, None], -torch.inf).amax(1).mean()


NEXT_TOKEN = Objective(_loss_of_next_token, _count_targets)  # the mean loss of all targets
LARGEST_LOGITS = Objective(_largest_logits, len)  # mean over sequences and words of the largest logit at any token

Sums = dict[Tensor, Tensor]  # a weight -> a sum for it, of its shape, in float32


def make_zeros(weights: Iterable[Tensor]) -> Sums:
    """Return a sum of zeros for each weight."""
    return {weight: torch.zeros_like(weight, dtype=torch.float32, requires_grad=False) for weight in weights}


def collect_gradients(
    model: Decoder,
    calibration: Calibration,
    weights: Collection[Tensor],
    of_layer: Callable[[int, Sums, Sums], Sequence[Tensor]],
    *of: Any,
    g: bool = True,
    a: bool = False,
    objective: Objective = NEXT_TOKEN,
) -> dict[int, list[Tensor]]:
    """Return `of_layer(l, g, a)`, on the CPU, for each layer l from the first that has one of `weights` on.

    g   the gradient of the objective, the mean loss over all targets, of those weights that the layer has
    a   the mean square of each sequence's own gradient

    Both are emptied before the next layer's turn. A few tokens are taken at a time, or with `a` one sequence. An
    interrupted sweep goes on where it stood (`Calibration.log`), behind a forward pass: `of` holds all that `of_layer`
    depends on.
    """
    ids, mask = calibration.ids, calibration.mask
    N, T = ids.shape
    own = [_names_of_weights(layer, weights) for layer in model.layers]
    first = next((number for number, names in enumerate(own) if names), len(own))
    targets = ids[:, 1:].masked_fill(~mask[:, 1:], -100)
    pairs = list(zip(*(torch.split(x, 1 if a else max(1, TOKENS_AT_ONCE // T)) for x in (ids, targets)), strict=True))
    with require_gradients(model, ()), make_repeatable(model):
        batches = _forward(model, pairs, first, calibration.wait, objective)
    log = calibration.log([batch.back for batch in batches], of_layer.__module__, of_layer.__qualname__, *of, g, a)
    numbers = range(len(own) - 1, first - 1, -1)
    outcomes = dict(zip(numbers, log.kept(), strict=False))
    for batch, back in zip(batches, log.take(), strict=True):
        batch.back = back
        del batch.x[len(batch.x) - log.done :]
    remaining = numbers[log.done :]
    for number, layer in show_progress(model.passing(remaining), "gradients", "layer", total=len(remaining)):
        own_weights = [layer.module.get_parameter(name) for name in own[number]]
        sums, squares = make_zeros(own_weights if g else ()), make_zeros(own_weights if a else ())
        with require_gradients(model, own_weights), make_repeatable(model):
            for batch in batches:
                batch.back_through(layer, own_weights, sums, squares, 1 / N, on=number > first)
                if number > first:
                    batch.back = calibration.wait(batch.back)
        outcomes[number] = [tensor.cpu() for tensor in of_layer(number, sums, squares)]
        log.add(outcomes[number], [batch.back for batch in batches])
        sums.clear()
        squares.clear()
    return outcomes


def compute_gradients(
    model: Decoder, ids: Tensor, mask: Tensor, leaves: Mapping[int, Sequence[Tensor]], wait: Wait
) -> tuple[float, Sums]:
    """Return the mean loss over the targets of a few sequences, ids (B, T), and its gradient for each of the leaves.

    leaves  by the number of a layer, tensors that its forward pass reads and that require a gradient
    """
    targets = ids[:, 1:].masked_fill(~mask[:, 1:], -100)
    first, sums = min(leaves), make_zeros(leaf for several in leaves.values() for leaf in several)
    with require_gradients(model, ()), make_repeatable(model):
        (batch,) = _forward(model, [(ids, targets)], first, wait, quiet=True)
        for number, layer in model.passing(range(len(model.stack) - 1, first - 1, -1)):
            batch.back_through(layer, leaves.get(number, ()), sums, {}, 0.0, on=number > first)
    return batch.loss, sums


@dataclass
class _BackwardPass:
    """Holds a micro-batch between its forward pass and the rest of its backward pass.

    x          input of each layer that has not been differentiated yet, (B, T, D) each, from the first on
    arguments  layer kind -> all that the decoder passes besides the hidden states (positions, masks)
    back       dL/dy, (B, T, D), of the last of those layers
    share      of what its objective is a mean of, in that of all micro-batches
    loss       its objective
    """

    x: list[Tensor]
    arguments: dict[str | None, dict[str, Any]]
    back: Tensor
    share: float
    loss: float

    def back_through(
        self, layer: Layer, weights: Sequence[Tensor], g: Sums, a: Sums, of_one: float, *, on: bool
    ) -> None:
        """Add the last layer's dL/dW to g, and `of_one` times its square to a, for the weights that these have.

        `on` says whether the layer before it comes next.
        """
        x = self.x.pop().requires_grad_(on)
        with torch.enable_grad():
            y = layer(x, self.arguments[layer.kind])
        gradients = list(torch.autograd.grad(y, [*weights, *([x] if on else [])], self.back))
        if on:
            self.back = gradients.pop()
        for weight in weights:
            gradient = gradients.pop(0).float()
            if weight in g:
                g[weight].add_(gradient, alpha=self.share)
            if weight in a:
                a[weight].addcmul_(gradient, gradient, value=of_one)


class _Returns(InPlace):
    """Stands in for a layer, and returns what the last one has returned."""

    def __init__(self, layer: nn.Module, returned: Any) -> None:
        super().__init__(layer)
        self.returned = returned

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.returned


def _forward(
    model: Decoder,
    pairs: Sequence[tuple[Tensor, Tensor]],
    first: int,
    wait: Wait,
    objective: Objective = NEXT_TOKEN,
    *,
    quiet: bool = False,
) -> list[_BackwardPass]:
    """Run each layer for all micro-batches, (ids, targets), and keep the inputs of the layers from `first` on.

    Each micro-batch's objective is differentiated with respect to the output of the last layer. A `quiet` pass shows no
    progress of its own.
    """
    entered = (enter(model, ids, sliced=True) for ids, _ in pairs)
    entries = [replace(entry, x=wait(entry.x)) for entry in entered]
    x, total = [entry.x for entry in entries], sum(objective.count(targets) for _, targets in pairs)
    kept = [list[Tensor]() for _ in pairs]
    layers = model.passing(range(len(model.stack)))
    for number, layer in layers if quiet else show_progress(layers, "states", "layer", total=len(model.stack)):
        for place, entry in enumerate(entries):
            if number >= first:
                kept[place].append(x[place])
            with torch.no_grad():
                x[place] = wait(layer(x[place], entry.arguments[layer.kind]))
    passes = []
    for inputs, entry, y, (ids, targets) in zip(kept, entries, x, pairs, strict=True):
        loss, back = _back(model, y, ids, targets, objective)
        share = objective.count(targets) / total
        passes.append(_BackwardPass(inputs, entry.arguments, wait(back), share, loss))
    return passes


def _names_of_weights(layer: Layer, weights: Collection[Tensor]) -> list[str]:
    """Return the names of those parameters of a layer that are among `weights`."""
    return [name for name, weight in layer.module.named_parameters() if weight in weights]


def _back(model: Decoder, y: Tensor, ids: Tensor, targets: Tensor, objective: Objective) -> tuple[float, Tensor]:
    """Return a micro-batch's objective L and dL/dy, where y leaves the last layer, (B, T, D) both."""
    y = y.detach().requires_grad_()
    modules = model.swap_stack(nn.ModuleList(_Returns(layer, model.family.wrap(y)) for layer in model.stack))
    try:
        with torch.enable_grad():
            logits = model.model(input_ids=ids.to(model.embed.weight.device), use_cache=False).logits.float()
            loss = objective.value(logits, targets.to(logits.device))
            (back,) = torch.autograd.grad(loss, y)
    finally:
        model.swap_stack(modules)
    return float(loss.detach()), back


@contextmanager
def require_gradients(model: Decoder, weights: Iterable[Tensor]) -> Iterator[None]:
    """Let these weights alone require a gradient. Afterwards flags are as before, and no weight has a gradient."""
    before = [(parameter, parameter.requires_grad) for parameter in model.model.parameters()]
    model.model.zero_grad()
    model.model.requires_grad_(False)
    try:
        for weight in weights:
            weight.requires_grad_()
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def make_repeatable(model: Decoder) -> AbstractContextManager[None]:
    """Return a context in which attention on a GPU is plain products, so that its backward pass repeats to the bit.

    The backward pass of fused kernels adds in the order of its threads, so that scores would differ from run to run.
    """
    return sdpa_kernel(SDPBackend.MATH) if model.embed.weight.device.type == "cuda" else nullcontext()
