"""Makes what is timed, prefill and decode of one model, and counts the work in it.

Both run on a key-value cache that is either dynamic, growing with every token, or static, allocated once for all
tokens. `compile` puts torch.compile with its default mode around the model's forward; a part that cannot be compiled
is an error and is not run uncompiled. In the mode `graph` each decode step is captured once and replayed.

A captured step launches all its kernels in one call. It computes on the same addresses each time, and whatever Python
decides on the way is decided once. So it takes its token from a fixed buffer, its cache (`make_capturable_cache`)
keeps how far it is filled on the device, and it may not wait for the device. On CUDA a step that does any other thing
ends in an error, and the point then records it.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    LinearAttentionCacheLayerMixin,
    StaticCache,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from bench.plan.protocol import Protocol
from bench.records.speed_results import PointMemory, PointTiming
from bench.speed.timing import Workload
from methods.model.decoder import Decoder, positions_behind_cache
from methods.model.sizes import cache_bytes_read, macs_behind, macs_per_token

UNCAPTURED = 3  # runs before the one that is captured, in which libraries choose kernels and allocate what they need


class StepGraph(typing.Protocol):
    """Holds one captured step."""

    def capture(self, step: Callable[[], None], rewind: Callable[[], None]) -> None:
        """Capture what `step` does. It may run before that, and `rewind` restores the state that it starts from."""

    def replay(self) -> None:
        """Run the captured step again, on the same memory."""


class CudaGraph:
    """Captures on the current CUDA device, as torch.cuda.graph does."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def capture(self, step: Callable[[], None], rewind: Callable[[], None]) -> None:
        """Run `step` a few times beside the main stream, as torch asks for, then capture it without running it."""
        rewind()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(UNCAPTURED):
                step()
                rewind()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(self.graph):
            step()

    def replay(self) -> None:
        """Launch the whole step."""
        self.graph.replay()


class FullWindow(StaticSlidingWindowLayer):  # type: ignore[no-untyped-call]
    """Keeps a window that is full before the first captured step, and then always takes the same way."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Move the window by one token in place, without the host's index that the class of transformers makes."""
        if self.cumulative_length_int < self.max_cache_len or key_states.shape[-2] != 1:
            return super().update(key_states, value_states, *args, **kwargs)
        self.cumulative_length_int += 1
        pairs: Any = ((self.keys, key_states), (self.values, value_states))
        for kept, new in pairs:
            kept.copy_(kept.roll(-1, dims=-2))
            kept[:, :, -1:].copy_(new)
        return self.keys, self.values


def make_capturable_cache(config: Any, depth: int, tokens: int) -> StaticCache:
    """Return a static cache for `tokens` tokens whose layers do alike in every step behind `depth` tokens.

    A window that never fills is no window, and a full one stays full. Raises ValueError for one that fills between.
    """
    cache = StaticCache(config=config, max_cache_len=tokens)
    layers: list[Any] = list(cache.layers)
    for number, layer in enumerate(layers):
        if not cache.is_sliding[number]:
            continue
        window = layer.max_cache_len
        if depth < window < tokens:
            raise ValueError(
                f"the model's window of {window} tokens fills between {depth} and {tokens}, where a captured step "
                f"would have to change; decode behind {window} tokens or more, or with fewer --decode-steps"
            )
        cache.layers[number] = StaticLayer(tokens) if tokens <= window else FullWindow(tokens, window)
    return cache


