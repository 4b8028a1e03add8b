"""What a run is asked to do: everything that can change a number, checked whole before any work.

flags -> Protocol, methods, ratios -> [Cell]
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.recipe import Recipe
from bench.record import label

if TYPE_CHECKING:
    from methods.anatomy import Decoder
    from methods.pruner import Pruner


CACHES = ("dynamic", "static")
SAVE_DTYPES = ("", "auto", "float32", "bfloat16", "float16")
MIN_ROUNDS = 6  # the fewest that have a signed-rank interval of 95 %, see bench.stats; from 12 on one may be spoilt


@dataclass(frozen=True)
class Protocol:
    """How a cell is measured. The same for every cell of a run.

    Sizes are in tokens, counts in pieces; `documents` 0 means all of them, `windows` 0 as many as the text has.
    `fewshot` 0 leaves the number of examples to the task's definition; `task_data` is bench.task_data.parse's (task,
    path, sha256) of tasks whose documents are local files; `checks` says whether bench.checks runs. `save_dtype` is
    what pruned models are saved in, and measured as they load again; "auto" is the base's dtype, "" saves nothing.

    Speed: `prefill` prompt lengths, `decode` depths of context, `batches` sequences at once; `speed_rounds` 0 times
    nothing; `decode_steps` tokens per pass of a round; `max_batch` ends a sweep over 1, 2, 4, ..., 0 sweeps nothing;
    `pin` cores that the timing may use, none for all; `speed_limit` seconds of silence after which it is given up.
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
    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    batches: tuple[int, ...]
    speed_rounds: int
    decode_steps: int
    max_batch: int = 0
    cache: str = "dynamic"
    compile: bool = False
    pin: tuple[int, ...] = ()
    speed_limit: int = 600
    calibration_memory_mib: int = 1024
    batch_tokens: int = 2048
    scorer: str = "shared"
    fewshot: int = 0
    task_data: tuple[tuple[str, str, str], ...] = ()
    checks: bool = True
    save_dtype: str = ""

    def __post_init__(self) -> None:
        counted = ("window", "calibration_sequences", "calibration_length", "calibration_memory_mib", "batch_tokens")
        for name in (*counted, "decode_steps", "speed_limit"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is a positive number; got {getattr(self, name)}")
        if self.fewshot < 0:
            raise UserError(f"fewshot is a number of examples, or 0; got {self.fewshot}")
        for name in ("documents", "windows"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is 0 (for all) or positive; got {getattr(self, name)}")
        if not 1 <= self.stride <= self.window:
            raise UserError(f"stride lies between 1 and the window, {self.window}; got {self.stride}")
        stems = [Path(text).stem for text in self.texts]
        if doubled := [text for text in self.texts if stems.count(Path(text).stem) > 1]:
            raise UserError(f"{' and '.join(doubled)} share a name, by which samples are kept; rename one of them")
        if self.save_dtype not in SAVE_DTYPES:
            raise UserError(f"save-dtype is {', '.join(SAVE_DTYPES[1:])}; got {self.save_dtype!r}")
        self._check_speed()

    def _check_speed(self) -> None:
        if self.speed_rounds and self.speed_rounds < MIN_ROUNDS:
            raise UserError(
                f"speed-rounds is 0 for no speed, or at least {MIN_ROUNDS}, since fewer rounds have no 95 % interval; "
                f"got {self.speed_rounds}"
            )
        for name in ("prefill", "decode", "batches"):
            sizes = getattr(self, name)
            if (not sizes and name == "batches") or any(size < 1 for size in sizes):
                raise UserError(f"{name} is a list of positive numbers, as in 1,8; got {','.join(map(str, sizes))!r}")
        if self.speed_rounds and not (self.prefill or self.decode):
            raise UserError("speed needs a prompt length or a depth of context to be timed at; both are none")
        if self.max_batch < 0:
            raise UserError(f"max-batch is 0 for no sweep, or the largest batch of one; got {self.max_batch}")
        if self.cache not in CACHES:
            raise UserError(f"cache is {' or '.join(CACHES)}; got {self.cache!r}")
        if any(core < 0 for core in self.pin):
            raise UserError(f"pin is a list of core numbers, as in 0,1; got {','.join(map(str, self.pin))!r}")


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
        prefill=(64,),
        decode=(16,),
        batches=(1,),
        speed_rounds=6,
        decode_steps=4,
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
        prefill=(128,),
        decode=(64,),
        batches=(1,),
        speed_rounds=12,
        decode_steps=4,
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
        prefill=(512,),
        decode=(256,),
        batches=(1, 8),
        speed_rounds=20,
        decode_steps=16,
    ),
    "speed": Protocol(
        profile="speed",
        tasks=(),
        documents=0,
        texts=(),
        window=512,
        stride=512,
        windows=0,
        calibration="c4",
        calibration_sequences=16,
        calibration_length=256,
        prefill=(128,),
        decode=(64,),
        batches=(1,),
        speed_rounds=60,
        decode_steps=8,
        checks=False,
    ),
}


