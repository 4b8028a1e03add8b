"""Draws what a cell is calibrated on, whatever kind of text that is: read, asked by a task, or written by the model."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.data import own_text, questions, texts
from bench.data.mixture import is_own_text, rows_of_texts, task_of_text
from bench.plan.cell import Cell
from bench.schedule.memory_needs import bytes_of_card, footprint_of, room_of, to_gib
from methods.errors import UserError
from methods.model.calibration import Calibration


@dataclass(frozen=True)
class OwnTexts:
    """Says whether texts of the dense model may be written here, and in how much memory.

    may_write      whether what is not kept is written; else zeros are read in its place, as a plan does
    memory         GiB of the host's memory that a cell may take; None: all that there is
    device_memory  the same of its GPU's
    """

    may_write: bool = True
    memory: float | None = None
    device_memory: float | None = None

    def draw(self, cell: Cell, tokenizer: Any, text: str, count: int) -> list[int]:
        """Return `count` tokens of a text that the cell's dense model writes.

        Raises UserError where the model does not lie in the memory as a whole, or cannot write.
        """
        if cell.device == "cpu":  # which generates in bfloat16 two to four times slower
            cell = replace(cell, dtype="float32")
        dtype: torch.dtype = getattr(torch, cell.dtype)
        author = own_text.Author(cell.model, torch.device(cell.device), dtype, cell.trust_remote_code, cell.seed)
        prompts = list(_read_questions(cell, text)) if task_of_text(text) else []
        random.Random(cell.seed).shuffle(prompts)
        kept = own_text.read_tokens(author, tokenizer, prompts, count)
        if len(kept) == count or not self.may_write:
            return kept + [0] * (count - len(kept))
        takes, room = footprint_of(cell).weights, self._room(cell)
        if takes > room:
            raise UserError(
                f"--calibration {text} is written by the whole model in memory, and {cell.model} takes "
                f"{to_gib(takes)} where a cell may take {to_gib(room)}; give a text that is read"
            )
        return own_text.write_tokens(author, tokenizer, prompts, count)

    def _room(self, cell: Cell) -> int:
        """Return the bytes that a model may take where it writes."""
        card = bytes_of_card(cell, 1, self.device_memory)
        return room_of(self.memory) if card is None else card


WRITTEN_HERE = OwnTexts()


def draw_calibration(cell: Cell, tokenizer: Any, own: OwnTexts) -> Calibration:
    """Return the calibration of a cell. Raises UserError when a text is too short or cannot be had."""
    p, seed, length = cell.protocol, cell.seed, cell.protocol.calibration_length

    def draw(text: str, sequences: int) -> Tensor:
        if is_own_text(text):
            tokens = own.draw(cell, tokenizer, text, sequences * length)
            return texts.cut_into_sequences(tokenizer, tokens, sequences, length)
        if task_of_text(text):
            return texts.pack_documents(
                tokenizer, text, _read_questions(cell, text), sequences, length=length, seed=seed
            )
        return texts.draw_sequences(tokenizer, text, sequences, length=length, seed=seed)

    return texts.make_calibration(tokenizer, p.calibration, p.calibration_sequences, length, seed, draw=draw)


def _read_questions(cell: Cell, text: str) -> tuple[str, ...]:
    """Return the questions of the task of a text that the cell does not score."""
    return questions.read_unscored_questions(text, cell.protocol.task_data, cell.protocol.documents, cell.seed)


def questions_of_calibration(tokenizer: Any, block: Calibration) -> dict[str, str]:
    """Return what is read of each text of questions or of the dense model, without white space, by the text's name."""
    rows_by_text = rows_of_texts(block.source, len(block.ids))
    return {
        text: texts.text_without_spaces(tokenizer, block.ids[rows])
        for text, rows in rows_by_text.items()
        if task_of_text(text) or is_own_text(text)
    }
