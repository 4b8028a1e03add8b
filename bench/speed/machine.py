"""Says under what figures of speed were measured: how the models lie, and what the machine did meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bench.speed.timing import Clock
from bench.system import environment, gpu
from bench.system.threads import usable_cores
from methods.model.decoder import Decoder
from methods.model.parts.low_rank import linears

BUSY = 0.25  # cores that other work, or a limit of processor time, may take on average before the machine is marked
TILES = (128, 64, 8)  # multiples that kernels are cut for


def setup(model: Any, devices: Sequence[torch.device], clock: Clock, rates: Mapping[str, float]) -> dict[str, Any]:
    """Return what the protocol does not say of how the models were timed; `rates` of bench.speed.peak_rates."""
    return {
        "threads": torch.get_num_threads(),
        "cores": usable_cores(),
        "devices": [str(device) for device in devices],
        "clock": clock.name,
        "attention": model.config._attn_implementation,
        **rates,
    }


def widths(model: Decoder) -> dict[str, dict[str, Any]]:
    """Return {role: {in, out: widths that occur, multiple_of: the largest of 128, 64, 8, 1 that divides them all}}."""
    roles = {"head": [model.head.weight]}
    for layer in model.layers:
        known = {"qkv": layer.qkv, "out": [layer.out]} if layer.has_attention else {}
        if layer.experts is not None:
            known["shared"] = list(layer.experts.shared)
        elif layer.has_mlp:
            known |= {"up": layer.up, "down": [layer.down]}
        mine = {id(one) for matrices in known.values() for one in linears(matrices)}
        added = [m for m in layer.module.modules() if isinstance(m, nn.Linear) and id(m) not in mine]
        for role, matrices in (known | {"added": added}).items():
            roles.setdefault(role, []).extend(matrix.weight for matrix in linears(matrices))
        for role, weights in ({} if layer.experts is None else layer.experts.matrices).items():
            roles.setdefault(role, []).extend(weights)
    return {role: _widths(weights) for role, weights in roles.items() if weights}


def _widths(weights: list[torch.Tensor]) -> dict[str, Any]:
    out, read = ({weight.shape[axis] for weight in weights} for axis in (0, 1))
    tile = next((tile for tile in TILES if all(width % tile == 0 for width in out | read)), 1)
    return {"in": sorted(read), "out": sorted(out), "multiple_of": tile}


def state(gpus: Sequence[gpu.Gpu]) -> dict[str, Any]:
    """Return what the machine and its GPUs do at this moment."""
    return {"machine": environment.state()} | ({"gpus": [card.state() for card in gpus]} if gpus else {})


def between(
    before: dict[str, Any], after: dict[str, Any], others: list[int | None], slowed_by: Collection[str] = ()
) -> dict[str, Any]:
    """Return what else the machine did between two states; `flags` say what may have spoilt the figures.

    others     processes of others on each GPU
    slowed_by  what held GPUs down while models were timed
    """
    shares = environment.between(before["machine"], after["machine"])
    found: dict[str, Any] = {"before": before, "after": after} | shares
    known = [count for count in others if count is not None]
    if known:
        found["other_gpu_processes"] = sum(known)
    hot = after["machine"].get("cpu_throttled", 0) > before["machine"].get("cpu_throttled", 0)
    flags = {
        "busy": sum(shares.get(f"{who}_cores", 0.0) for who in ("other", "stolen")) > BUSY,
        "shared_gpu": sum(known) > 0,
        "slowed": hot or shares.get("held_cores", 0.0) > BUSY or bool(set(slowed_by) & set(gpu.THROTTLED)),
    }
    return found | {"flags": [name for name, holds in flags.items() if holds]}
