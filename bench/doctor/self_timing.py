"""Checks the timing: a model timed against its copy by the protocol of bench.speed must come out as fast as itself.

Where decode steps can be captured, a captured one must also say what one says that is launched anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from bench.doctor import tiny_model
from bench.doctor.finding import Finding, judged, raised
from bench.doctor.numbers import DTYPES, apart, is_close, named
from bench.plan.protocol import MIN_ROUNDS, Protocol
from bench.speed.benchmark import SpeedBenchmark, clock_of
from bench.speed.graph import CudaGraph, StepGraph
from bench.speed.timing import Workload
from bench.speed.workloads import TimedPoint, workload
from bench.system import gpu
from bench.system.console import say
from bench.system.memory import use

# Of 95 % intervals one in twenty leaves 1 out by chance, and hardly ever three in a row; a bias stays.
TRIES = 3
NARROW = 2  # tries that say enough to be wrong although another, of a busier moment, is too wide to say anything
WIDE = 1.2  # upper over lower end of an interval that says too little
EAGER = Protocol(prefill=(32,), decode=(16,), speed_rounds=MIN_ROUNDS)
CAPTURED = replace(EAGER, cache="static", mode="graph")  # whose points are timed eagerly as well


def check(device: torch.device) -> Iterator[Finding]:
    """Time prefill and decode in each mode that the device has."""
    if device.type == "cuda":
        use(device)
        for dtype in DTYPES:
            try:
                yield captured(device, dtype, CudaGraph)
            except Exception as error:  # of a step that cannot be captured; the others are timed all the same
                yield raised(f"captured decode, {named(dtype)}", error)
        yield from against_itself(device, CAPTURED)
    else:
        yield Finding("not here", "captured decode", "steps are captured on a GPU only")
        yield from against_itself(device, EAGER)


@torch.inference_mode()
def captured(device: torch.device, dtype: torch.dtype, graph: Callable[[], StepGraph]) -> Finding:
    """Compare the logits of captured decode steps with those of eager ones on the same tokens."""
    model, kept = tiny_model.build(device, dtype).model, dict[str, torch.Tensor]()
    for mode in ("eager", "graph"):
        point = TimedPoint("decode", 2, 16, mode)
        work = workload(model, point, CAPTURED, graph)
        for _ in range(2):  # the second time on a cache that has been brought back to its depth
            work.reset()
            kept[mode] = torch.cat([_said(work) for _ in range(work.steps)], 1)
    off = apart(kept["graph"], kept["eager"])
    wrong = [] if is_close(off, dtype) else [f"logits are off by {off:.2g} of their size from those of eager steps"]
    return judged(f"captured decode, {named(dtype)}", wrong, f"logits off by {off:.1e} from eager ones", off=off)


def _said(work: Workload) -> torch.Tensor:
    """Do a step and return its logits, which the next one may overwrite."""
    output: Any = work.step()
    return output.logits.float().cpu()


def against_itself(device: torch.device, protocol: Protocol) -> Iterator[Finding]:
    """Time the doctor's model against a copy, up to TRIES times while an interval leaves out that they are equal."""
    model = tiny_model.build(device, torch.float32 if device.type == "cpu" else torch.bfloat16).model
    benchmark = SpeedBenchmark(protocol, clock_of([device]), [device], gpu.find([device])[0], lambda doing: None)
    found = dict[str, list[dict[str, Any]]]()
    for number in range(TRIES):
        for point in benchmark.time(copy.deepcopy(model), model):
            found.setdefault(f"{point['kind']}, {point.get('mode', 'eager')}", []).append(point)
        if all(_is_narrow(points[-1]) and _holds_one(points[-1]) for points in found.values()):
            break
        if number + 1 < TRIES:
            say("timing again: the intervals were wide, or left out that a model is as fast as itself")
    for kind, points in found.items():
        yield _judged(f"timing, {kind}", points)


def _holds_one(point: dict[str, Any]) -> bool:
    return "speedup" in point and point["speedup_low"] <= 1 <= point["speedup_high"]


def _is_narrow(point: dict[str, Any]) -> bool:
    return "speedup" in point and point["speedup_high"] / point["speedup_low"] <= WIDE


def _judged(what: str, points: list[dict[str, Any]]) -> Finding:
    """Judge all tries of a point: one narrow interval that holds 1 is enough, and two that leave it out are wrong.

    With fewer narrow ones than that, an interval that holds 1 leaves it open.
    """
    narrow = [point for point in points if _is_narrow(point)]
    right = [point for point in narrow if _holds_one(point)]
    shown = (right or narrow or points)[-1]
    if "speedup" not in shown:
        return judged(what, [shown.get("failed") or f"out of memory: {shown.get('out_of_memory')}"], "")
    marks = "".join(f", {flag}" for flag in shown["flags"])
    figure = (
        f"{shown['dense_ms']:.2f} ms, {shown['speedup_low']:.3f} to {shown['speedup_high']:.3f} times as fast as itself"
    )
    names = ("dense_ms", "pruned_ms", "speedup", "speedup_low", "speedup_high", "flags")
    numbers = {name: shown[name] for name in names} | {"tries": len(points)}
    if not right and len(narrow) < NARROW and any(map(_holds_one, points)):
        return Finding("not here", what, f"the machine is too busy to tell: {figure}{marks}", numbers)
    wrong = [] if right else [f"{figure}, and not the same in any of {len(narrow or points)} tries{marks}"]
    return judged(what, wrong, f"{figure}{marks}", **numbers)
