"""What a run is asked to do: everything that can change a number, checked whole before any work.

flags or YAML -> RunSpec -> [Cell]
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from bench.errors import UserError

if TYPE_CHECKING:
    from methods.anatomy import Decoder


@dataclass(frozen=True)
class Protocol:
    """How a cell is measured. The same for every cell of a run.

    Sizes are in tokens, counts in pieces; `documents` 0 means all of them, `windows` 0 as many as the text has.
    `fewshot` 0 leaves the number of examples to the task's definition; `task_data` is bench.task_data.parse's (task,
    path, sha256) of tasks whose documents are local files; `checks` says whether bench.checks runs.
    """

    profile: str
    tasks: tuple[str, ...]
    documents: int
    texts: tuple[str, ...]
    window: int
    stride: int
    windows: int
    calibration: str
    calibration_sequences: int
    calibration_length: int
    prefill_length: int
    decode_context: int
    decode_steps: int
    speed_batch: int
    speed_repeats: int
    calibration_memory_mib: int = 1024
    batch_tokens: int = 2048
    scorer: str = "shared"
    fewshot: int = 0
    task_data: tuple[tuple[str, str, str], ...] = ()
    checks: bool = True

    def __post_init__(self) -> None:
        counted = ("window", "calibration_sequences", "calibration_length", "calibration_memory_mib", "batch_tokens")
        for name in (*counted, "prefill_length", "decode_context", "decode_steps", "speed_batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is a positive number; got {getattr(self, name)}")
        if self.fewshot < 0:
            raise UserError(f"fewshot is a number of examples, or 0; got {self.fewshot}")
        for name in ("documents", "windows", "speed_repeats"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is 0 (for all) or positive; got {getattr(self, name)}")
        if not 1 <= self.stride <= self.window:
            raise UserError(f"stride lies between 1 and the window, {self.window}; got {self.stride}")


QUICK_TASKS = ("hellaswag", "piqa", "winogrande", "arc_easy", "openbookqa")
PROFILES = {
    "smoke": Protocol(
        profile="smoke",
        tasks=("piqa", "arc_easy"),
        documents=8,
        texts=("wiki",),
        window=256,
        stride=256,
        windows=4,
        calibration="c4",
        calibration_sequences=8,
        calibration_length=64,
        prefill_length=64,
        decode_context=16,
        decode_steps=4,
        speed_batch=1,
        speed_repeats=3,
    ),
    "quick": Protocol(
        profile="quick",
        tasks=QUICK_TASKS,
        documents=100,
        texts=("wiki",),
        window=512,
        stride=512,
        windows=16,
        calibration="c4",
        calibration_sequences=16,
        calibration_length=256,
        prefill_length=128,
        decode_context=64,
        decode_steps=16,
        speed_batch=1,
        speed_repeats=7,
    ),
    "full": Protocol(
        profile="full",
        tasks=(*QUICK_TASKS, "arc_challenge", "boolq"),
        documents=0,
        texts=("wiki", "c4"),
        window=1024,
        stride=1024,
        windows=0,
        calibration="c4",
        calibration_sequences=32,
        calibration_length=512,
        prefill_length=512,
        decode_context=256,
        decode_steps=64,
        speed_batch=1,
        speed_repeats=15,
    ),
}


@dataclass(frozen=True)
class Cell:
    """One model, one method with all its parameters, one ratio, one seed, one protocol."""

    model: str
    method: str
    parameters: dict[str, Any] = field(hash=False)
    ratio: float | None
    match: str
    seed: int
    device: str
    dtype: str
    protocol: Protocol
    given: tuple[str, ...] = ()  # names of the parameters that were given, for the label
    trust_remote_code: bool = False

    @property
    def label(self) -> str:
        """The method as a reader wants to see it: its name and whatever differs from the defaults."""
        changed = ",".join(f"{name}={self.parameters[name]}" for name in self.given)
        return f"{self.method}:{changed}" if changed else self.method

    @property
    def key(self) -> str:
        """A readable file name that ends in a hash of every field."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        ratio = "fixed" if self.ratio is None else f"{self.ratio:g}"
        return "--".join((slug(self.label), ratio, digest))


