"""Defines a record: one cell's outcome, as one JSON file that is written once and never edited.

    results/<run>/cells/<key>.json               the cell, its decisions and its measured values
    results/<run>/samples/<key>/<name>.parquet   one row per document or perplexity window

Once the run is packed, it is a line of records.jsonl (bench.records.packed_run).

Reading. Plain JSON values are held against `RecordLayout`. A message says which field is wrong and what would be right.

Writing. A record is made of any outcome of a cell. Values that no record can hold are left out, and the error says
which. Where an object of the layout has lost a field that it needs, the smallest object that holds it goes too: a text,
a metric, the learning curve with its healing. A list is left out whole, since its places count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bench.plan.cell import Cell
from bench.plan.kinds import Name, OneOf, declare_field, declare_optional_field, to_plain, value_from_plain
from bench.records.decided import Decisions
from bench.records.layout import LayoutOf, layout_of
from bench.records.measured import Measured
from bench.records.speed_results import Environment
from methods.errors import UserError, first_line_of
from methods.files import write_atomically

SCHEMA = 3
LOST = "lost"
FAILED = ("error", "out_of_memory", "crashed", "timed_out", LOST)
REFUSED = ("unsupported", "out_of_reach")  # what a method cannot do: outcomes, and no failures
STATUSES = ("ok", *REFUSED, *FAILED)
EARLIER = ("parameters", "layers", "ratio", "ratio_budget", "pruned_sha256", "prune_seconds", "healing")
LEFT_OUT = "it is left out"  # ends the message on a record that does not fit
KEYS = ("status", "environment", "decisions", "measured", "error", "schema")  # behind the cell


class InvalidRecord(UserError):
    """Says why a file is not a record: truncated, of another schema, or with a field that does not fit."""


@dataclass(frozen=True)
class Record:
    """Holds one cell's outcome. `display_name` is the model's name for a reader."""

    cell: Cell
    status: str
    environment: dict[str, Any]
    decisions: dict[str, Any] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured)
    error: str | None = None
    schema: int = SCHEMA
    display_name: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise InvalidRecord(f"status is one of {', '.join(STATUSES)}; got {self.status!r}")
        if self.status == "ok" and self.error is not None:
            raise InvalidRecord("error is a reason, not null, and status is ok")
        if self.status != "ok" and self.error is None:
            raise InvalidRecord(f"error is null, not a reason, and status is {self.status}")
        if self.status == "ok" and self.measured.parameters is None:
            raise InvalidRecord("measured.parameters is missing, and status is ok")

    def plain(self) -> dict[str, Any]:
        """Return the record as its file holds it, with the names of its cell for a reader."""
        names = {"display_name": self.display_name} if self.display_name is not None else {}
        cell = self.cell.plain() | names | {"label": self.cell.label}
        return {"cell": cell} | {name: to_plain(getattr(self, name)) for name in KEYS}


def name_of_model(record: Record) -> str:
    """Return the name of a record's model, as tables and pages write it."""
    return record.display_name or record.cell.model


def names_of_models(models: Iterable[str]) -> dict[str, str]:
    """Return {model: the shortest end of its path or address that no other model has}."""
    parts = {model: PurePath(model).parts for model in models}
    name_by_model = {}
    for model, own in parts.items():
        other_parts = [theirs for name, theirs in parts.items() if name != model]
        length = 1
        while length < len(own) and any(theirs[-length:] == own[-length:] for theirs in other_parts):
            length += 1
        name_by_model[model] = str(PurePath(*own[-length:]))
    return name_by_model


def peak_of_stage(measured: Measured, stage: str = "") -> int | None:
    """Return the highest bytes of a stage, or of all: allocated on GPUs, resident on a CPU; None if unknown."""
    stages = measured.peak_memory or {}
    peaks = [stages[stage]] if stage in stages else [] if stage else list(stages.values())
    sizes = [peak.resident_bytes if peak.allocated_bytes is None else peak.allocated_bytes for peak in peaks]
    return max((size for size in sizes if size is not None), default=None)


def save(record: Record, path: Path) -> None:
    """Write a record atomically: the file is there whole or not at all."""
    write_json(record.plain(), path)


