"""Defines kinds of values with their units, and how a field of a record is described.

Every record has the keys that are needed. Any other key is absent where there is nothing to say, and never null, unless
its kind says so. Keys that no layout names are left alone, since later versions write more of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import core_schema

DRAWN = "whether the windows are drawn from the text; else they follow each other"
MOST = 2**63 - 1  # the largest whole number that tables and Parquet files hold


def _add_source(schema: dict[str, Any], layout: Any) -> None:
    """Add to the JSON schema of a model what writes its fields."""
    schema["source"] = layout.source


class Layout(BaseModel):
    """Describes an object in a record.

    source  what writes its fields, a module; a field may name another
    """

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra=_add_source,
        defer_build=True,
    )
    source: ClassVar[str] = ""


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
        return core_schema.literal_schema(list(self.words))


def declare_field(meaning: str, source: str = "", **limits: Any) -> Any:
    """Return a field that every record has. `source` is what writes it, where that is not its model's."""
    return Field(description=meaning, json_schema_extra={"source": source} if source else None, **limits)


def declare_optional_field(meaning: str, source: str = "", **limits: Any) -> Any:
    """Return a field that is absent where there is nothing to say."""
    return Field(default=None, description=meaning, json_schema_extra={"source": source} if source else None, **limits)


def _plain(value: Any) -> Any:
    """Refuse a list or an object where a number or a word stands."""
    if isinstance(value, dict | list):
        raise ValueError("is a number or a text")
    return value


Whole = Annotated[int, Field(ge=-MOST, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Tokens = Annotated[Count, Unit("tokens")]
Bytes = Annotated[Count, Unit("bytes")]
Parameters = Annotated[Count, Unit("parameters")]
Macs = Annotated[Count, Unit("multiply-accumulates")]
Mebibytes = Annotated[Count, Unit("MiB")]
Layers = Annotated[Count, Unit("layers")]
SomeParameters = Annotated[Positive, Unit("parameters")]
SomeLayers = Annotated[Positive, Unit("layers")]
LayerNumber = Annotated[Count, Unit("number of a layer, from 0")]

Amount = Annotated[float, Field(ge=0)]
Above = Annotated[float, Field(gt=0)]
Seconds = Annotated[Amount, Unit("s")]
Milliseconds = Annotated[Above, Unit("ms")]
Megahertz = Annotated[Amount, Unit("MHz")]
Watts = Annotated[Amount, Unit("W")]
Joules = Annotated[Amount, Unit("J")]
Celsius = Annotated[float, Unit("°C")]
Nats = Annotated[float, Unit("nats per token")]
Bits = Annotated[float, Unit("bits per byte")]
Cores = Annotated[Amount, Unit("cores")]
Times = Annotated[Amount, Unit("times the dense model's")]
Share = Annotated[float, Field(ge=0, le=1), Unit("share, 0 to 1")]
Ratio = Annotated[float, Field(le=1), Unit("share that went, below 0 where the model grew")]
Error = Annotated[Amount, Unit("share of the squared states")]

Name = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Unit("sha256, hexadecimal")]
Date = Annotated[str, Unit("UTC, ISO 8601")]
Scalar = Annotated[Any, AfterValidator(_plain)]
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
