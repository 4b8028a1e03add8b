"""Checks the timing: a model timed against its copy by the protocol of bench.speed must come out as fast as itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from bench.doctor import tiny_model
from bench.doctor.finding import Finding, judged
from bench.plan.protocol import MIN_ROUNDS, Protocol
from bench.speed.benchmark import SpeedBenchmark, clock_of
from bench.system import gpu
from bench.system.console import say

# Of 95 % intervals one in twenty leaves 1 out by chance, and hardly ever three in a row; a bias stays.
TRIES = 3
MODES: tuple[dict[str, Any], ...] = ({},)  # fields of Protocol for each way to decode that the device has: eager


def check(device: torch.device) -> Iterator[Finding]:
    """Time prefill and decode in each mode that the device has."""
    for mode in MODES:
        protocol = Protocol(prefill=(32,), decode=(16,), speed_rounds=MIN_ROUNDS, **mode)
        yield from against_itself(device, protocol, ", ".join(map(str, mode.values())) or "eager")


def against_itself(device: torch.device, protocol: Protocol, mode: str) -> Iterator[Finding]:
    """Time the doctor's model against a copy, up to TRIES times while an interval leaves out that they are equal."""
    model = tiny_model.build(device, torch.float32 if device.type == "cpu" else torch.bfloat16).model
    benchmark = SpeedBenchmark(protocol, clock_of([device]), [device], gpu.find([device])[0], lambda doing: None)
    held = dict[str, list[dict[str, Any]]]()
    for number in range(TRIES):
        for point in benchmark.time(copy.deepcopy(model), model):
            held.setdefault(point["kind"], []).append(point)
        if all(_is_equal(points[-1]) for points in held.values()):
            break
        if number + 1 < TRIES:
            say("timing again: a model was not as fast as itself")
    for kind, points in held.items():
        yield _judged(f"timing, {kind}, {mode}", points)


def _is_equal(point: dict[str, Any]) -> bool:
    return "speedup" in point and point["speedup_low"] <= 1 <= point["speedup_high"]


def _judged(what: str, points: list[dict[str, Any]]) -> Finding:
    wrong, last = list[str](), points[-1]
    if "speedup" not in last:
        wrong = [last.get("failed") or f"out of memory: {last.get('out_of_memory')}"]
        return judged(what, wrong, "")
    if not any(map(_is_equal, points)):
        wrong = [
            f"a model is {last['speedup']:.3f} times as fast as itself, "
            f"{last['speedup_low']:.3f} to {last['speedup_high']:.3f}, and was not equal in {len(points)} tries"
        ]
    found = {name: last[name] for name in ("dense_ms", "pruned_ms", "speedup", "speedup_low", "speedup_high", "flags")}
    marks = "".join(f", {flag}" for flag in last["flags"])
    interval = f"{last['speedup_low']:.3f} to {last['speedup_high']:.3f} times as fast as itself"
    return judged(what, wrong, f"{last['dense_ms']:.2f} ms, {interval}{marks}", tries=len(points), **found)
