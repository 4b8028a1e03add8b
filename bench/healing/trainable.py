"""Makes the weights of a pruned model trainable that a recipe names, and a plain model of it again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bench.plan.protocol import Recipe
from methods.errors import Unsupported
from methods.model.decoder import Decoder, gpus_of
from methods.model.inserted import factors_of

ALPHA = 2  # adapters are scaled by alpha / rank; this many times the rank
ADAPTER = "healing"


@contextmanager
def make_trainable(model: Decoder, recipe: Recipe) -> Iterator[dict[str, nn.Parameter]]:
    """Give the weights to train, {name: parameter}, in float32; adapters are merged at the end.

    Raises Unsupported where the model has no such weights.
    """
    inner = model.model
    before = {name: (parameter.dtype, parameter.requires_grad) for name, parameter in inner.named_parameters()}
    tuner: Any = None
    if recipe.kind == "lora":
        tuner = _adapters(model, recipe)
    else:
        trained = _weights_of(model, recipe)
        inner.requires_grad_(False)
        for parameter in trained:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    with _recompute_layers(model) if recipe.recompute else nullcontext():
        yield {name: parameter for name, parameter in inner.named_parameters() if parameter.requires_grad}
    if tuner is not None:
        tuner.merge_and_unload()
    for name, parameter in inner.named_parameters():
        dtype, required = before[name]
        parameter.data, parameter.grad = parameter.data.to(dtype), None
        parameter.requires_grad_(required)


def _weights_of(model: Decoder, recipe: Recipe) -> list[nn.Parameter]:
    """Return the weights that a recipe trains without adapters. Raises Unsupported where there are none."""
    images = {weight for module in model.vision for weight in module.parameters()}
    modules: list[nn.Module] = [model.model]
    if recipe.kind == "norms":
        modules = [module for module in model.model.modules() if "norm" in type(module).__name__.lower()]
    elif recipe.kind == "beside":
        beside = find_layers_beside_cuts(model)
        modules = [layer.module for place, layer in enumerate(model.layers) if place in beside]
    weights = {id(weight): weight for module in modules for weight in module.parameters() if weight not in images}
    if not weights:
        reasons = {"norms": "its norms have no weights", "beside": "it lacks nothing whole, so that there is no cut"}
        raise Unsupported(f"--heal {recipe.kind} has nothing to train in this model: {reasons[recipe.kind]}")
    return list(weights.values())


def find_layers_beside_cuts(model: Decoder) -> set[int]:
    """Return the places of the layers in front of and behind removed ones, and of those without attention or MLP."""
    numbers = [-1, *model.numbers, model.given]
    gaps = [place for place, (front, behind) in enumerate(pairwise(numbers)) if behind > front + 1]
    beside = {place for gap in gaps for place in (gap - 1, gap)}
    beside |= {place for place, layer in enumerate(model.layers) if layer.lost}
    return beside & set(range(len(model.layers)))


@contextmanager
def _recompute_layers(model: Decoder) -> Iterator[None]:
    """Let each layer keep its input alone for the way back, on which it is computed once more."""
    for module in model.stack:
        module.forward = partial(_run_without_keeping, module.forward)
    try:
        yield
    finally:
        for module in model.stack:
            del module.forward


def _run_without_keeping(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _adapters(model: Decoder, recipe: Recipe) -> Any:
    """Put an adapter beside every linear layer of every decoder layer; matrices of experts are none."""
    from peft import LoraConfig, LoraModel
    from peft.tuners.tuners_utils import cast_adapter_dtype

    names = {id(module): name for name, module in model.model.named_modules()}
    matrices = [matrix for layer in model.layers for matrix in factors_of(list(layer.named_matrices().values()))]
    targets = [names[id(matrix)] for matrix in matrices]
    config = LoraConfig(r=recipe.rank, lora_alpha=ALPHA * recipe.rank, lora_dropout=0.0, target_modules=targets)
    with torch.random.fork_rng(gpus_of(model.model)):
        torch.manual_seed(recipe.seed)
        tuner = LoraModel(model.model, config, ADAPTER)
    cast_adapter_dtype(model.model, ADAPTER)  # to float32
    return tuner
