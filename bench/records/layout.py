"""Makes the layout of an object in a record: the pydantic model that follows from a dataclass.

Every record has the keys that are needed. Any other key is absent where there is nothing to say, and never null, unless
its kind says so. Keys that no layout names are left alone, since later versions write more of them.

`layout_of` makes the layout of a dataclass whose fields say by `Meaning` or `declare_field` what they are
(bench.plan.kinds). Its values are checked and stay plain JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import GenericAlias, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from bench.plan.kinds import Meaning, is_needed


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
class LayoutOf:
    """Says that a value of a record is a dataclass as plain JSON; `base` names and has the fields that records add."""

    owner: type
    base: type | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Take what the layout of the dataclass takes."""
        return handler.generate_schema(layout_of(self.owner, self.base) if self.base else layout_of(self.owner))


@cache
def layout_of(owner: type, base: type | None = None) -> type[Layout]:
    """Return the layout of a dataclass. A method `refuse_misfit` of it raises ValueError for values that do not fit.

    The first paragraph of its docstring describes the objects. Its module writes them, unless its attribute SOURCE
    names another.
    """
    hints, members = get_type_hints(owner, include_extras=True), dict[str, Any]()
    for field in fields(owner):
        hint = hints[field.name]
        meaning = _meaning_of_field(field, hint)
        needed = is_needed(owner, field) and not meaning.later
        declared = Field(
            default=... if needed else None,
            description=meaning.words,
            alias=meaning.alias or None,
            json_schema_extra={"source": meaning.source} if meaning.source else None,
        )
        members[field.name] = _kind(hint, null=needed or meaning.null), declared
    rules: dict[str, Any] = {}
    if hasattr(owner, "refuse_misfit"):
        rules["refuse_misfit"] = model_validator(mode="after")(_rule_of(owner))
    name, about = (base or owner).__name__, _first_paragraph(owner)
    layout = create_model(
        name, __base__=layout_of(base) if base else Layout, __doc__=about, __validators__=rules, **members
    )
    layout.source = getattr(owner, "SOURCE", owner.__module__)
    return layout


def _meaning_of_field(field: Any, hint: Any) -> Meaning:
    """Return what a field of a dataclass means: what its type says, or its declaration."""
    extras = (*get_args(hint)[1:], field.metadata.get("meaning"))
    return next(extra for extra in extras if isinstance(extra, Meaning))


def _first_paragraph(owner: type) -> str:
    """Return the first paragraph of a class's docstring, as one line."""
    return " ".join((owner.__doc__ or "").partition("\n\n")[0].split())


def _rule_of(owner: Any) -> Any:
    """Return the rule of a dataclass as one of its layout, whose objects have the same attributes."""

    def refuse_misfit(self: Layout) -> Layout:
        owner.refuse_misfit(self)
        return self

    return refuse_misfit


def _kind(hint: Any, *, null: bool = True) -> Any:
    """Return what a record holds of a type: lists for tuples, layouts for dataclasses, any word for given ones.

    null  whether it may be null, where the type has None
    """
    origin, inner = get_origin(hint), get_args(hint)
    annotated: Any = Annotated
    either: Any = Union
    if origin is Annotated:
        extras = [extra for extra in inner[1:] if not isinstance(extra, Meaning)]
        kind = _kind(inner[0], null=null)
        return annotated[(kind, *extras)] if extras else kind
    if origin in (Union, UnionType):
        return either[tuple(_kind(kind) for kind in inner if null or kind is not type(None))]
    if origin is Literal:  # later versions may know more words
        return str if "" in inner else annotated[str, MinLen(1)]
    if origin is tuple:
        return GenericAlias(list, _kind(inner[0]))
    if origin is dict:
        return GenericAlias(dict, (inner[0], _kind(inner[1])))
    return layout_of(hint) if isinstance(hint, type) and is_dataclass(hint) else hint
