"""Says how exported models are served, scored and timed by an inference engine: `ServedProtocol`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

from bench.plan.fields import check, option
from bench.plan.protocol import MIN_ROUNDS
from methods.errors import UserError, first_line

AUTO = "auto"  # the dtype of the cell
QUANTISED = ("q8_0", "q4_0")  # types that llama.cpp itself writes into a GGUF file
TYPES = (AUTO, "float32", "bfloat16", "float16", *QUANTISED)
LLAMA_CPP, VLLM, SGLANG = ("llama.cpp", "vllm", "sglang")


@dataclass(frozen=True)
class ServedProtocol:
    """Says what is asked of an engine, of every model alike. Raises UserError for what cannot be.

    The dense model in the first of `types` is what every row is compared with. `prefill` are prompt lengths, `decode`
    depths of context, `batches` sequences at once, `steps` the tokens that a pass generates for each of them. A text's
    `windows` of `window` tokens are scored by the engine.
    """

    engine: Literal["llama.cpp", "vllm", "sglang"] = option("llama.cpp", "what serves the models, by default {default}")
    engine_python: str = option("", "that has vllm or sglang, as in /opt/vllm/bin/python", "PATH")
    engine_args: str = option("", "for vllm or sglang, as in --engine-args=--enforce-eager", "WORDS")
    types: tuple[str, ...] = option(
        (AUTO, "q8_0"), f"of weights, by default auto,q8_0: {', '.join(TYPES)}; auto is as in the cell", "LIST"
    )
    prefill: tuple[int, ...] = option((128,), "prompt lengths in tokens, by default 128; or none", "LIST", least=1)
    decode: tuple[int, ...] = option(
        (128,), "tokens of context before the first that is generated, by default 128; or none", "LIST", least=1
    )
    batches: tuple[int, ...] = option((1,), "sequences at once, by default 1", "LIST", flag="batch", least=1)
    steps: int = option(16, "tokens that a pass generates for each sequence, by default {default}", "N", least=1)
    rounds: int = option(12, "of dense against pruned, by default {default}", "N", least=MIN_ROUNDS)
    text: str = option("wiki", "that the engine scores, by default {default}; see `list texts`", "TEXT")
    windows: int = option(16, "of that text, by default {default}", "N", least=2)
    window: int = option(512, "tokens of a window, by default {default}", "TOKENS", least=2)
    silence: int = option(
        600, "without a word after which the engine is ended, by default {default}", "SECONDS", least=1
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.types or (wrong := [kind for kind in self.types if kind not in TYPES]):
            got = wrong[0] if self.types else "none"
            raise UserError(f"--types is a list of {', '.join(TYPES)}; got {got}")
        if not (self.prefill or self.decode) or not self.batches:
            raise UserError("there is nothing to time: give --prefill or --decode, and --batch")
        try:
            shlex.split(self.engine_args)
        except ValueError as error:
            wrong_words = first_line(error).lower()
            raise UserError(f"--engine-args are words as in a shell; got {self.engine_args!r}: {wrong_words}") from None
        if self.engine != LLAMA_CPP and (quantised := [kind for kind in self.types if kind in QUANTISED]):
            raise UserError(f"{quantised[0]} is a type of llama.cpp's; {self.engine} is given {', '.join(TYPES[:4])}")
