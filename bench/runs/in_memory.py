"""Prunes a model that a program holds in memory, without a run: `bench.prune`.

    model of transformers, method, ratio -> copy -> calibration -> methods.budget.prune_to_budget -> PrunedCopy

What is counted, what is read and what is drawn are those of a cell of `run` with the same method, ratio and seed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import methods
from bench.data import texts
from bench.plan.cell import words_of_ratio
from bench.plan.fields import parse_methods
from bench.plan.protocol import Protocol
from methods.budget import prune_to_budget, round_to_layers
from methods.checkpoint import save
from methods.counted import COUNTED, share_of_all
from methods.errors import UserError
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder, gpus_of
from methods.model.sizes import parameters

TOKENS_AT_HAND = "the text of calibration="  # the source of a calibration that is no text by name


@dataclass(frozen=True)
class PrunedCopy:
    """Holds what `bench.prune` returns.

    decoder     the pruned copy by its roles, which knows what went
    decisions   what went, as `decisions` of a record has it
    removed     share of all parameters that went
    parameters  of the copy, each tied one once
    title       the method and the ratio, as tables call a cell: "flap at 0.2"
    calibration the tokens that the method looked at, on which the copy is not to be evaluated
    """

    decoder: Decoder
    decisions: dict[str, Any]
    removed: float
    parameters: int
    title: str
    calibration: Calibration

    @property
    def model(self) -> Any:
        """Return the pruned copy: a model of transformers that computes and generates as any other."""
        return self.decoder.model

    def save(self, folder: Path | str, tokenizer: Any = None) -> dict[str, Any]:
        """Write the model into a new folder, and return its manifest; `methods.checkpoint.load` reads it again.

        Raises CheckpointError where the folder is taken or the model runs code of its own.
        """
        return save(self.decoder, Path(folder), tokenizer=tokenizer, facts={"pruning": self.decisions})


def prune(
    model: Any,
    method: str,
    ratio: float,
    *,
    tokenizer: Any = None,
    calibration: str | Tensor = Protocol.calibration,
    sequences: int = Protocol.calibration_sequences,
    length: int = Protocol.calibration_length,
    ratio_of: str = "all",
    exact: bool = False,
    seed: int = 0,
) -> PrunedCopy:
    """Return a copy of a model without a share of its parameters; the model itself does not change.

    model        any decoder of transformers that `list families` names, wherever it lies
    method       as --methods has one, with parameters and a compensation: flap, laco:C=3, shortgpt+ghost
    ratio        share to remove, from 0 to below 1
    tokenizer    of the model, which a calibration text by name needs
    calibration  a text of `list texts`, a mixture, or (N, T) token ids of your own
    sequences    N of a text by name
    length       T of a text by name, tokens
    ratio_of     what the ratio is a share of: all, decoder or layers
    exact        False: the ratio is rounded to whole layers, so that methods match each other
    seed         of the draw of the text, and of what a method draws

    Raises UserError for a ratio, a method, a text or a missing tokenizer that cannot be, and Unsupported for a model
    that the method does not know.
    """
    pruner = _make_pruner(method)
    if not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise UserError(f"a ratio is the share to remove, from 0 to below 1; got {ratio!r}")
    if ratio_of not in COUNTED:
        raise UserError(f"ratio_of is one of {', '.join(COUNTED)}; got {ratio_of!r}")
    block = _calibration(calibration, tokenizer, (sequences, length), seed)
    decoder = Decoder(copy.deepcopy(model))
    before = parameters(decoder)
    share = share_of_all(decoder, ratio, ratio_of)
    with torch.random.fork_rng(gpus_of(decoder.model)):
        torch.manual_seed(seed)
        decoder, decisions, _ = prune_to_budget(
            share if exact else round_to_layers(decoder, share), pruner, decoder, block
        )
    after = parameters(decoder)
    title = f"{method} at {words_of_ratio(ratio, ratio_of)}"
    return PrunedCopy(decoder, decisions, 1 - after / before, after, title, block)


def _make_pruner(method: str) -> methods.Pruner:
    """Return the pruner of one mention of a method. Raises UserError where it is none, or several."""
    choices = parse_methods(method)
    if len(choices) > 1:
        raise UserError(f"one method prunes a model; got {method!r}, and a run measures several")
    try:
        return methods.make(choices[0].method, choices[0].given)
    except ValueError as error:
        raise UserError(str(error)) from None


def _calibration(calibration: str | Tensor, tokenizer: Any, shape: tuple[int, int], seed: int) -> Calibration:
    """Return the tokens that the method may look at. Raises UserError."""
    if isinstance(calibration, Tensor):
        if calibration.dim() != 2 or calibration.is_floating_point() or not calibration.numel():
            raise UserError(f"calibration tokens are whole numbers of shape (N, T); got {tuple(calibration.shape)}")
        mask = torch.ones_like(calibration, dtype=torch.bool).cpu()
        return Calibration(calibration.long().cpu(), mask, TOKENS_AT_HAND, seed)
    if tokenizer is None:
        raise UserError(f"the text {calibration!r} needs tokenizer=, that of the model; or give calibration= token ids")
    return texts.make_calibration(tokenizer, calibration, *shape, seed)
