"""Runs calibration tokens through a model, and gives the states in front of each layer, in it and behind it.

Letters: B = sequences, T = tokens, D = residual width.

Padding is on the right and attention is causal, so a real token never sees a padded one: no mask is passed, and the
states of real tokens are those of the sequence alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.console import make_bar
from methods.errors import Unsupported
from methods.model.calibration import Calibration, Wait
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.parts import InPlace


@dataclass(frozen=True)
class Entry:
    """Holds the input of the layers for one batch: that of the first layer, and the arguments of each kind of layer.

    x          (B, T, D)
    arguments  layer kind -> all that the decoder passes besides the hidden states (positions, masks)
    """

    x: Tensor
    arguments: dict[str | None, dict[str, Any]]

    def run(self, layers: Iterable[Layer], x: Tensor) -> Tensor:
        """Run x through `layers`, each with the arguments of its kind, (B, T, D) -> (B, T, D)."""
        for layer in layers:
            x = layer(x, self.arguments[layer.kind])
        return x


class EntryNoted(Exception):
    """Ends a forward whose layers have noted their arguments."""


class _Recorder(InPlace):
    """Stands in for a layer, notes its arguments, and passes the states on unchanged; the last one ends the forward."""

    def __init__(self, layer: Layer, *, is_last: bool) -> None:
        super().__init__(layer.module)
        self.layer, self.is_last = layer, is_last
        self.x: Tensor | None = None
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.x, self.arguments = hidden_states, self.layer.bind(args, kwargs)
        if self.is_last:
            raise EntryNoted
        return self.layer.family.wrap(hidden_states)


@torch.no_grad()
def enter(model: Decoder, ids: Tensor, *, sliced: bool = False) -> Entry:
    """Return the input of the layers for ids (B, T), without running a layer.

    Raises Unsupported where the residual has been cut, unless `sliced` is set.
    """
    if not sliced:
        model.refuse_sliced()
    layers = model.layers
    recorders = [_Recorder(layer, is_last=layer is layers[-1]) for layer in layers]
    modules = model.swap_stack(nn.ModuleList(recorders))
    try:
        with suppress(EntryNoted):
            model.model(input_ids=ids.to(model.embed.weight.device), use_cache=False)
    finally:
        model.swap_stack(modules)
    x = recorders[0].x
    if x is None:
        raise RuntimeError("the model did not call its first layer")
    return Entry(x, {recorder.layer.kind: recorder.arguments for recorder in recorders})


def enter_all(model: Decoder, calibration: Calibration, values_per_token: int) -> tuple[list[Entry], list[Tensor]]:
    """Return the input of the layers for each micro-batch of the calibration tokens, and its mask, (B, T).

    The first layer's input waits as the calibration says.
    """
    batches = calibration.batches(values_per_token, model.embed.weight.dtype)
    entries = (enter(model, ids) for ids, _ in batches)
    return [replace(entry, x=calibration.wait(entry.x)) for entry in entries], [mask for _, mask in batches]


def move_beside(states: Sequence[Tensor], *tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return lists of tensors, each tensor moved to the device of the state of its micro-batch.

    These devices differ where layers lie on several.
    """
    moved = []
    for each in tensors:
        moved.append([tensor.to(state.device) for tensor, state in zip(each, states, strict=True)])
    return moved


@dataclass(frozen=True)
class Step:
    """Holds the states of one layer for one micro-batch. Real tokens are where mask is true.

    x         (B, T, D) input of the layer
    a         (B, T, D) addition of its attention
    m         (B, T, D) addition of its MLP
    y         (B, T, D) output of the layer, of the last layer in front of the final norm
    heads     (B, T, G*R*E) input of the attention's output matrix
    channels  (B, T, I) input of the MLP's output matrix; of a mixture of experts (B, T, 0)
    mask      (B, T)
    last      (B, T) true at the last real token of each sequence
    """

    x: Tensor
    a: Tensor
    m: Tensor
    y: Tensor
    heads: Tensor
    channels: Tensor
    mask: Tensor

    def waiting(self, wait: Wait) -> Step:
        """Return the step with all states but x put to wait until the other micro-batches have theirs."""
        waiting = {name: wait(getattr(self, name)) for name in ("a", "m", "y", "heads", "channels")}
        return replace(self, **waiting)

    @property
    def last(self) -> Tensor:
        """Return where the last token of each sequence is."""
        return self.mask & ~nn.functional.pad(self.mask[:, 1:], (0, 1))


@torch.no_grad()
def collect_by_layer(
    model: Decoder, calibration: Calibration, of_layer: Callable[[int, Iterator[Step]], Sequence[Tensor]], *of: Any
) -> list[list[Tensor]]:
    """Return for each layer, on the CPU, what `of_layer` computes from its number and its steps.

    There is one step for each micro-batch. In one forward over the calibration tokens a layer takes all micro-batches
    before the next layer takes the first, so that its weights are read once where they lie in a file. Between two
    layers the states of all tokens wait, N T D numbers of the model's dtype (`Calibration.wait`). An interrupted sweep
    goes on where it stood (`Calibration.log`): `of` holds all that `of_layer` depends on.

    Raises Unsupported behind the last layer where a state is no finite number.
    """
    sweep = _ForwardSweep(model, calibration, of_layer.__module__, of_layer.__qualname__, *of)
    outcomes = list(sweep.log.kept())
    for number, steps in sweep.layers():
        outcomes.append([tensor.cpu() for tensor in of_layer(number, steps)])
        deque(steps, maxlen=0)  # the steps that it has not taken
        sweep.log.add(outcomes[-1], sweep.states)
    return outcomes


