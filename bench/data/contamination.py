"""Refuses to fit a model to what it is measured on: a compensation would be tested on what it has seen.

A text that has the same name on both sides is halved by documents (bench.data.texts). Texts of different names are
compared here: one may be a copy or a part of the other, or the same dataset from another place. Compared is what is
used of them, the sequences that are fitted and the windows that are scored, as characters without white space, so that
tokens, line breaks and the order of documents do not matter. A passage of PASSAGE + STEP characters, sixty words or so,
is always found, one below PASSAGE never: licences and set phrases are not contamination. Where windows are drawn and
hold less than two such passages, half a window is looked for, but no less than FEWEST characters. Of the default texts,
a passage of C4 and one of Wikipedia have at most nine tokens in common.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bench.data import texts as text_data
from methods.errors import UserError

if TYPE_CHECKING:
    import torch

PASSAGE = 256  # characters
FEWEST = 96  # of a passage in short windows
STEP = 64  # from passage to passage


def refuse_shared(
    tokenizer: Any, ids: torch.Tensor, source: str, texts: Iterable[text_data.EvaluationText], fitted: str
) -> None:
    """Raise UserError where a passage of ids (N, T), sequences of the text `source`, is evaluated in another text.

    fitted  what is done to it: "calibrated on", "trained on"
    """
    bare = ""
    for text in texts:
        if text_data.same(source, text.text):
            continue
        bare = bare or _bare(tokenizer, ids)
        held_out = _bare(tokenizer, text.ids[_once(text.scored)])
        half = len(held_out) // len(text.ids) // 2  # drawn windows do not stand behind each other
        size = min(PASSAGE, max(FEWEST, half)) if text.drawn else PASSAGE
        passages = [bare[start : start + size] for start in range(0, len(bare) - size + 1, min(STEP, size // 2))]
        there = _standing(passages, held_out, size)
        found = sum(passage in there for passage in passages)
        if found:
            raise UserError(
                f"{source}, which is {fitted}, is in part the text {text.text}, which is evaluated: {found} of "
                f"{len(passages)} passages stand there; give another text, or one name for both, which is then halved"
            )


def _standing(passages: Iterable[str], held_out: str, size: int) -> set[str]:
    """Return those of the passages, of `size` characters each, that stand in a text, which is read once for all."""
    return set(passages).intersection(held_out[start : start + size] for start in range(len(held_out) - size + 1))


def _once(scored: torch.Tensor) -> torch.Tensor:
    """Return (M, W), true once for each token: where it is scored, and where a window begins with a new one."""
    once = scored.clone()
    once[:, 0] |= scored[:, 1:2].any(1)
    return once


def _bare(tokenizer: Any, ids: torch.Tensor) -> str:
    """Return the text of tokens, without white space and special tokens."""
    return "".join(tokenizer.decode(ids.flatten(), skip_special_tokens=True).split())
