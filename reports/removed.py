"""Reads from the decisions in records what was removed of each layer, in one vocabulary for all methods.

The keys that methods share are removed_layers, removed_attention, removed_mlp (numbers of layers of the dense model),
removed_kv_heads, removed_channels, removed_experts (the units removed from each layer of the dense model), kv_heads,
channels, experts (how many stay) and d of width (the residual width). A method of one's own that uses them is shown
like the built-in ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bench.records.record import Record
from methods.ranges import write_ranges


@dataclass(frozen=True)
class Remaining:
    """Holds the shares of each layer of the dense model that stay, in [0, 1]: of its attention and of its MLP.

    how  what was removed, in a word: layers, blocks, units or width
    """

    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    how: str


def join_decisions(record: Record) -> dict[str, Any]:
    """Return a cell's decisions joined with those of its parents, by the numbers of layers in the dense model.

    Empty if an earlier stage does not say which layers it has removed.
    """
    decided: dict[str, Any] = {}
    layers = record.measured.dense_layers or 0
    for stage in record.decisions.get("earlier", ()):
        decided = _behind(decided, stage["decisions"], layers)
        if layers - len(decided.get("removed_layers", ())) != stage["measured"]["layers"]:
            return {}
    return _behind(decided, record.decisions, layers) if decided else record.decisions


def _behind(before: dict[str, Any], after: dict[str, Any], layers: int) -> dict[str, Any]:
    """Return two decisions joined. Layers of `after` are numbered without the layers that `before` has removed."""
    numbers = [number for number in range(layers) if number not in set(before.get("removed_layers", ()))]
    joined = before | after
    for name in ("removed_layers", "removed_attention", "removed_mlp"):
        if name in joined:
            joined[name] = sorted([*before.get(name, ()), *(numbers[number] for number in after.get(name, ()))])
    for unit in ("kv_heads", "channels", "experts"):
        if {unit, f"removed_{unit}"} <= set(after):
            removed, kept = [list(units) for units in before.get(f"removed_{unit}", [[]] * layers)], [0] * layers
            for number, units, count in zip(numbers, after[f"removed_{unit}"], after[unit], strict=False):
                removed[number] += units
                kept[number] = count
            joined |= {f"removed_{unit}": removed, unit: kept}
    if "d" in before and "d" in after:
        joined["width"] = before["width"]
    return joined


def remaining_of(record: Record) -> Remaining | None:
    """Return the shares of each layer that stay; None if the decisions do not tell them, or if the cell failed.

    An attention's share is that of its key/value heads, an MLP's that of its channels or experts. A residual stream of
    d of D columns leaves d / D of every matrix.
    """
    decided, layers = join_decisions(record), record.measured.dense_layers
    if record.status != "ok" or not layers:
        return None
    if {"d", "width"} <= set(decided):
        share = decided["d"] / decided["width"]
        return Remaining((share,) * layers, (share,) * layers, "width")
    if not any(name.startswith("removed_") for name in decided):
        return None
    whole = set(decided.get("removed_layers", ()))
    attention = _shares(layers, decided, "kv_heads", whole | set(decided.get("removed_attention", ())))
    unit = "experts" if "removed_experts" in decided else "channels"
    mlp = _shares(layers, decided, unit, whole | set(decided.get("removed_mlp", ())))
    return Remaining(attention, mlp, _how(decided))


def _shares(layers: int, decided: dict[str, Any], unit: str, whole_layers: set[int]) -> tuple[float, ...]:
    removed, kept = decided.get(f"removed_{unit}", []), decided.get(unit, [])
    shares = [1.0] * layers
    if len(removed) == len(kept) == layers:
        totals = [len(lost) + count for lost, count in zip(removed, kept, strict=True)]
        shares = [
            count / total if total else float(unit == "experts") for count, total in zip(kept, totals, strict=True)
        ]
    return tuple(0.0 if number in whole_layers else share for number, share in enumerate(shares))


def _how(decided: dict[str, Any]) -> str:
    if any(any(map(len, decided.get(f"removed_{unit}", ()))) for unit in ("kv_heads", "channels", "experts")):
        return "units"
    return "blocks" if decided.get("removed_attention") or decided.get("removed_mlp") else "layers"


def words_per_layer(counts: Sequence[int]) -> str:
    """Return counts per layer in words: '2 of each layer', '0 to 5 of a layer, mean 2.1', 'none'."""
    if not any(counts):
        return "none"
    if len(set(counts)) == 1:
        return f"{counts[0]:,} of each layer"
    return f"{min(counts):,} to {max(counts):,} of a layer, mean {fmean(counts):,.1f}"


def removals_of(record: Record) -> dict[str, str]:
    """Return {column of WENT: what was removed, in words}, without columns in which nothing was."""
    decided = join_decisions(record)
    removals = {
        column: write_ranges(decided[name], ", ")
        for column, name in (("layers", "removed_layers"), ("attentions", "removed_attention"), ("MLPs", "removed_mlp"))
        if decided.get(name)
    }
    units = {"KV heads": "removed_kv_heads", "channels": "removed_channels", "experts": "removed_experts"}
    for column, name in units.items():
        counts = [len(units) for units in decided.get(name, ())]
        if any(counts):
            removals[column] = words_per_layer(counts)
    if {"d", "width"} <= set(decided):
        removals["residual width"] = f"{decided['width'] - decided['d']:,} of {decided['width']:,}"
    if isinstance(decided.get("threshold"), float):
        removals["threshold"] = f"{decided['threshold']:.4f}"
    return removals


WENT = ("layers", "attentions", "MLPs", "KV heads", "channels", "experts", "residual width", "threshold")