@torch.no_grad()
def run_steps(model: Decoder, calibration: Calibration) -> Iterator[tuple[int, Step]]:
    """Yield (layer, Step) of each layer for each micro-batch, in the order of `collect_by_layer`."""
    for number, steps in _ForwardSweep(model, calibration).layers():
        for step in steps:
            yield number, step


class _ForwardSweep:
    """Runs the calibration tokens through the model, layer by layer; `of` says what its log is of."""

    def __init__(self, model: Decoder, calibration: Calibration, *of: Any) -> None:
        self.model, self.wait = model, calibration.wait
        entries, masks = enter_all(model, calibration, values_of_a_step(model))
        self.arguments = [entry.arguments for entry in entries]
        self.log = calibration.log([entry.x for entry in entries], *of)
        del entries  # with the first layer's input
        self.states = self.log.take()
        (self.masks,) = move_beside(self.states, masks)
        self.sound = torch.ones((), device=self.states[0].device, dtype=torch.bool)

    def layers(self) -> Iterator[tuple[int, Iterator[Step]]]:
        """Yield the number of each layer that is not done, and its steps. Take these before the next layer."""
        layers, batches = len(self.model.stack), len(self.states)
        with make_bar(batches * layers, "reading calibration tokens", "layer", batches * self.log.done) as bar:
            for number, layer in self.model.passing(range(self.log.done, layers)):
                yield number, self.steps(layer, bar)
        refuse_overflow(self.sound)

    def steps(self, layer: Layer, bar: Any) -> Iterator[Step]:
        for batch, (mask, given) in enumerate(zip(self.masks, self.arguments, strict=True)):
            step = run_any_step(layer, self.states[batch], given[layer.kind], mask)
            self.states[batch] = self.wait(step.y)
            yield step
            self.sound &= step.y.isfinite().all().to(self.sound.device)
            bar.update()


@torch.no_grad()
def run_step(layer: Layer, x: Tensor, arguments: dict[str, Any], mask: Tensor) -> Step:
    """Return the step of one layer on its input, (B, T, D).

    Of a removed sublayer a or m is zero, and heads or channels are (B, T, 0). Raises Unsupported where a state is no
    finite number.
    """
    step = run_any_step(layer, x, arguments, mask)
    refuse_overflow(step.y.isfinite().all())
    return step


def refuse_overflow(sound: Tensor) -> None:
    """Raise Unsupported for states that have overflown: unless `sound`, (), is true."""
    if not sound:  # here a host waits for its GPU
        raise Unsupported("states of a layer overflow; load the model in bfloat16 or float32")


def run_any_step(layer: Layer, x: Tensor, arguments: dict[str, Any], mask: Tensor) -> Step:
    """Return the step of one layer like `run_step`, also where states are no finite numbers."""
    x = x.to(layer.device)
    empty = x[..., :0]
    with layer.visiting(), ExitStack() as stack:
        heads = stack.enter_context(collect_inputs(layer.out)) if layer.has_attention else [empty]
        one_mlp = layer.has_mlp and layer.experts is None
        channels = stack.enter_context(collect_inputs(layer.down)) if one_mlp else [empty]
        a = layer.attend(x, arguments)
        m = layer.transform(x if layer.parallel else x + a)
    wide = channels[0].reshape(*x.shape[:2], channels[0].shape[-1])  # some families flatten B and T here
    return Step(x, a, m, x + a + m, heads[0], wide, mask.to(x.device))


def values_of_a_step(model: Decoder) -> int:
    """Return how many numbers one token has in memory during a step."""
    return 8 * model.config.hidden_size + max(map(values_of_an_mlp, model.layers))


def values_of_an_mlp(layer: Layer) -> int:
    """Return how many numbers the MLP of a layer has in memory for one token."""
    if layer.experts is not None:
        return layer.experts.values
    return 4 * layer.down.in_features if layer.has_mlp else 0


@contextmanager
def collect_inputs(matrix: nn.Linear) -> Iterator[list[Tensor]]:
    """Yield a list that fills with the inputs of a matrix, in the order of its calls."""
    entered: list[Tensor] = []
    hook = matrix.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    try:
        yield entered
    finally:
        hook.remove()


class States:
    """Holds a model's states of every micro-batch, (B, T, D) each, behind a number of half layers.

    wait  keeps them meanwhile, as `Calibration.wait` does
    """

    def __init__(self, model: Decoder, entries: list[Entry], wait: Wait) -> None:
        self.model, self.layers, self.entries, self.halves, self.wait = model, model.layers, entries, 0, wait
        self.x = [entry.x for entry in entries]

    def advance(self, halves: int) -> list[Tensor]:
        """Run the layers up to `halves` half layers from the start, and return the states there."""
        while self.halves < halves:
            number, second = divmod(self.halves, 2)
            layer, wait, halves_done = self.layers[number], self.wait, 1
            arguments = [entry.arguments[layer.kind] for entry in self.entries]
            self.model.read_ahead(number + 1)
            with layer.visiting():
                if second and layer.has_mlp:
                    self.x = [wait(x.to(layer.device) + layer.transform(x)) for x in self.x]
                elif not second and halves > self.halves + 1:
                    self.x, halves_done = [wait(layer(x, given)) for x, given in zip(self.x, arguments, strict=True)], 2
                elif not second:
                    moved = [x.to(layer.device) for x in self.x]
                    self.x = [wait(x + layer.attend(x, given)) for x, given in zip(moved, arguments, strict=True)]
            self.halves += halves_done
        return self.x
