"""Says how a pruned model is healed: `Recipe`, the same for every method of a run.

Text comes from the calibration documents alone, and so do the held-out sequences on which the learning curve is taken:
what models are measured on is not touched. The learning rate is warmed up over a twentieth of the steps and then
lowered to zero along a cosine.

Letters: N = training sequences, H = held-out sequences, T = tokens of a sequence, B = sequences of a step.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bench.plan.fields import check, option
from methods.errors import UserError

if TYPE_CHECKING:
    import torch

KINDS = {"lora": 1e-3, "full": 1e-4}  # and their usual learning rates
RATES = ", ".join(f"{rate:g} for {kind}" for kind, rate in KINDS.items())
PREDICTED = "two tokens or more, since the first is not predicted"
SMALLEST = math.ulp(0.0)  # the number next to 0
WARM_UP = 1 / 20  # share of the steps

healed = partial(option, group="heal")


@dataclass(frozen=True)
class Recipe:
    """Says how a model is healed. Raises UserError for what cannot be.

    kind, loss     see bench.healing.training
    text           whose calibration documents are trained on, as bench.data.texts knows it
    tokens         that are trained on, rounded down to whole sequences; repeats of a pass counted
    passes         over the text: tokens / passes of them are distinct
    learning_rate  its highest; None: 1e-3 for lora, 1e-4 for full
    batch, length  sequences of a step, and tokens of a sequence
    rank           of the adapters
    points         of the learning curve, besides the one before training; a checkpoint is written at each
    seed           of the draw of text, of its order, and of the adapters
    """

    PREFIX: ClassVar = "heal-"  # of its flags

    kind: Literal["lora", "full"] = healed(
        "lora", "measure every method as pruned, and healed; by default not", flag="heal"
    )
    text: str = healed("wiki", "whose calibration half is trained on, by default {default}", "TEXT")
    tokens: int = healed(100_000, "trained on, by default {default:,}", "N", least=1)
    loss: Literal["next-token", "kl"] = healed("next-token", "kl: from the dense model; by default {default}")
    passes: int = healed(1, "over the text, by default {default}", "N", least=1)
    learning_rate: float | None = healed(
        None, f"the highest, by default {RATES}", "RATE", least=SMALLEST, wanted="a positive number"
    )
    batch: int = healed(8, "sequences of a step, by default {default}", "N", least=1)
    length: int = healed(256, "of a sequence, by default {default}", "TOKENS", least=2, wanted=PREDICTED)
    rank: int = healed(8, "of LoRA's matrices, by default {default}", "N", least=1)
    points: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)
        if self.points < 1:
            raise UserError(f"points of healing is a positive number; got {self.points}")
        if self.tokens < self.passes * self.length:
            raise UserError(
                f"healing needs a sequence of {self.length} tokens in each pass, {self.passes * self.length} in all; "
                f"got {self.tokens} tokens"
            )

    @property
    def sequences(self) -> int:
        """Distinct training sequences, N."""
        return self.tokens // self.passes // self.length

    @property
    def steps(self) -> int:
        return self.passes * math.ceil(self.sequences / self.batch)

    @property
    def highest(self) -> float:
        """The learning rate after warming up."""
        return KINDS[self.kind] if self.learning_rate is None else self.learning_rate

    def as_run(self) -> dict[str, Any]:
        """Every field as plain values, with the learning rate and the number of steps that follow from them."""
        return asdict(self) | {"learning_rate": self.highest, "steps": self.steps}

    def rate(self, step: int) -> float:
        """Learning rate of step 0 .. steps - 1."""
        highest = self.highest
        warm = max(1, round(WARM_UP * self.steps))
        if step < warm:
            return highest * (step + 1) / warm
        return highest * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm))) / 2

    def order(self, step: int) -> list[int]:
        """The sequences of a step: each once in every pass."""
        within = math.ceil(self.sequences / self.batch)
        import torch

        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step // within)
        chosen: list[int] = torch.randperm(self.sequences, generator=generator).tolist()
        return chosen[step % within * self.batch :][: self.batch]


def refuse(recipe: Recipe, dtype: torch.dtype, dense: Any) -> None:
    """Raise UserError for what no training can be done in or with."""
    import torch

    if dtype not in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        raise UserError(f"healing trains in float32 or bfloat16, and the model is in {name}; give --dtype bfloat16")
    if recipe.loss == "kl" and dense is None:
        raise UserError("healing by kl needs what the dense model predicts")
