"""Shared by several test files."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from conftest import FAMILIES, LATER, LAYERS, tiny

import methods
from bench.workshop.tiny_models import HYBRIDS
from bench.workshop.tiny_models import draw_calibration as calibration
from methods import decisions
from methods.errors import Unsupported
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.layer import copy_module

TINY = {card.name: card for card in methods.cards_of_methods() if card.name != "dense"}
SPECS = {name: card.tiny_parameters for name, card in TINY.items() if "experts" not in card.axes}
EXPERTS = {name: card.tiny_parameters for name, card in TINY.items() if "experts" in card.axes}  # serve mixtures alone
MIXED = {name: SPECS[name] for name in ("drop-tail", "shortgpt", "blockpruner", "llm-drop")} | EXPERTS

METHODS = sorted(SPECS)
FEW = ["slicegpt", "flap+refit", "2ssp", "blockpruner", "laco-ls"]  # one of each kind of shape, with fits
CELLS = [(method, family) for method in METHODS for family in FAMILIES] + [(one, its) for one in FEW for its in LATER]
ON_HYBRIDS = ("drop-tail", "sleb", "llm-drop", "laco", "laco-ls", "puzzle", "svd-llm", "minitron-width", "evopress")
ON_HYBRIDS += ("llm-drop+ghost", "flap+refit", "llm-pruner")
ON_PARALLEL_HYBRIDS = ("modegpt", "sleb+scale")  # which cut the heads beside mixers
HYBRID_CELLS = [(method, its) for method in ON_HYBRIDS for its in HYBRIDS]
HYBRID_CELLS = [cell for cell in HYBRID_CELLS if cell not in {("laco", "nemotron_h"), ("laco-ls", "nemotron_h")}]
HYBRID_CELLS += [(method, "falcon_h1") for method in ON_PARALLEL_HYBRIDS]
# What depends on a model's shapes alone is tried with each kind of shape of every family; the other methods at night.
KINDS = ("laco-ls", "blockpruner", "2ssp", "llm-pruner", "slicegpt", "svd-llm", "flap+refit")
SHAPED = [
    pytest.param(*cell, marks=[] if cell[0] in KINDS or cell[1] == "llama" else [pytest.mark.nightly]) for cell in CELLS
]


FEW_LAYERS = 4  # two for each of two GPUs


def layers_for(method: str) -> int:
    """How many layers a model has that a method is tried on in several places; LaCo merges windows of several."""
    return LAYERS if method.partition("+")[0] in ("laco", "laco-published") else FEW_LAYERS


def pruned(method: str, family: str, ratio: float, tokens: Calibration | None = None) -> tuple[Decoder, dict]:
    """A tiny model after pruning, with the decisions; skips what the method says it cannot serve.

    What many tests ask for is pruned once by each process of tests; every caller gets a copy.
    """
    if tokens is not None:
        return pruned_anew(method, family, ratio, tokens)
    found = kept(method, family, ratio)
    if isinstance(found, str):
        pytest.skip(found)
    memo: dict[int, object] = {}
    copy_module(found[0].model, memo)  # of which a plain deepcopy takes three times as long
    return copy.deepcopy(found, memo)


@functools.cache
def kept(method: str, family: str, ratio: float) -> tuple[Decoder, dict] | str:
    """What `pruned` gives copies of, or why there is nothing to copy."""
    try:
        return prune(method, family, ratio)
    except Unsupported as reason:
        return str(reason)


def pruned_anew(method: str, family: str, ratio: float, tokens: Calibration | None = None) -> tuple[Decoder, dict]:
    """What `pruned` gives, by work done now."""
    try:
        return prune(method, family, ratio, tokens)
    except Unsupported as reason:
        pytest.skip(str(reason))


def prune(method: str, family: str, ratio: float, tokens: Calibration | None = None) -> tuple[Decoder, dict]:
    model = Decoder(tiny(family))
    return model, decisions.prune(methods.make(method, SPECS.get(method, {})), model, tokens or calibration(), ratio)


def logits(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.model(ids).logits


def overflowing() -> torch.nn.Module:
    """A tiny model in float16 one of whose layers gives more than that type holds."""
    model = tiny("llama").half()
    model.model.layers[2].mlp.up_proj.weight.data.fill_(3e4)
    return model
