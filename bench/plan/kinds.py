"""Defines kinds of values with their units and limits, and how the field of a dataclass says what it means in a record.

    window: Annotated[Tokens, Meaning("of a perplexity window")] = 512

pydantic reads such types, and its JSON schema has their units and limits. This file does without it, since `--help`
does. A field that is not needed is absent from a record where it is None (`to_plain`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache, partial
from pathlib import PurePath
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Len, MinLen

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic_core import core_schema

T = TypeVar("T")

DRAWN = "whether the windows are drawn from the text; else they follow each other"
MOST = 2**63 - 1  # the largest whole number that tables and Parquet files hold


@dataclass(frozen=True)
class Meaning:
    """Says what a field of a record means.

    source  the module that writes it; empty for that of its class
    null    whether records may hold null where it is None, though it could be absent
    alias   its key in a record, where that is a word of Python or of pydantic; empty for its name
    later   whether records of earlier versions lack it, though its class is written whole now
    """

    words: str
    source: str = ""
    null: bool = False
    alias: str = ""
    later: bool = False


def declare_field(meaning: str, source: str = "", *, alias: str = "") -> Any:
    """Return a field of a dataclass that every record has; arguments as of `Meaning`."""
    return field(metadata={"meaning": Meaning(meaning, source, alias=alias)})


def declare_optional_field(meaning: str, source: str = "", *, null: bool = False, alias: str = "") -> Any:
    """Return a field of a dataclass that is absent from a record where there is nothing to say, and None here."""
    return field(default=None, metadata={"meaning": Meaning(meaning, source, null, alias)})


def is_needed(owner: type, field: Field[Any]) -> bool:
    """Say whether every object of a dataclass in a record has the field.

    That is a field without a default; and any field of a class that is written whole, which says so by `WHOLE`.
    """
    has_default = field.default is not MISSING or field.default_factory is not MISSING
    return not has_default or getattr(owner, "WHOLE", False)


def to_plain(value: Any) -> Any:
    """Return a value as JSON gives it back: of a dataclass a dict, without fields that are None and not needed."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {name: to_plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return list(map(to_plain, value))
    if is_dataclass(value) and not isinstance(value, type):
        inner_by_key = {key: (getattr(value, each.name), needed) for each, key, needed in _keyed_fields(type(value))}
        return {key: to_plain(inner) for key, (inner, needed) in inner_by_key.items() if inner is not None or needed}
    return str(value) if isinstance(value, PurePath) else value


@cache
def _keyed_fields(owner: type) -> list[tuple[Field[Any], str, bool]]:
    """Return the fields of a dataclass, each with its key in a record and whether every object there has it."""
    keyed = []
    for each in fields(owner):
        meaning = each.metadata.get("meaning")
        keyed.append((each, meaning.alias if meaning and meaning.alias else each.name, is_needed(owner, each)))
    return keyed


@cache
def defaults_of_later_fields(owner: type) -> dict[str, Any]:
    """Return the defaults of the fields of a dataclass that records of earlier versions lack, as plain values."""
    defaults = {}
    for name, hint in get_type_hints(owner, include_extras=True).items():
        if any(isinstance(each, Meaning) and each.later for each in get_args(hint)):
            defaults[name] = to_plain(getattr(owner, name))
    return defaults


def value_from_plain(kind: type[T], plain: Any) -> T:
    """Return the object of a dataclass for which `to_plain` gave these values, also after JSON.

    Names that no field has are left out. Values are not checked, which is the work of bench.records.layout: a record of
    another version may hold what this one would not measure. Raises KeyError for a missing field without a default.
    """
    owner: Any = kind
    value: T = _reader_of(owner)(plain)
    return value


def _unchanged(plain: Any) -> Any:
    return plain