@dataclass(frozen=True)
class Stage:
    """What was done to a model before, by the names of Cell."""

    method: str
    parameters: dict[str, Any] = field(hash=False)
    ratio: float | None
    given: tuple[str, ...] = ()
    healing: Recipe | None = None


@dataclass(frozen=True)
class Cell:
    """One model, one method with all its parameters, one ratio, one seed, one protocol.

    healing  how the model is trained once it is pruned
    earlier  what was done to it before, first to last; `ratio` is of the dense model all the same (bench.chain)
    inputs   what the answer stands on (bench.inputs); the runner fills it in, since it needs the loaded materials
    """

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
    inputs: dict[str, Any] = field(default_factory=dict, hash=False)
    healing: Recipe | None = None
    earlier: tuple[Stage, ...] = ()

    @property
    def label(self) -> str:
        """The cell as a reader wants to see it: its method and the parameters that were given."""
        return label(self.plain())

    @property
    def key(self) -> str:
        """A readable file name that ends in a hash of every field."""
        digest = hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()[:8]
        ratio = "fixed" if self.ratio is None else f"{self.ratio:g}"
        return "--".join((slug(self.label), ratio, digest))

    def plain(self) -> dict[str, Any]:
        """Every field, as a record holds it; healing and earlier stages only where there are any."""
        absent = {name for name in ("healing", "earlier") if not getattr(self, name)}
        return {name: value for name, value in asdict(self).items() if name not in absent}


def asked(cell: Cell | Mapping[str, Any]) -> str:
    """Everything that a cell, or the `cell` of a record, was asked for, without what its answer stands on."""
    plain = cell if isinstance(cell, Mapping) else cell.plain()
    names = {name.name for name in fields(Cell)} - {"inputs"}
    return json.dumps({name: plain[name] for name in names if name in plain}, sort_keys=True)


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
    if ("all", {}) in methods:
        methods = [*_all(), *(pair for pair in methods if pair != ("all", {}))]
    if not methods:
        raise UserError("no method was named; `python -m bench list methods` shows them")
    return methods


def _all() -> list[tuple[str, dict[str, str]]]:
    """Every built-in method that takes a ratio."""
    from methods import catalogue

    return [(card.name, {}) for card in catalogue() if not card.fixed]


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
            (fixed if pruner.fixed else found).extend(_draws(pruner, cell))
    order = {ratio: index for index, ratio in enumerate([None, *ratios])}
    found.sort(key=lambda cell: order[cell.ratio])
    return list({cell.key: cell for cell in found + fixed}.values())


def _draws(pruner: Pruner, cell: Cell) -> list[Cell]:
    """The cell, or of a method that draws at random (fields `draws`, `seed`) one for each draw, of one label."""
    count = getattr(pruner, "draws", 1)
    if count == 1 or getattr(pruner, "seed", None) is not None:
        return [cell]
    return [replace(cell, parameters=cell.parameters | {"seed": cell.seed + draw}) for draw in range(count)]


def _cell(name: str, given: dict[str, Any], ratio: float | None, common: dict[str, Any]) -> Cell:
    import methods

    parameters = methods.parameters(methods.make(name, given))
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
