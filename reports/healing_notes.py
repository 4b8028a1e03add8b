"""How healed cells were trained, in words: what stands under a table, and what tells rows apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reports.metrics import short

KINDS = {"lora": "LoRA of rank {rank}", "full": "all parameters"}
LOSSES = {"next-token": "for the next token", "kl": "towards the dense model's predictions"}
Cell = Mapping[str, Any]


def of(cell: Cell) -> Cell | None:
    """Return the recipe of a cell: its own, or the last by which it was healed before it was pruned further."""
    found = [stage["healing"] for stage in (*cell.get("earlier", ()), cell) if stage.get("healing")]
    return found[-1] if found else None


def apart(cell: Cell, cells: Iterable[Cell]) -> str:
    """Say what the recipe has otherwise than those of other cells: ' (loss kl)'; empty where all are the same."""
    mine, others = of(cell), [recipe for recipe in map(of, cells) if recipe]
    if mine is None:
        return ""
    differing = [name for name in mine if any(recipe.get(name) != mine[name] for recipe in others)]
    words = ", ".join(f"{name.replace('_', ' ')} {mine[name]}" for name in differing)
    return f" ({words})" if words else ""


def notes(cells: Iterable[Cell]) -> list[str]:
    """Say by which recipe cells were healed, and what a chained one goes on from; each sentence once."""
    everything = list(cells)
    found = []
    for cell in everything:
        if recipe := of(cell):
            which = apart(cell, everything)
            found.append(f"healed{which}: {said(recipe)}{'' if which else '; the same for every method'}.")
    if any(cell.get("earlier") for cell in everything):
        found.append("then: pruned further, from the model in front of it; ratios are of the dense model in total.")
    return list(dict.fromkeys(found))


def said(recipe: Cell) -> str:
    """Say a recipe: 'LoRA of rank 8, for the next token, 4,096 tokens of wiki in batches of 8 x 256, ...'."""
    passes = "" if recipe["passes"] == 1 else f", {recipe['passes']:,} passes"
    return (
        f"{KINDS[recipe['kind']].format(**recipe)}, {LOSSES[recipe['loss']]}, {recipe['tokens']:,} tokens of "
        f"{short(recipe['text'])}{passes}, batches of {recipe['batch']} x {recipe['length']}, learning rate up to "
        f"{recipe['learning_rate']:g}, seed {recipe['seed']}"
    )
