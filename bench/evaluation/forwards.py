"""Runs many forwards of a model: one after the other, or all of them through each layer before the next layer.

The second order is for weights in files (methods.model.layer_store). A model that is larger than the memory reads them
from the disk each time it uses them. There, the forwards of a chunk are entered first: the model is called, and notes
what it passes to its layers without running any. Then each layer runs for all of them, and its weights are used once
for the chunk. At last the model is called again with what has left the last layer, for whatever stands behind it.
Every product is that of a plain forward, so that the results are equal to the last bit.

Letters: B = batch, T = tokens of a forward, M = those of them whose states are asked for, D = residual width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from methods.model.activations import EntryNoted
from methods.model.architectures import Family, has_mixers
from methods.model.decoder import Decoder
from methods.model.layer import states_of
from methods.model.layer_store import LayerStore
from methods.model.parts import InPlace

About = TypeVar("About")


@dataclass(frozen=True)
class Sweeping:
    """Says how a model is scored whose weights lie in files.

    room   the bytes of states and masks that may wait between two layers; a call that takes more is a chunk
    store  has the weights
    """

    room: int
    store: LayerStore | None = None


class Past:
    """Holds the keys and values that some calls of a model leave to later ones."""

    def __init__(self) -> None:
        # of no configuration, so that it keeps all that it is given, whatever the layer's window; of forwards that are
        # entered only it has the lengths, on which masks and positions depend
        self.cache = DynamicCache()
        self.of_layer: dict[int, DynamicCache] = defaultdict(DynamicCache)


@dataclass(frozen=True)
class Call:
    """Says what one forward reads, and which of its states are wanted.

    inputs     what the model is called with, input_ids (B, T) among it; the cache is added
    positions  (M,) into the flattened B T tokens
    past       of earlier calls, to which this one adds; None: there are no others
    stay       (P,) places in `past` that later calls look at, this call's own included; None: all of them
    """

    inputs: dict[str, Any]
    positions: Tensor
    past: Past | None = None
    stay: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Return the number of tokens, B T."""
        return int(self.inputs["input_ids"].numel())

    def run(self, model: PreTrainedModel) -> None:
        """Call the model, and drop from the past what no later call looks at."""
        cache = None if self.past is None else self.past.cache
        model(**self.inputs, cache=cache, use_cache=cache is not None)
        if cache is not None:
            self.drop(cache)

    def drop(self, cache: DynamicCache) -> None:
        """Drop the tokens of a cache that no later call attends to."""
        for layer in cast(list[Any], cache.layers) if self.stay is not None else ():
            if layer.is_initialized:  # one without an attention has nothing
                stay = self.stay.to(layer.keys.device)  # type: ignore[union-attr]
                layer.keys, layer.values = layer.keys[:, :, stay], layer.values[:, :, stay]


@torch.no_grad()
def read(
    model: PreTrainedModel,
    calls: Iterable[tuple[Call, About]],
    bar: Any,
    sweeping: Sweeping | None = None,
    before: nn.Module | None = None,
) -> Iterator[tuple[About, Tensor]]:
    """Yield for each call its companion, and the states at its positions that `before` would read, (M, D).

    bar       a bar of methods.console, in tokens
    sweeping  how the calls of a chunk go through a layer before the next one; None: one call after the other
    before    a module behind the layers, which reads nothing; None: the head
    """
    reader: nn.Module = before or model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if sweeping is None:
        for call, about in calls:
            states = read_states(model, call, reader)
            bar.update(call.tokens)
            yield about, states
        return
    sweep = _Sweep(model, reader, sweeping.store)
    for chunk in sweep.chunks(calls, sweeping.room):
        sweep.run([entered for entered, _ in chunk], bar)
        chunk.reverse()
        while chunk:  # what has been read is let go
            entered, about = chunk.pop()
            yield about, sweep.leave(entered)


def read_states(model: PreTrainedModel, call: Call, reader: nn.Module) -> Tensor:
    """Call a model, and return the states at the call's positions as a module behind the layers gets them, (M, D)."""
    with _gather(reader, call.positions) as states:
        call.run(model)
    return states[0]


