"""Measures how fast a device multiplies matrices and moves memory: in a model's widths for estimates, and at most."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from bench.system import worker
from bench.system.memory import give_back

SECONDS = 0.15  # of each measurement; the fastest call counts, since nothing has disturbed it
PATIENCE = 120.0  # of another process that measures them
READ = {"cpu": 4096, "cuda": 16_384}  # rows and columns of a matrix that no cache holds
TOKENS, WIDTH = 256, 1024  # of the product in float64
CONTEXT, HEAD_WIDTH = 256, 64  # of the timed layer; the logits of CONTEXT tokens are scored at once
SIZES = {"cpu": (512, 16e6), "cuda": (2048, 64e6)}  # tokens of a layer's call, and the most weights of any


class Widths(NamedTuple):
    """Holds what the rate of a model's forward depends on.

    layers      how many layers go with one head
    width       of the residual, D
    heads       of all query heads of a layer
    keys        of keys and values of a layer
    mlp         of the MLP, I
    vocabulary  of the head
    """

    layers: int
    width: int
    heads: int
    keys: int
    mlp: int
    vocabulary: int

    @property
    def layer(self) -> int:
        """The number of weights of a layer."""
        return self.width * (2 * self.heads + self.keys + 3 * self.mlp)


class Rates(NamedTuple):
    """Holds what a device reaches per second.

    macs   multiply-accumulates in a forward
    bytes  of weights, where tokens come singly
    exact  multiply-accumulates in float64, in which methods sum and solve
    """

    macs: float
    bytes: float
    exact: float


@functools.cache
def measure_rates(device: str, dtype: torch.dtype, threads: int, widths: Widths) -> Rates:
    """Return the rates of a device with `threads` of torch's threads, in a dtype and a model's widths.

    A GPU is measured in a process of its own. A process that has computed there counts as a neighbour of cells that are
    timed later.
    """
    arguments = device, dtype, threads, widths
    if torch.device(device).type == "cuda":
        answer = dict[str, float]()
        limits = worker.Limits(silence=PATIENCE)
        if worker.run(_send_rates, arguments, limits=limits, hear=answer.update) is None:
            return Rates(**answer)
    return _measure_in_process(*arguments)


def _send_rates(line: worker.Channel, *arguments: Any) -> None:
    line.send(_measure_in_process(*arguments)._asdict())


def _measure_in_process(device: str, dtype: torch.dtype, threads: int, widths: Widths) -> Rates:
    target, before = torch.device(device), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        read = dtype.itemsize * rate_of_product(target, dtype, 1, READ[target.type])
        return Rates(
            rate_of_forward(target, dtype, widths), read, rate_of_product(target, torch.float64, TOKENS, WIDTH)
        )
    finally:
        torch.set_num_threads(before)
        give_back([target])  # cells need all memory of a GPU


def rate_of_forward(device: torch.device, dtype: torch.dtype, widths: Widths) -> float:
    """Return the multiply-accumulates per second of a forward whose logits are scored, from one layer and a head."""
    layers, head = widths.layers * widths.layer, widths.width * widths.vocabulary
    return (layers + head) / (
        layers / rate_of_layer(device, dtype, widths) + head / rate_of_head(device, dtype, widths)
    )


@torch.inference_mode()
def rate_of_layer(device: torch.device, dtype: torch.dtype, widths: Widths, seconds: float = SECONDS) -> float:
    """Return the multiply-accumulates per second of a layer, in smaller widths where it has more weights than SIZES.

    Norms, activations and softmax take about as long as the products where those are fast, as of bfloat16.
    """
    tokens, most = SIZES[device.type]
    smaller, E = min(1.0, math.sqrt(most / widths.layer)), HEAD_WIDTH
    H, G, D, I = (
        max(1, round(smaller * each / E)) for each in (widths.heads, widths.keys / 2, widths.width, widths.mlp)
    )
    G, D, I = math.gcd(H, G), E * D, E * I

    def weights(*shape: int) -> torch.Tensor:
        return torch.full(shape, 1 / D, dtype=dtype, device=device)

    qkv, out, up, down = weights((H + 2 * G) * E, D), weights(D, H * E), weights(2 * I, D), weights(D, I)
    x = torch.ones(tokens // CONTEXT, CONTEXT, D, dtype=dtype, device=device)

    def call() -> torch.Tensor:
        inner = F.linear(F.rms_norm(x, (D,)), qkv).view(*x.shape[:2], -1, E).transpose(1, 2)
        q, k, v = inner[:, :H], inner[:, H:-G], inner[:, -G:]  # each (rows, heads, CONTEXT, E)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != G)
        y = x + F.linear(heads.transpose(1, 2).flatten(2), out)
        gate, straight = F.linear(F.rms_norm(y, (D,)), up).chunk(2, -1)
        return y + F.linear(F.silu(gate) * straight, down)

    products = (
        sum(weight.numel() for weight in (qkv, out, up, down)) + 2 * H * E * CONTEXT
    )  # of a token, with its scores
    return tokens * products / time_fastest(call, device, seconds)


@torch.inference_mode()
def rate_of_head(device: torch.device, dtype: torch.dtype, widths: Widths, seconds: float = SECONDS) -> float:
    """Return the multiply-accumulates per second of a head whose logits are scored in float32."""
    D, most = widths.width, SIZES[device.type][1]
    V = min(widths.vocabulary, int(most / D))
    x = torch.ones(CONTEXT, D, dtype=dtype, device=device)
    head = torch.full((V, D), 1 / D, dtype=dtype, device=device)
    return CONTEXT * D * V / time_fastest(lambda: F.linear(x, head).float().logsumexp(-1), device, seconds)


def rate_of_product(device: torch.device, dtype: torch.dtype, rows: int, side: int, seconds: float = SECONDS) -> float:
    """Return the multiply-accumulates per second of (rows, side) @ (side, side). With one row each weight is one.

    The numbers differ, as weights do: a GPU draws less power for equal ones, and multiplies them faster.
    """
    sines = torch.arange(side, dtype=torch.float32, device=device).sin().to(dtype)
    x, w = sines.expand(rows, side).contiguous(), torch.outer(sines, sines)
    out = torch.empty_like(x)
    return rows * side**2 / time_fastest(lambda: torch.mm(x, w.T, out=out), device, seconds)


def rate_of_copy(device: torch.device, size: int, seconds: float = SECONDS) -> float:
    """Return the bytes per second, read and written, of a copy of `size` bytes within the device's memory."""
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / time_fastest(lambda: target.copy_(source), device, seconds)


def time_fastest(call: Callable[[], object], device: torch.device, seconds: float = SECONDS) -> float:
    """Return the seconds of the fastest call among those that fit in `seconds`, after one call to warm up."""
    once = partial(_on_gpu, device) if device.type == "cuda" else _on_cpu
    times, end = list[float](), time.perf_counter() + seconds
    call()
    while not times or time.perf_counter() < end:
        times.append(once(call))
    return min(times)


def _on_cpu(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _on_gpu(device: torch.device, call: Callable[[], object]) -> float:
    """Return the seconds that the GPU worked, by its own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    stream = torch.cuda.current_stream(device)  # `device` need not be the current one of this process
    start.record(stream)
    call()
    end.record(stream)
    end.synchronize()
    return start.elapsed_time(end) / 1e3
