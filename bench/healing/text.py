"""Draws the text that a pruned model is healed on.

Letters: N = training sequences, H = held-out sequences, T = tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.plan.recipe import Recipe

if TYPE_CHECKING:
    import torch

HELD_OUT = 8  # sequences


@dataclass(frozen=True)
class Text:
    """Holds sequences of the calibration documents: train (N, T) and held_out (H, T) ids, source, sha256 of both."""

    train: torch.Tensor
    held_out: torch.Tensor
    source: str
    sha256: str


def draw(tokenizer: Any, recipe: Recipe) -> Text:
    """Draw training and held-out sequences of the recipe's text. Raises UserError where it is too short."""
    from bench.data import texts

    block = texts.calibration(tokenizer, recipe.text, recipe.sequences + HELD_OUT, recipe.length, recipe.seed)
    return Text(block.ids[:-HELD_OUT], block.ids[-HELD_OUT:], block.source, block.sha256)