def has_states(cache: Any) -> bool:
    """Say whether layers of a cache hold the states of mixers, which cannot go back to an earlier token."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


FILLED = (
    16_384  # tokens of one forward that fills the cache of captured steps, which is not to need more room than they
)


@dataclass(frozen=True)
class TimedPoint:
    """Names a size: `batch` prompts of `tokens` (prefill), or single tokens behind contexts of `tokens` (decode).

    mode  "graph" for captured steps, "eager" for the same launched one by one; "" where a protocol has no captured ones
    """

    kind: str
    batch: int
    tokens: int
    mode: str = ""

    def timing(self, **values: Any) -> PointTiming:
        """Return the timing of this point as a record holds it, with these values."""
        return PointTiming(**self._names, **values)

    def memory(self, **values: Any) -> PointMemory:
        """Return the memory of this point as a record holds it, with these values."""
        return PointMemory(**self._names, **values)

    @property
    def _names(self) -> dict[str, Any]:
        """Return the fields of bench.records.speed_results.SizedPoint."""
        size = {"length" if self.kind == "prefill" else "context": self.tokens}
        return {"kind": self.kind, "batch": self.batch, **size, "mode": self.mode or None}

    def __str__(self) -> str:
        what = "prefill of" if self.kind == "prefill" else "decode behind"
        return f"{what} {self.tokens} tokens, batch {self.batch}" + (f", {self.mode}" if self.mode else "")


def points_of_protocol(protocol: Protocol) -> list[TimedPoint]:
    """Return all sizes at the batches of a protocol, and the first of each kind at 1, 2, 4, ... up to `max_batch`.

    Points are in the order of rising batch. Where steps are captured, the points at the protocol's batches follow once
    more as eager ones, behind the captured ones.
    """
    sizes = {"prefill": protocol.prefill, "decode": protocol.decode}
    sweep = [2**power for power in range(protocol.max_batch.bit_length())]
    points = [TimedPoint(kind, batch, size) for kind in sizes for batch in protocol.batches for size in sizes[kind]]
    points += [TimedPoint(kind, batch, size) for kind in sizes for batch in sweep for size in sizes[kind][:1]]
    if protocol.mode == "graph":
        eager = [replace(point, mode="eager") for point in points if point.batch in protocol.batches]
        points = [replace(point, mode="eager" if point.kind == "prefill" else "graph") for point in points] + eager
    kinds, modes = list(sizes), ("", "graph", "eager")
    return sorted(set(points), key=lambda p: (p.batch, kinds.index(p.kind), p.tokens, modes.index(p.mode)))


def steps_of_point(point: TimedPoint, protocol: Protocol) -> int:
    """Return the number of calls in one pass."""
    return 1 if point.kind == "prefill" else protocol.decode_steps


def workload_of_point(
    model: Any, point: TimedPoint, protocol: Protocol, graph: Callable[[], StepGraph] = CudaGraph
) -> Workload:
    """Return the workload of `model` at a point, with a `graph` of its own where its steps are captured.

    Raises ValueError when the model has too few positions for it.
    """
    count = steps_of_point(point, protocol)
    tokens = point.tokens + (count if point.kind == "decode" else 0)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and tokens > room:
        raise ValueError(f"{tokens} tokens are asked for, and the model has {room} positions")
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (point.batch, tokens), generator=generator).to(model.device)
    if point.mode == "graph":
        captured = _CapturedDecode(model, ids, point.tokens, graph())
        return Workload(captured.step, captured.reset, count, captured.launched)
    forward = torch.compile(model, fullgraph=True) if protocol.compile else model
    run = (_Prefill if point.kind == "prefill" else _Decode)(model, forward, ids, point.tokens, protocol.cache)
    return Workload(run.step, run.reset, count)


class _CachedRun:
    """Holds the state of a workload: ids (batch, tokens); `forward` is `model`, compiled where the protocol says so."""

    def __init__(self, model: Any, forward: Any, ids: Tensor, size: int, kind: str) -> None:
        self.model, self.forward, self.ids, self.size, self.kind = model, forward, ids, size, kind
        self.positions = positions_behind_cache(model, 0, ids.shape[1])
        self.cache: Any = None
        self.last: Any = None  # kept until the next reset, so that freeing it is not timed

    def empty_cache(self) -> Any:
        """Return a new static cache, or None, for which the model makes a dynamic one."""
        if self.kind == "dynamic":
            return None
        from transformers import StaticCache

        return StaticCache(config=self.model.config, max_cache_len=self.ids.shape[1])

    def feed(self, forward: Any, start: int, end: int) -> Any:
        positions = {name: each[:, start:end] for name, each in self.positions.items()}
        ids = self.ids[:, start:end]
        return forward(input_ids=ids, cache=self.cache, use_cache=True, logits_to_keep=1, **positions)


class _Prefill(_CachedRun):
    def reset(self) -> None:
        self.last = None
        if self.cache is None:
            self.cache = self.empty_cache()
        else:
            self.cache.reset()

    def step(self) -> Any:
        self.last = self.feed(self.forward, 0, self.size)
        return self.last


class _Decode(_CachedRun):
    position = 0

    def reset(self) -> None:
        """Crop the cache to the depth, or fill a new one where windows let tokens go or mixers carry states."""
        if self.cache is not None and self._remembers_all():
            for layer in self.cache.layers:
                if layer.is_initialized:  # a layer without attention never is
                    layer.crop(self.size - self.position)
        else:
            self.cache = self.last = None
            self.cache = self.empty_cache()
            self.cache = self.feed(self.model, 0, self.size).cache
        self.position = self.size

    def step(self) -> Any:
        self.last = self.feed(self.forward, self.position, self.position + 1)
        self.position += 1
        return self.last

    def _remembers_all(self) -> bool:
        if has_states(self.cache):
            return False
        windows = [layer.get_max_length() for layer in self.cache.layers if layer.is_sliding]
        return all(self.position < window for window in windows)


class _CapturedDecode(_CachedRun):
    """Replays a captured step: the host copies a token into its place and launches the whole step at once."""

    def __init__(self, model: Any, ids: Tensor, size: int, graph: StepGraph) -> None:
        super().__init__(model, model, ids, size, "static")
        self.graph, self.token = graph, ids[:, size : size + 1].clone()
        self.place = torch.full_like(self.token, size)
        self.refills = False
        self.position = size

    def reset(self) -> None:
        """Fill the cache and capture a step, or bring the cache back to the depth."""
        if self.cache is None:
            self.cache = make_capturable_cache(self.model.config, self.size, self.ids.shape[1])
            self.refills = any(self.cache.is_sliding) or has_states(self.cache)
            self.graph.capture(self.launched, self._rewind)
        self._rewind()
        self.position = self.size

    def step(self) -> Any:
        self.token.copy_(self.ids[:, self.position : self.position + 1])
        self.graph.replay()
        self.position += 1
        return self.last

    def launched(self) -> None:
        """Feed what lies in `token`. Layers with windows count positions on the host, so that they get them here."""
        positions = {"position_ids": self.place} if self.refills else {}
        self.last = self.model(input_ids=self.token, cache=self.cache, use_cache=True, logits_to_keep=1, **positions)
        self.place.add_(1)

    def _rewind(self) -> None:
        """Set the cache's length back. An empty one, or one that drops tokens or carries states, is filled anew."""
        layers = [] if self.refills else [layer for layer in self.cache.layers if layer.is_initialized]
        if layers:
            for layer in layers:
                layer.cumulative_length.fill_(self.size)
        else:
            self.cache.reset()
            part = self.size if self.refills else max(1, FILLED // len(self.ids))
            for start in range(0, self.size, part):
                self.feed(self.model, start, min(start + part, self.size))
        self.place.fill_(self.size)


def predict_speedup(dense: Decoder, pruned: Decoder, point: TimedPoint) -> dict[str, float]:
    """Return the speed-up that the removed work alone would bring, without units.

    speedup_by_macs   multiply-accumulates; a prefill computes the head once for each sequence
    speedup_by_bytes  for decode, what one step must read: every matrix once, and keys and values of the context
    """
    speedups = {"speedup_by_macs": macs_of_point(dense, point) / macs_of_point(pruned, point)}
    if point.kind == "decode":
        speedups["speedup_by_bytes"] = bytes_of_step(dense, point) / bytes_of_step(pruned, point)
    return speedups


def macs_of_point(model: Decoder, point: TimedPoint) -> int:
    """Return the multiply-accumulates of a sequence: of the whole prompt, or of the first token behind the context."""
    if point.kind == "decode":
        return macs_behind(model, point.tokens)
    each = macs_per_token(model, point.tokens)
    return point.tokens * each - (point.tokens - 1) * model.head.weight.numel()


def bytes_of_step(model: Decoder, point: TimedPoint) -> int:
    """Return the bytes of weights and cache that one decode step of the batch reads.

    Layers with a sliding window read keys and values of no more tokens than that. A mixture reads the router and the
    experts of all tokens, as if each token took different ones, as long as there are any.
    """
    images = {part for module in model.vision for part in module.modules()}
    linear = (part for part in model.model.modules() if isinstance(part, nn.Linear) and part not in images)
    weights = sum(part.weight.numel() * part.weight.element_size() for part in linear)
    for experts in (layer.experts for layer in model.layers):
        if experts is not None:
            times = {"router": 1, "experts": min(experts.count, experts.experts_per_token * point.batch)}
            weights += sum(
                times[role] * matrix.nbytes for role, matrices in experts.matrices.items() for matrix in matrices
            )
    return weights + point.batch * cache_bytes_read(model, point.tokens)