def write_json(plain: Mapping[str, Any], path: Path) -> None:
    """Write the plain values of a record atomically."""
    write_atomically(path, json.dumps(plain, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Record:
    """Return the record of a file. Raises InvalidRecord with the file and the first mistake in it."""
    return record_from_json(read_json(read_content(path), str(path)), str(path))


def read_content(path: Path) -> bytes:
    """Return the bytes of a file of records. Raises InvalidRecord where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRecord(f"{path} cannot be read: {first_line_of(error)}") from None


def read_json(text: bytes, where: str) -> Any:
    """Return the values of a JSON text. Raises InvalidRecord; its message begins with `where`, the file or line."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord(f"{where} is not JSON: {first_line_of(error)}") from None


def record_from_json(data: Any, where: str) -> Record:
    """Return the record in a JSON object. Raises InvalidRecord; its message begins with `where`, the file or line."""
    if isinstance(data, dict) and data.get("schema", SCHEMA) != SCHEMA:
        raise InvalidRecord(f"{where} has schema {data['schema']}; this version reads {SCHEMA}")
    if wrong := misfit_of_record(data):
        raise InvalidRecord(f"{where}: {wrong}")
    try:
        return record_from_plain(data)
    except InvalidRecord as error:
        raise InvalidRecord(f"{where}: {error}") from None


def record_from_plain(data: Mapping[str, Any]) -> Record:
    """Return the record of plain values that fit. Names of the cell that this version does not know are left out."""
    values = {name: data[name] for name in KEYS} | {"measured": value_from_plain(Measured, data["measured"])}
    return Record(value_from_plain(Cell, data["cell"]), **values, display_name=data["cell"].get("display_name"))


def misfit_of_record(data: Any) -> str:
    """Return one sentence on why plain JSON values are no record; empty where they are one."""
    return misfit_of_layout(data, RecordLayout)


MOST_CHARACTERS = 40  # characters of a value that a message shows

RIGHT_VALUES = {  # what would be right, by the kind of mistake
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number below 2^63",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
LIMITS = {  # and where a limit is crossed
    "greater_than_equal": "{ge} or more",
    "greater_than": "above {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "below {lt}",
    "literal_error": "{expected}",
}


def misfit_of_layout(data: Any, layout: type) -> str:
    """Return one sentence on why plain JSON values do not fit a layout; empty where they do."""
    try:
        layout_of(layout).model_validate(data)
    except ValidationError as error:
        first, *more = error.errors(include_url=False)
        ending = f", and {len(more)} more fields do not fit" if len(more) > 1 else ", and another field does not fit"
        return _words_of_error(first) + (ending if more else "")
    return ""


def invalid_paths(data: Any, layout: type) -> list[tuple[str | int, ...]]:
    """Return the paths at which plain JSON values do not fit a layout, each as keys and numbers from the outside in."""
    try:
        layout_of(layout).model_validate(data)
    except ValidationError as error:
        return [
            mistake["loc"] for mistake in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    return []


def _words_of_error(error: ErrorDetails) -> str:
    """Say what is wrong with a field, and what would be right."""
    path, kind, limits = _path(error["loc"]), error["type"], error.get("ctx", {})
    if kind == "missing":
        return f"{path} is missing"
    if kind == "value_error":
        return f"{path} {limits['error']}"
    if kind in LIMITS:
        right_value = LIMITS[kind].format(**{name: _limit(limit) for name, limit in limits.items()})
    elif kind in ("too_short", "too_long", "string_too_short"):
        right_value = "empty" if kind == "too_long" and not limits["max_length"] else _length(kind, limits)
    else:
        right_value = RIGHT_VALUES.get(kind, error["msg"].lower())
    return f"{path} is {_short_value(error['input'])}, not {right_value}"


def _limit(limit: Any) -> Any:
    return f"{limit:g}" if isinstance(limit, float) else limit


def _length(kind: str, limits: Mapping[str, Any]) -> str:
    """Say how long a list or a text is to be."""
    if kind == "string_too_short":
        return "a text with a letter in it"
    return f"a list of {limits.get('min_length', limits.get('max_length'))}" + " or more" * (kind == "too_short")


def _path(places: Sequence[str | int]) -> str:
    """Write where a field stands, as in measured.speed.points[0].batch."""
    path = "".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in places)
    return path.removeprefix(".") or "it"


def _short_value(value: Any) -> str:
    """Write a value so short that a sentence can hold it."""
    text = json.dumps(value, default=str)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."


@dataclass(frozen=True, kw_only=True)
class RecordedCell:
    """Names a record's cell for readers."""

    display_name: str | None = declare_optional_field("the model's name for a reader", "bench.data.pretrained")
    label: Name | None = declare_optional_field("the method and the parameters that were given, as in laco:C=3")


@dataclass(frozen=True, kw_only=True)
class RecordLayout:
    """Describes a record: the outcome of one cell."""

    SOURCE: ClassVar[str] = "bench.runs.job"

    number: Annotated[int, OneOf((SCHEMA,))] = declare_field("number of this layout", alias="schema")
    cell: Annotated[Any, LayoutOf(Cell, RecordedCell)] = declare_field("what was asked for")
    status: Annotated[str, OneOf(STATUSES)] = declare_field(
        f"{', '.join(REFUSED)}: what the method cannot do, which are outcomes; {', '.join(FAILED)}: failures, of which "
        "lost is of a machine that went away again and again"
    )
    error: str | None = declare_field("why the status is not ok, else null")
    environment: Environment = declare_field("where it was measured")
    decisions: Decisions = declare_field("what the method decided")
    measured: Measured = declare_field("what was measured")

    def refuse_misfit(self) -> None:
        """Raise ValueError for layers that the model did not have."""
        layers = self.measured.dense_layers
        for name in ("removed_layers", "removed_attention", "removed_mlp") if layers else ():
            if beyond := [number for number in getattr(self.decisions, name) or () if number >= layers]:
                raise ValueError(f"has {beyond[0]} in decisions.{name}, and measured.dense_layers is {layers}")


RESULT_FIELDS = ("decisions", "measured")  # the fields of a record that may lose values
NO_VALUE = object()  # stands where nothing is left

Lost = dict[str, list[str]]  # {what is wrong: the paths of such values}


def without_invalid_values(record: Record) -> Record:
    """Return the record unchanged where it fits; else a failed one without the values that do not fit."""
    lost: Lost = {}
    plain = record.plain()
    valid = {name: _plain(plain[name], name, lost) for name in RESULT_FIELDS}
    data = json.loads(json.dumps(plain | valid))
    reasons = [f"{what}: {', '.join(dict.fromkeys(paths))}" for what, paths in lost.items()]
    if wrong := misfit_of_layout(data, RecordLayout):
        reasons = reasons or [f"this is no record's: {wrong}"]
        while (places := invalid_paths(data, RecordLayout)) and _leave_out(data, places[0]):
            pass
    if not reasons:
        return record
    return record_from_plain(data | {"status": "error", "error": record.error or "; ".join(reasons)})


def _plain(value: Any, path: str, lost: Lost) -> Any:
    """Return a value without the parts that JSON cannot hold, and note their paths in `lost`."""
    if isinstance(value, float) and not math.isfinite(value):
        lost.setdefault("not a finite number", []).append(path)
        return NO_VALUE
    if isinstance(value, Mapping):
        parts = {name: _plain(inner, f"{path}.{name}", lost) for name, inner in value.items()}
        return {name: inner for name, inner in parts.items() if inner is not NO_VALUE}
    if isinstance(value, list | tuple):
        items = [_plain(inner, path, lost) for inner in value]
        return [None if inner is NO_VALUE else inner for inner in items]
    if value is None or isinstance(value, str | int | float):
        return value
    lost.setdefault("not a value of JSON", []).append(f"{path} ({type(value).__name__})")
    return NO_VALUE


def _leave_out(data: dict[str, Any], place: Sequence[str | int]) -> bool:
    """Remove the smallest object of RESULT_FIELDS that holds `place`; return whether there is one."""
    steps, inside = list[str | int](), [data]
    for step in place:
        holder: Any = inside[-1]
        if not (step in holder if isinstance(holder, dict) else isinstance(holder, list) and isinstance(step, int)):
            break  # what is missing, or the name of a kind of value
        steps.append(step)
        inside.append(holder[step])
    while steps and isinstance(steps[-1], int):
        steps.pop()
    if len(steps) > 1 and steps[0] in RESULT_FIELDS:
        del inside[len(steps) - 1][steps[-1]]  # type: ignore[arg-type]
        return True
    emptied = steps if steps else [name for name in RESULT_FIELDS if data[name]]  # what is wrong may be between the two
    if not emptied or emptied[0] not in RESULT_FIELDS or not data[emptied[0]]:
        return False
    data[emptied[0]] = {}
    return True
