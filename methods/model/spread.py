"""Spreads a model's layers over several devices, in their order, so that each holds its share of the weights.

Embedding, positions and a head that is tied to them lie with the first layers; the final norm and a head of its own
with the last. In the model's own forward hooks of accelerate move what crosses from one device to the next; methods
move it themselves (methods.model.layer). Nothing is offloaded: every weight lies where it is computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import dispatch_model
from torch import nn

from methods.model.decoder import Decoder

Place = torch.device | Sequence[torch.device]  # one device, or those over which layers are spread


def devices(place: Place) -> list[torch.device]:
    """Return the devices of a place, the first one first."""
    return [place] if isinstance(place, torch.device) else list(place)


def device_map(model: Decoder, place: Place) -> dict[str, torch.device]:
    """Return on which device of a place each module belongs, by names that cover the whole model.

    A GPU's share of the weights is its share of the memory of all, so that equal ones hold about as much; a layer that
    two would share is the one's that would have more of it. `model` may lie on the meta device.
    """
    wanted = devices(place)
    room = [torch.cuda.get_device_properties(one).total_memory if one.type == "cuda" else 1 for one in wanted]
    ends = [sum(room[: number + 1]) / sum(room) for number in range(len(room) - 1)]
    parts = _parts(model)
    whole = sum(one.numel() for one in model.model.parameters())
    found, counted = dict[str, torch.device](), dict[int, int]()
    for name, module in parts.items():
        before = sum(counted.values())
        counted |= {id(one): one.numel() for one in module.parameters()}  # what is tied counts where it comes first
        middle = (before + sum(counted.values())) / 2 / whole
        found[name] = wanted[sum(middle > end for end in ends)]
    if _is_tied(model):  # where the embedding lies
        found |= {name: wanted[0] for name, module in parts.items() if module in (model.final_norm, model.head)}
    return found


def loading(shell: Callable[[], Decoder], place: Place) -> dict[str, Any]:
    """Return the options by which transformers loads a model straight to its place.

    shell  makes the model without weights, where layers are spread
    """
    wanted = devices(place)
    if len(wanted) == 1:
        return {} if wanted[0].type == "cpu" else {"device_map": {"": wanted[0]}}
    return {"device_map": device_map(shell(), wanted)}


def put(model: nn.Module, place: Place) -> nn.Module:
    """Move a model to its place, and return it."""
    wanted = devices(place)
    return _dispatched(model, device_map(Decoder(model), wanted)) if len(wanted) > 1 else model.to(wanted[0])


def settle(model: nn.Module) -> nn.Module:
    """Return a model whose weights lie where they belong, with its buffers beside them; no weight is copied."""
    there = place_of(model)
    if len(there) == 1:
        return model.to(there[0])
    decoder = Decoder(model)
    first = decoder.embed.weight.device
    lies = {name: next((one.device for one in part.parameters()), first) for name, part in _parts(decoder).items()}
    return _dispatched(model, lies)


def place_of(model: nn.Module) -> list[torch.device]:
    """Return on which devices a model lies, in the order of their numbers."""
    return sorted({parameter.device for parameter in model.parameters()}, key=lambda one: (one.type, one.index or 0))


def gpus_of(model: nn.Module) -> list[int]:
    """Return the numbers of the GPUs that a model lies on, whose random numbers are drawn for it."""
    return [device.index for device in place_of(model) if device.type == "cuda"]


def _parts(model: Decoder) -> dict[str, nn.Module]:
    """Return the modules that no two devices share, by name: what is in front of the layers, those, what is behind."""
    layers = model.family.layers
    leaves = {
        name: module
        for name, module in model.model.named_modules()
        if name and not any(module.children()) and not name.startswith(f"{layers}.")
    }
    last = [name for name, module in leaves.items() if module in (model.final_norm, model.head)]
    stack = {f"{layers}.{number}": module for number, module in enumerate(model.stack)}
    return {name: leaves[name] for name in leaves if name not in last} | stack | {name: leaves[name] for name in last}


def _is_tied(model: Decoder) -> bool:
    return model.head.weight is model.embed.weight


def _dispatched(model: Any, where: dict[str, torch.device]) -> nn.Module:
    stay = getattr(model, "_skip_keys_device_placement", None)  # caches, whose parts lie where their layers do
    found: nn.Module = dispatch_model(model, where, main_device=next(iter(where.values())), skip_keys=stay)
    return found
