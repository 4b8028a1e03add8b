"""Knows what every method decides on the doctor's model, and what the pruned models then say.

    python docs/generate.py

writes the answers anew, for all methods and compensations of the package, with the parameters that these give in
`tiny`: after one was added, or after a change that is meant to move a number. It refuses answers that another machine
might not give: those where noise as large as the rounding of bfloat16 changes a decision.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import methods
from bench.doctor import tiny_model
from bench.doctor.numbers import TOLERANCE, apart
from bench.system.console import say
from methods.decisions import prune
from methods.errors import UserError
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.spread import Place

FILE = Path(__file__).with_name("answers.json")
RATIO = 0.3
NOISE, DRAWS = 2e-3, 3  # of every weight, as much as bfloat16 rounds off


@dataclass(frozen=True)
class Answer:
    """Holds what is left of the model.

    decided     of the decisions, what was removed
    parameters  how many are left
    logits      some of them, on tokens of their own; none where the weights are drawn anew
    """

    decided: dict[str, Any]
    parameters: int
    logits: list[list[float]] | None


def cases() -> list[str]:
    """Name every method of the package, and every compensation behind a method."""
    compensated = [f"{card.follows}+{card.name}" for card in methods.compensations()]
    return [card.name for card in methods.catalogue()] + compensated


def tiny_parameters(method: str) -> dict[str, str]:
    """Return the parameters with which a built-in method prunes a tiny model; none for another method."""
    return next((card.tiny_parameters for card in methods.catalogue() if card.name == method), {})


def draws_weights(case: str) -> bool:
    """Return whether a compensation draws weights on its device, so that no two kinds of device agree."""
    seeded = {card.name for card in methods.compensations() if any(name == "seed" for name, *_ in card.parameters)}
    return case.partition("+")[2] in seeded


def pruned(
    case: str,
    device: Place,
    dtype: torch.dtype,
    noise: torch.Generator | None = None,
    parameters: dict[str, str] | None = None,
) -> tuple[Decoder, dict[str, Any]]:
    """Return the doctor's model after a method, and what that removed.

    noise       disturbs the weights before
    parameters  of the method; None: those that it gives in `tiny`
    """
    pruner = methods.make(case, tiny_parameters(case.partition("+")[0]) if parameters is None else parameters)
    model = tiny_model.build(device, dtype, mixture="experts" in pruner.alone.axes)
    if noise is not None:
        with torch.no_grad():
            for parameter in model.model.parameters():
                parameter.mul_(1 + NOISE * torch.randn(parameter.shape, generator=noise))
    torch.manual_seed(0)
    decisions = prune(pruner, model, tiny_model.calibration(), 0.0 if case == "dense" else RATIO)
    return model, {name: value for name, value in decisions.items() if name.startswith("removed_")}


def answer(case: str, device: Place, dtype: torch.dtype, noise: torch.Generator | None = None) -> Answer:
    """Prune the doctor's model, and say what is left."""
    model, decided = pruned(case, device, dtype, noise)
    rounded = [[round(value, 4) for value in row] for row in some_logits(model).tolist()]
    return Answer(decided, parameters(model), None if draws_weights(case) else rounded)


@torch.no_grad()
def some_logits(model: Decoder) -> torch.Tensor:
    """Return every 17th logit at every 5th of 30 tokens, (6, 16) float32."""
    ids = tiny_model.tokens("probe", 1, 30).to(model.embed.weight.device)
    logits: torch.Tensor = model.model(input_ids=ids, use_cache=False).logits
    return logits[0, 4::5, ::17].float().cpu()


def read() -> dict[str, Answer]:
    """Return the stored answers, by case."""
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    return {case: Answer(**held) for case, held in stored.items()}


def write() -> None:
    """Find all answers and store them. Raises UserError for one that a little noise changes."""
    torch.set_num_threads(1)
    found = {}
    for case in cases():
        say(case)
        found[case] = answer(case, torch.device("cpu"), torch.float32)
        if doubt := unsteady(case, found[case], DRAWS):
            raise UserError(f"{case} is too near to another choice: {doubt}; nothing is written")
    lines = [f"{json.dumps(case)}: {json.dumps(asdict(held))}" for case, held in found.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def unsteady(case: str, plain: Answer, draws: int) -> str:
    """Say what another decision was under noise, or nothing where all were the same."""
    cpu = torch.device("cpu")
    rounded = [answer(case, cpu, torch.bfloat16)]
    disturbed = [answer(case, cpu, torch.float32, torch.Generator().manual_seed(seed)) for seed in range(draws)]
    for other in (*rounded, *disturbed):
        if other.decided != plain.decided or other.parameters != plain.parameters:
            return f"{other.decided} beside {plain.decided}"
        if plain.logits is not None:
            off = apart(torch.tensor(other.logits), torch.tensor(plain.logits))
            if off > TOLERANCE[torch.bfloat16] / 2:
                return f"its logits move by {off:.2g} of their size"
    return ""