def to_masks(model: PreTrainedModel, visible: Tensor, distance: Tensor) -> Tensor | dict[str, Tensor | None]:
    """Return what a model takes for a mask: an additive (1, 1, T, P), or one per type of its layers; of mixers none.

    visible   bool (T, P), which of the P tokens each of the T tokens sees
    distance  (T, P), how far in front of it they lie
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    near = visible if window is None else visible & (distance < window)
    zeros = torch.zeros(visible.shape, dtype=model.dtype, device=visible.device)
    lowest = torch.finfo(model.dtype).min  # not -inf: softmax kernels have trouble with blocks of nothing else
    full, sliding = (zeros.masked_fill(~allowed, lowest)[None, None] for allowed in (visible, near))
    if has_mixers(config):
        return {"full_attention": full, "linear_attention": None}
    if getattr(config, "layer_types", None):
        return {"full_attention": full, "sliding_attention": sliding}
    return sliding


@contextmanager
def _gather(reader: nn.Module, positions: Tensor) -> Iterator[list[Tensor]]:
    """Yield a list that gets the inputs of a module at `positions`, (B, T, D) -> (M, D). The module reads nothing."""
    gathered: list[Tensor] = []

    def gather(_reader: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = inputs[0].flatten(0, 1)
        gathered.append(states[positions.to(states.device)])
        return states[None, :0], *inputs[1:]

    handle = reader.register_forward_pre_hook(gather)
    try:
        yield gathered
    finally:
        handle.remove()


class _Place(InPlace):
    """Stands where a layer is, notes what it is called with, and passes the hidden states on.

    The last one ends the forward, or returns `result` where it has one.
    """

    def __init__(self, layer: nn.Module, family: Family, *, is_last: bool) -> None:
        super().__init__(layer)
        self.family, self.is_last = family, is_last
        self.given: tuple[tuple[Any, ...], dict[str, Any]] = (), {}
        self.x: Tensor | None = None
        self.result: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.x, self.given = hidden_states, (args, kwargs)
        if self.is_last and self.result is None:
            raise EntryNoted
        return self.family.wrap(hidden_states if self.result is None else self.result)


@dataclass
class _Entered:
    """Holds a call between two layers.

    x       (B, T, D) what enters the next layer
    given   what each layer is called with besides
    nbytes  bytes of both
    """

    call: Call
    x: Tensor
    given: list[tuple[tuple[Any, ...], dict[str, Any]]]
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        storages = [tensor.untyped_storage() for tensor in _tensors([self.x, self.given, self.call.inputs])]
        self.nbytes = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def run(self, layer: nn.Module, number: int) -> None:
        """Run the layer of that number, with the keys and values that earlier calls have left there."""
        past, (args, kwargs) = self.call.past, self.given[number]
        if past is None:
            self.x = states_of(layer(self.x, *args, **kwargs))
            return
        cache, lengths = past.of_layer[number], past.cache
        args = tuple(cache if value is lengths else value for value in args)
        kwargs = {name: cache if value is lengths else value for name, value in kwargs.items()}
        self.x = states_of(layer(self.x, *args, **kwargs))
        self.call.drop(cache)


class _Sweep:
    """Runs calls of a model through each layer before the next one. Places stand where the layers are meanwhile."""

    def __init__(self, model: PreTrainedModel, reader: nn.Module, store: LayerStore | None) -> None:
        self.model, self.reader = model, reader
        self.decoder = Decoder(model, store)
        self.layers = self.decoder.stack
        last = len(self.layers) - 1
        self.places = [
            _Place(layer, self.decoder.family, is_last=slot == last) for slot, layer in enumerate(self.layers)
        ]

    def chunks(self, calls: Iterable[tuple[Call, About]], room: int) -> Iterator[list[tuple[_Entered, About]]]:
        """Yield lists of entered calls, as many as may wait between two layers, and one at least."""
        chunk, total = list[tuple[_Entered, About]](), 0
        for call, about in calls:
            entered = self.enter(call)
            if chunk and total + entered.nbytes > room:
                yield chunk
                chunk, total = [], 0
            chunk.append((entered, about))
            total += entered.nbytes
        if chunk:
            yield chunk

    def enter(self, call: Call) -> _Entered:
        """Embed the inputs of a call, and note what each layer would be called with. The past gets its final length."""
        cache = None if call.past is None else call.past.cache
        with self._places(None), suppress(EntryNoted):
            self.model(**call.inputs, cache=cache, use_cache=cache is not None)
        x = self.places[0].x
        if x is None:
            raise RuntimeError("the model did not call its first layer")
        if cache is not None:
            one_number = x[:, None, :, :1]  # per token, (B, 1, T, 1): a cache of no numbers has no length
            for slot in range(len(self.layers)):
                cache.update(one_number, one_number, slot)
            call.drop(cache)
        return _Entered(call, x, [place.given for place in self.places])

    def run(self, chunk: list[_Entered], bar: Any) -> None:
        """Run each layer for all calls of a chunk before the next layer."""
        tokens, shown_tokens = sum(entered.call.tokens for entered in chunk), 0
        for number, layer in self.decoder.passing(range(len(self.layers))):
            for entered in chunk:
                entered.run(layer.module, number)
            done = tokens * (number + 1) // len(self.layers)
            bar.update(done - shown_tokens)
            shown_tokens = done

    def leave(self, entered: _Entered) -> Tensor:
        """Run what stands behind the layers, and return what the reader would read, (M, D)."""
        with _gather(self.reader, entered.call.positions) as states, self._places(entered.x):
            self.model(**entered.call.inputs, use_cache=False)
        return states[0]

    @contextmanager
    def _places(self, result: Tensor | None) -> Iterator[None]:
        """Put the places where the layers are, and let the last one return `result`, or end the forward."""
        self.places[-1].result = result
        self.decoder.swap_stack(nn.ModuleList(self.places))
        try:
            yield
        finally:
            self.decoder.swap_stack(self.layers)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
