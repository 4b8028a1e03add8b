"""Captures a step of decoding once, so that a replay costs the host one launch instead of one for every kernel.

A captured step computes on the same addresses each time, and whatever Python decides on the way is decided once. So it
takes its token from a fixed buffer, its cache (`capturable_cache`) keeps how far it is filled on the device, and it may
not wait for the device. On CUDA a step that does any other thing ends in an error, which the point then records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache, StaticLayer, StaticSlidingWindowLayer

UNCAPTURED = 3  # runs before the one that is captured, in which libraries choose kernels and allocate what they need


class StepGraph(Protocol):
    """Holds one captured step."""

    def capture(self, step: Callable[[], None], rewind: Callable[[], None]) -> None:
        """Capture what `step` does; it may run before, and `rewind` restores the state that it starts from."""

    def replay(self) -> None:
        """Do again what the captured step did, on the same memory."""


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
        held: Any = ((self.keys, key_states), (self.values, value_states))
        for kept, new in held:
            kept.copy_(kept.roll(-1, dims=-2))
            kept[:, :, -1:].copy_(new)
        return self.keys, self.values


def capturable_cache(config: Any, depth: int, tokens: int) -> StaticCache:
    """Return a static cache for `tokens` tokens whose layers do alike in every step behind `depth` tokens.

    A window that never fills is no window, and one that is full stays so. Raises ValueError for one that fills between.
    """
    cache = StaticCache(config=config, max_cache_len=tokens)
    layers: list[Any] = list(cache.layers)
    for number, layer in enumerate(layers):
        if not layer.is_sliding:
            continue
        window = layer.max_cache_len
        if depth < window < tokens:
            raise ValueError(
                f"the model's window of {window} tokens fills between {depth} and {tokens}, where a captured step "
                f"would have to change; decode behind {window} tokens or more, or with fewer --decode-steps"
            )
        cache.layers[number] = StaticLayer(tokens) if tokens <= window else FullWindow(tokens, window)
    return cache