@cache
def _reader_of(kind: Any) -> Callable[[Any], Any]:
    """Return what makes a value of a type from plain values; `_unchanged` where the two are the same."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _reader_of(inner[0])
    if origin in (Union, UnionType):
        readers = [_reader_of(each) for each in inner if each is not NoneType]
        return _unchanged if readers != readers[:1] else _unless_none(readers[0])
    if origin is tuple:
        return partial(_read_tuple, _reader_of(inner[0]))
    if origin is dict:
        reader = _reader_of(inner[1])
        return _unchanged if reader is _unchanged else partial(_read_dict, reader)
    return partial(_read_object, kind) if is_dataclass(kind) else _unchanged


def _unless_none(reader: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return reader if reader is _unchanged else lambda plain: None if plain is None else reader(plain)


def _read_tuple(reader: Callable[[Any], Any], plain: Any) -> Any:
    return tuple(map(reader, plain))


def _read_dict(reader: Callable[[Any], Any], plain: Any) -> Any:
    return {name: reader(value) for name, value in plain.items()}


def _read_object(owner: Any, plain: Any) -> Any:
    value = object.__new__(owner)  # without __post_init__, which refuses what this version would not measure
    for name, key, reader, default in _readers_of_fields(owner):
        vars(value)[name] = reader(plain[key]) if key in plain or default is MISSING else default
    return value


@cache
def _readers_of_fields(owner: Any) -> list[tuple[str, str, Callable[[Any], Any], Any]]:
    """Return for each field of a dataclass its name, its key in a record, its reader and its default."""
    hints = get_type_hints(owner, include_extras=True)
    return [(each.name, key, _reader_of(hints[each.name]), each.default) for each, key, _ in _keyed_fields(owner)]


@dataclass(frozen=True)
class Unit:
    """Says in which unit a kind of values is."""

    name: str

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the unit to the JSON schema."""
        return {**handler(core), "unit": self.name}


@dataclass(frozen=True)
class OneOf:
    """Says which words a text may be."""

    words: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Take these words alone."""
        from pydantic_core import core_schema

        return core_schema.literal_schema(list(self.words))


class NoContainer:
    """Refuses a list or an object where a number or a word stands."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Look at the value behind pydantic's own checks."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._take, handler(source))

    @staticmethod
    def _take(value: Any) -> Any:
        if isinstance(value, dict | list):
            raise ValueError("is a number or a text")
        return value


Whole = Annotated[int, Ge(-MOST), Le(MOST)]
Count = Annotated[int, Ge(0), Le(MOST)]
Positive = Annotated[int, Ge(1), Le(MOST)]
Tokens = Annotated[Count, Unit("tokens")]
Bytes = Annotated[Count, Unit("bytes")]
Parameters = Annotated[Count, Unit("parameters")]
Macs = Annotated[Count, Unit("multiply-accumulates")]
Mebibytes = Annotated[Count, Unit("MiB")]
Layers = Annotated[Count, Unit("layers")]
SomeParameters = Annotated[Positive, Unit("parameters")]
SomeLayers = Annotated[Positive, Unit("layers")]
LayerNumber = Annotated[Count, Unit("number of a layer, from 0")]

Amount = Annotated[float, Ge(0)]
Above = Annotated[float, Gt(0)]
Seconds = Annotated[Amount, Unit("s")]
WholeSeconds = Annotated[Count, Unit("s")]
Milliseconds = Annotated[Above, Unit("ms")]
Megahertz = Annotated[Amount, Unit("MHz")]
Watts = Annotated[Amount, Unit("W")]
Joules = Annotated[Amount, Unit("J")]
Celsius = Annotated[float, Unit("°C")]
Nats = Annotated[float, Unit("nats per token")]
Bits = Annotated[float, Unit("bits per byte")]
Cores = Annotated[Amount, Unit("cores")]
Times = Annotated[Amount, Unit("times the dense model's")]
Share = Annotated[float, Ge(0), Le(1), Unit("share, 0 to 1")]
Ratio = Annotated[float, Le(1), Unit("share that went, below 0 where the model grew")]
Error = Annotated[Amount, Unit("share of the squared states")]

Name = Annotated[str, MinLen(1)]
Sha256 = Annotated[str, Unit("sha256, hexadecimal")]
Date = Annotated[str, Unit("UTC, ISO 8601")]
Scalar = Annotated[Any, NoContainer()]
Pair = Annotated[list[float], Len(2, 2)]
