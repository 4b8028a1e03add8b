"""Calls a method to prune, and refuses decisions that differ from what it removed.

Decisions are plain JSON values. All methods share the keys below, and reports, exports and compensations read them.
Layers have their numbers in the model that the method was given, 0 to L - 1, also behind layers that it has dropped
(`Layer.number`):

    removed_layers                         whole layers: numbers, rising
    removed_attention, removed_mlp         layers that have lost this part alone: numbers, rising
    removed_kv_heads, removed_mixer_heads, L lists, one for each layer, also for one that is gone: numbers of the units
    removed_channels, removed_experts,     that went, rising, by the numbers that they had at first
    removed_state_channels
    kv_heads, mixer_heads, channels,       L counts, how many are left; 0 of a layer or part that is gone
    experts, state_channels
    removal_order, free_removals           texts, the first removal first; how many of them another ratio may begin with

A method that gives one of the `removed_` keys gives every one for which something went. A key that is missing means
that nothing of its kind went.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from methods.base import Pruner
from methods.counted import Budget
from methods.errors import Unsupported, WrongDecisions
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.layer import Layer, copy_module
from methods.model.sizes import parameters
from methods.model.structures import cut

WHOLE = ("removed_layers", "removed_attention", "removed_mlp")
UNITS = ("kv_heads", "mixer_heads", "channels", "state_channels", "experts")
WHERE = "docs/guides/add-method.md says what `prune` answers"


def prune(pruner: Pruner, model: Decoder, calibration: Calibration, amount: float | Budget) -> dict[str, Any]:
    """Remove a ratio or a budget of `model`, in place, and return the decisions of the method.

    The layers have the numbers from 0 on meanwhile, also where the model has lost some before. Raises WrongDecisions
    where the decisions break the contract above or differ from what went. Raises what the method raises.
    """
    given, numbers, layers = make_outline(model), model.numbers, model.given
    model.number_layers()
    if isinstance(amount, Budget):
        decided: dict[str, Any] = pruner.prune_to(model, calibration, amount)
    else:
        decided = pruner.prune(model, calibration, amount)
    wrong = _no_plain_values(decided) or misfit_of_decisions(decided, given) or _untrue(decided, given, model)
    if not wrong and pruner.only_cuts and parameters(given) != parameters(model):
        named, actual = parameters(given), parameters(model)
        wrong = f"without what they name {named:,} parameters are left, and the model of `only_cuts` has {actual:,}"
    if wrong:
        raise WrongDecisions(f"the decisions of {pruner.name} do not hold: {wrong}; {WHERE}")
    model.numbers, model.given = [numbers[number] for number in model.numbers], layers
    return decided


def make_outline(model: Decoder) -> Decoder:
    """Return a model of the same shapes without weights. It can be cut like the given one."""
    parts = (*model.model.parameters(), *model.model.buffers())
    return Decoder(copy_module(model.model, {id(tensor): _without_values(tensor) for tensor in parts}))


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    shape = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape


def misfit_of_decisions(decisions: Mapping[str, Any], given: Decoder) -> str:
    """Return a sentence on the first removal in decisions that does not fit a model; "" where all fit."""
    return next(_misfits(decisions, given.layers), "")


def _misfits(decisions: Mapping[str, Any], layers: Sequence[Layer]) -> Iterator[str]:
    """Yield a sentence for each removal that does not fit these layers. Each takes it that those before it fit."""
    for name in WHOLE:
        if wrong := _no_numbers(decisions.get(name, ()), len(layers), "layers"):
            yield f"{name} {wrong}"
    whole = set(decisions.get("removed_layers", ()))
    for name in WHOLE[1:]:
        if twice := whole & set(decisions.get(name, ())):
            yield f"layer {min(twice)} is both in removed_layers and in {name}"
    for unit in UNITS:
        yield from _misfits_of_unit(unit, decisions.get(f"removed_{unit}", [()] * len(layers)), layers)
    order, free = decisions.get("removal_order", ()), decisions.get("free_removals", 0)
    if not _is_list(order) or not all(isinstance(name, str) for name in order):
        yield f"removal_order is {order!r:.60}, and no list of texts"
    if not _is_count(free) or free > len(order):
        yield f"free_removals is {free!r:.60}, and removal_order has {len(order)}"


def _misfits_of_unit(unit: str, lists: Any, layers: Sequence[Layer]) -> Iterator[str]:
    """Yield a sentence for each removal of a unit that does not fit these layers; `lists` has those of each layer."""
    if not _is_list(lists) or len(lists) != len(layers):
        what = f"has {len(lists)} entries" if _is_list(lists) else f"is {lists!r:.60}"
        yield f"removed_{unit} {what}, and a list is due for each of the {len(layers)} layers that the model had"
    for number, (layer, units) in enumerate(zip(layers, lists, strict=True)):
        if wrong := _no_numbers(units, _units(layer)[unit], unit):
            yield f"removed_{unit}[{number}] {wrong}"


def _no_plain_values(decisions: Any) -> str:
    """Return a sentence on a decision that JSON cannot hold; "" where there is none."""
    if not isinstance(decisions, dict):
        return f"`prune` returned {decisions!r:.60}, and no dictionary"
    for name, value in decisions.items():
        if not isinstance(name, str):
            return f"the key {name!r} is no text"
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            return f"{name} is no plain JSON value: {error}"
    return ""


def _no_numbers(given: Any, count: int, what: str) -> str:
    """Return why a value is no list of rising numbers below `count`; "" where it is one."""
    if not _is_list(given) or not all(map(_is_count, given)):
        return f"is {given!r:.60}, and no list of numbers"
    if beyond := [number for number in given if number >= count]:
        return f"has {beyond[0]}, and there are {count} {what}, from 0 on"
    return f"is {given!r:.60}, which does not rise" if sorted(set(given)) != list(given) else ""


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _untrue(decisions: Mapping[str, Any], given: Decoder, pruned: Decoder) -> str:
    """Return a sentence on the first decision that differs from what went; "" where none does.

    Cuts `given` as the decisions say.
    """
    if not any(name.startswith("removed_") for name in decisions):
        return ""
    try:
        cut(given, decisions)
    except (ValueError, Unsupported) as error:
        return str(error)
    word_by_number = {number: "is gone" for number in given.numbers if number not in pruned.numbers}
    word_by_number |= {number: "is still there" for number in pruned.numbers if number not in given.numbers}
    for number, what in sorted(word_by_number.items()):
        return f"layer {number} {what}, and removed_layers is {decisions.get('removed_layers', [])}"
    expected = {layer.number: layer for layer in given.layers}
    for layer in pruned.layers:
        for wrong in _unlike(layer, expected[layer.number]):
            return f"layer {layer.number} {wrong}"
    return _miscounted(decisions, pruned)


def _unlike(layer: Layer, expected: Layer) -> Iterator[str]:
    """Yield a sentence for each sublayer or kind of unit of a layer that decisions leave in another state."""
    for part, has, due in (
        ("attention", layer.has_attention, expected.has_attention),
        ("mlp", layer.has_mlp, expected.has_mlp),
    ):
        if has != due:
            yield f"has {'its' if has else 'lost its'} {part}, and removed_{part} says otherwise"
    for unit, count in _units(layer).items():
        if count != (due_count := _units(expected)[unit]):
            yield f"has {count} {unit}, and by removed_{unit} it has {due_count}"


def _units(layer: Layer) -> dict[str, int]:
    """Return how many units of each kind a layer has."""
    experts = 0 if layer.experts is None else layer.experts.count
    channels = layer.down.in_features if layer.has_mlp and not experts else 0
    return {
        "kv_heads": layer.kv_heads,
        "mixer_heads": layer.mixer_heads,
        "channels": channels,
        "state_channels": layer.state_channels,
        "experts": experts,
    }


def _miscounted(decisions: Mapping[str, Any], pruned: Decoder) -> str:
    """Return a sentence on the first count in decisions that is wrong; "" where all are right."""
    units_by_number = {layer.number: _units(layer) for layer in pruned.layers}
    for unit in UNITS:
        counts = [units_by_number.get(number, {}).get(unit, 0) for number in range(pruned.given)]
        if unit in decisions and list(decisions[unit]) != counts:
            return f"{unit} is {decisions[unit]!r:.60}, and of the {pruned.given} layers are left {counts!r:.60}"
    return ""