def slug(text: str) -> str:
    """`text` as a piece of a file name: letters, digits, dot, dash and underscore only."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or "unnamed"


def parse_ratios(text: str) -> list[float]:
    """'0.1,0.2' -> [0.1, 0.2]. A ratio is the share of all stored parameters to remove, in [0, 1)."""
    ratios = []
    for piece in text.split(","):
        try:
            ratio = float(piece)
        except ValueError:
            raise UserError(f"a ratio is a number in [0, 1), such as 0.3; got {piece.strip()!r}") from None
        if not (math.isfinite(ratio) and 0 <= ratio < 1):
            raise UserError(f"a ratio is the share of parameters to remove, in [0, 1); got {piece.strip()}")
        ratios.append(ratio)
    return list(dict.fromkeys(ratios))


def parse_methods(text: str) -> list[tuple[str, dict[str, str]]]:
    """'laco:C=3,T=0.7,slicegpt' -> [('laco', {'C': '3', 'T': '0.7'}), ('slicegpt', {})].

    A comma separates methods; a piece that is only `name=value` belongs to the method before it.
    """
    methods: list[tuple[str, dict[str, str]]] = []
    for piece in (piece.strip() for piece in text.split(",")):
        if not piece:
            continue
        head, colon, rest = piece.partition(":")
        if colon or "=" not in head:
            methods.append((head.strip(), {}))
        elif methods:
            rest = head
        else:
            raise UserError(f"{piece!r} is a parameter without a method; write METHOD:{piece}")
        if rest:
            name, equals, value = rest.partition("=")
            if not equals or not name.strip() or not value.strip():
                raise UserError(f"a parameter is written NAME=VALUE, as in laco:C=3,T=0.7; got {rest!r}")
            methods[-1][1][name.strip()] = value.strip()
    if not methods:
        raise UserError("no method was named; `python -m bench list methods` shows them")
    return methods


def cells(
    methods_and_parameters: list[tuple[str, dict[str, Any]]],
    ratios: list[float],
    decoder: Decoder,
    common: dict[str, Any],
) -> list[Cell]:
    """The grid: the dense model, then for each ratio each method; a method that needs no ratio once, at the end.

    decoder  the model without weights, so that what no method can reach is refused here and not hours later
    common   the fields of Cell that all have in common
    """
    import methods

    found, fixed = [_cell("dense", {}, None, common)], list[Cell]()
    for name, given in methods_and_parameters:
        try:
            pruner = methods.make(name, given)
        except ValueError as error:
            raise UserError(str(error)) from None
        if name == "dense":
            continue
        if not pruner.fixed and not ratios:
            raise UserError(f"{name} needs a ratio: the share of parameters to remove, as in --ratio 0.3")
        for ratio in [None] if pruner.fixed else ratios:
            cell = _cell(name, given, ratio, common)
            _refuse_unless_reachable(pruner, cell, decoder)
            (fixed if pruner.fixed else found).append(cell)
    order = {ratio: index for index, ratio in enumerate([None, *ratios])}
    found.sort(key=lambda cell: order[cell.ratio])
    return list({cell.key: cell for cell in found + fixed}.values())


def _cell(name: str, given: dict[str, Any], ratio: float | None, common: dict[str, Any]) -> Cell:
    import methods

    parameters = asdict(methods.make(name, given))  # type: ignore[call-overload]
    return Cell(method=name, parameters=parameters, given=tuple(given), ratio=ratio, **common)


def _refuse_unless_reachable(pruner: Any, cell: Cell, decoder: Decoder) -> None:
    """Raise UserError for a ratio that the method cannot meet; an unsupported model is an outcome of its own."""
    import methods

    try:
        ratio = budget(cell, decoder)
        pruner.plan(decoder, ratio)
    except methods.OutOfReach as error:
        raise UserError(f"{cell.label}: {error}") from None
    except methods.Unsupported:
        return
    if cell.ratio and not ratio:
        raise UserError(
            f"ratio {cell.ratio:g} is less than half a layer of this model, so that nothing would go; "
            "ask for more, or say --match exact"
        )


def budget(cell: Cell, decoder: Decoder) -> float:
    """The ratio that the cell has to meet: the request, rounded to whole layers unless it is to be matched exactly."""
    from methods.budget import matched_ratio

    if cell.ratio is None:
        return 0.0
    return matched_ratio(decoder, cell.ratio) if cell.match == "layers" else cell.ratio
