"""Structured pruners of large language models behind one interface.

depth/         methods that remove layers, attentions or MLPs
width/         methods that cut heads, channels or the residual stream
experts/       methods that remove experts of a mixture
search/        methods that search over what goes from all layers at once
compensation/  repairs that follow a method, closed-form or trained: `shortgpt+ghost`
trials/        how methods choose what goes: scores, trials, evolution, windows of layers
model/         a Hugging Face decoder by role, and the cuts of it
checkpoint/    pruned models on disk

base.py has the class of methods, registry.py finds them by name, budget.py and decisions.py call them, and cards.py
reads what lists show of them.

This module exports what a user of the package needs, wherever it is defined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from methods.base import REGISTRY, Holds, Look, Pruner, RandomPruner, WidthPruner, register
from methods.cards import cards_of_compensations, cards_of_methods
from methods.errors import OutOfReach, Unsupported, UserError
from methods.registry import (
    files_of_plugins,
    find_changed_parameters,
    installed_methods,
    load,
    make,
    modules_of,
    parameters_of_pruner,
    place_of_prune,
    plugins_of,
    revision_of_method,
    sources_of_method,
    tiny_parameters_of,
)

if TYPE_CHECKING:
    from methods.model.calibration import Calibration
    from methods.model.decoder import Decoder
    from methods.model.sizes import parameters


LAZY = {  # names that need torch: each is imported at its first use
    "Calibration": "methods.model.calibration",
    "Decoder": "methods.model.decoder",
    "parameters": "methods.model.sizes",
}

__all__ = [
    "REGISTRY",
    "Calibration",
    "Decoder",
    "Holds",
    "Look",
    "OutOfReach",
    "Pruner",
    "RandomPruner",
    "Unsupported",
    "UserError",
    "WidthPruner",
    "cards_of_compensations",
    "cards_of_methods",
    "files_of_plugins",
    "find_changed_parameters",
    "installed_methods",
    "load",
    "make",
    "modules_of",
    "parameters",
    "parameters_of_pruner",
    "place_of_prune",
    "plugins_of",
    "register",
    "revision_of_method",
    "sources_of_method",
    "tiny_parameters_of",
]


def __getattr__(name: str) -> Any:
    if name in LAZY:
        import importlib

        return getattr(importlib.import_module(LAZY[name]), name)
    raise AttributeError(f"module 'methods' has no attribute {name!r}")
