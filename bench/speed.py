"""How fast a model is: prefill and decode timed apart, the same way for every method.

prefill  one forward over (batch, length) random ids that fills a key-value cache; only the last position has logits
decode   one forward of a single token per sequence on a dynamic cache that already holds `context` tokens

Warm-up calls are dropped, every other call is kept in milliseconds. A device that works asynchronously is waited for on
both sides of the clock. Ids come from a seeded generator, and no end of sequence stops anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from bench.spec import Protocol

WARM_UP = 3  # calls before the first that counts


@torch.inference_mode()
def measure(model: Any, protocol: Protocol) -> dict[str, Any]:
    """Raw samples of prefill and decode, as bench.record lays them down under `speed`."""
    batch, length, context = protocol.speed_batch, protocol.prefill_length, protocol.decode_context
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, max(length, context)), generator=generator).to(model.device)

    def prefill() -> None:
        model(input_ids=ids[:, :length], use_cache=True, logits_to_keep=1)

    cache = model(input_ids=ids[:, :context], use_cache=True, logits_to_keep=1).cache

    def step() -> None:
        model(input_ids=ids[:, :1], cache=cache, use_cache=True, logits_to_keep=1)

    return {
        "prefill": {"batch": batch, "length": length, "ms": _samples(prefill, protocol.speed_repeats, model.device)},
        "decode": {"batch": batch, "context": context, "ms": _samples(step, protocol.decode_steps, model.device)},
        "threads": torch.get_num_threads(),
        "cache": type(cache).__name__,
        "warm_up": WARM_UP,
    }


def _samples(call: Callable[[], None], repeats: int, device: torch.device) -> list[float]:
    """Milliseconds of `repeats` calls after the warm-up."""
    samples = []
    for _ in range(WARM_UP + repeats):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        samples.append((time.perf_counter() - start) * 1e3)
    return samples[WARM_UP:]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
