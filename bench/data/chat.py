"""Says how prompts of tasks become turns of a chat, and refuses a tokenizer whose chat template cannot make them.

Prompts are lm-eval's with apply_chat_template and fewshot_as_multiturn: a question is the user's turn, each example in
front of it one of the user and one of the assistant, and the answer is what the assistant says next. Texts of which the
perplexity is measured and calibration texts are never made into turns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from methods.errors import UserError, first_line_of

Turns = Sequence[dict[str, str]]
EXAMPLE = [
    {"role": "user", "content": "One and one?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Two and two?"},
]


@dataclass(frozen=True)
class Chat:
    """Says that prompts go through the chat template of the model's tokenizer.

    system  the text of the system turn; where it is empty the template may have one of its own
    """

    system: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Return the arguments for lm-eval's evaluator."""
        system = self.system or None
        return {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": system}


def check_template(tokenizer: Any, model: str, chat: Chat) -> None:
    """Raise UserError where the tokenizer of `model` has no chat template, or one that refuses what it is to make."""
    try:
        tokenizer.get_chat_template()
    except Exception:  # of several templates none may be the default
        raise UserError(
            f"--apply-chat-template: the tokenizer of {model} has no chat template; take an instruction model, or "
            "leave the flag out"
        ) from None
    _refuse_turns(tokenizer, EXAMPLE, f"--apply-chat-template: the chat template of {model} refuses a chat")
    if chat.system:
        refused = f"--system: the chat template of {model} refuses a system turn"
        text = _refuse_turns(tokenizer, [{"role": "system", "content": chat.system}, *EXAMPLE], refused)
        if chat.system.strip() not in text:
            raise UserError(f"--system: the chat template of {model} leaves a system turn out; leave the flag out")


def _refuse_turns(tokenizer: Any, turns: Turns, refused: str) -> str:
    """Return turns as the template makes them. Raises UserError that begins with `refused` where it does not."""
    try:
        return _render(tokenizer, turns)
    except Exception as error:  # whatever the template of a stranger does with them
        raise UserError(f"{refused} ({first_line_of(error)}); leave the flag out") from None


def sha256_of_template(tokenizer: Any) -> str:
    """Return the sha256 of a chat template and of a chat in it, since some templates write the date of today."""
    return hashlib.sha256(f"{tokenizer.get_chat_template()}\n{_render(tokenizer, EXAMPLE)}".encode()).hexdigest()


def _render(tokenizer: Any, turns: Turns) -> str:
    """Return turns as the template makes them, with the beginning of the answer."""
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text
