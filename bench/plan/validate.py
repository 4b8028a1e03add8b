"""Everything that can be refused is refused here, before any work."""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
from bench.cli import options
from bench.data import pretrained, task_sources, texts
from bench.evaluation import tasks
from bench.plan import cell as spec
from bench.plan import chain
from bench.plan import grid as cell_grid
from bench.plan.protocol import Protocol
from bench.plan.recipe import Recipe, refuse
from methods.checkpoint import save_load
from methods.errors import CheckpointError, UserError
from methods.files import WRITING
from methods.model.decoder import Decoder

if TYPE_CHECKING:
    import torch


def cells(
    methods_and_parameters: list[tuple[str, dict[str, Any]]],
    ratios: list[float],
    protocols: Sequence[tuple[Protocol, int]],
    arguments: argparse.Namespace,
) -> list[spec.Cell]:
    """The cells of a run. Raises UserError, in one line, for the first thing that is unsound.

    protocols  each with its seed; they differ in what methods look at and in nothing else
    """
    recipe = options.recipe(arguments)
    stages = cell_grid.stages([chain.parse(text) for text in arguments.then], arguments.set)
    try:
        methods.load(arguments.plugin)
        for name, parameters in (*methods_and_parameters, *(stage[:2] for stage in stages)):
            methods.make(name, parameters)
        if arguments.uniform:
            methods_and_parameters = [(name, _uniform(name, given)) for name, given in methods_and_parameters]
            stages = [(name, _uniform(name, given), ratio) for name, given, ratio in stages]
    except ValueError as error:
        raise UserError(str(error)) from None
    local, first = task_sources.parse_task_data(arguments.local_data), protocols[0][0]
    names = tasks.check(first.tasks, local, first.fewshot)
    for text in dict.fromkeys([*first.texts, *(protocol.calibration for protocol, _ in protocols)]):
        texts.check(text)
    device = pretrained.resolve_device(arguments.device)
    dtype = pretrained.resolve_dtype(arguments.dtype, device)
    if recipe:
        for protocol, _ in protocols:
            _check_healing(recipe, protocol, dtype)
    pretrained.check(arguments.model, arguments.trust_remote_code)
    if arguments.threads is not None:
        set_threads(arguments.threads)
    common = {
        "model": arguments.model,
        "match": arguments.match,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "trust_remote_code": arguments.trust_remote_code,
    }
    try:
        decoder = Decoder(pretrained.shell(arguments.model, arguments.trust_remote_code))
    except methods.Unsupported as error:
        raise UserError(str(error)) from None
    if first.save_dtype or stages:  # which go on from a model that the run has kept
        try:
            save_load.refuse_own_code(decoder)
        except CheckpointError as error:
            raise UserError(f"{'--save-models' if first.save_dtype else '--then'}: {error}") from None
    if recipe and recipe.length > (most := getattr(decoder.config, "max_position_embeddings", recipe.length)):
        raise UserError(f"--heal-length {recipe.length} is more than the {most} tokens that the model takes")
    found = []
    for protocol, seed in protocols:
        asked = dataclasses.replace(protocol, tasks=names, task_data=local)
        here = common | {"protocol": asked, "seed": seed}
        grid = cell_grid.cells(methods_and_parameters, ratios, decoder, here)
        found += chain.extended(grid, recipe, [_stage_cells(stage, decoder, here) for stage in stages], decoder)
    return found


def _check_healing(recipe: Recipe, protocol: Protocol, dtype: torch.dtype) -> None:
    """Refuse a text that cannot be read or that is measured on, and a dtype that cannot be trained in."""
    refuse(recipe, dtype, dense=True)  # which is loaded where the loss needs it
    texts.check(recipe.text)
    for text in protocol.texts:
        if texts.is_whole(text, protocol.calibration) and not texts.is_whole(text, recipe.text):
            raise UserError(
                f"--heal-text {recipe.text} would be trained on and measured on, since --texts takes all of it; with "
                "--calibration of the same text every second document is for each"
            )


def _stage_cells(stage: tuple[str, dict[str, Any], float], decoder: Decoder, common: dict[str, Any]) -> list[spec.Cell]:
    """What --then names, as cells that start from the dense model: several where the method draws at random."""
    name, given, ratio = stage
    if name == "dense" or methods.make(name, given).fixed:
        raise UserError(f"--then {name}: it takes no ratio, and so cannot go on to one")
    return [cell for cell in cell_grid.cells([(name, given)], [ratio], decoder, common) if cell.method != "dense"]


def _uniform(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The parameters with uniform=True where the method cuts widths. Raises ValueError where it never is uniform."""
    pruner = methods.make(name, given)
    if reason := getattr(pruner, "uneven", ""):
        raise ValueError(f"--uniform: {name} has no variant that stock transformers loads, since {reason}")
    if not hasattr(pruner, "uniform"):
        return given
    return given | {"uniform": True}


def set_threads(threads: int) -> None:
    import torch

    if not 1 <= threads <= (os.cpu_count() or 1):
        raise UserError(f"--threads lies between 1 and {os.cpu_count()}, the machine's cores; got {threads}")
    torch.set_num_threads(threads)


def check_folder(folder: Path) -> None:
    """Refuse a results folder that cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=WRITING):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot hold results: {error.strerror}; name another with --out") from None
