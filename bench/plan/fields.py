"""Describes the fields of a spec, and reads their values as they are typed.

Fields. Each option is described once: its default, its range, its help, and how its flag is written.

    window: int = option(512, "tokens of a perplexity window", "TOKENS", least=1)

The dataclasses of such fields are RunSpec, Protocol, Recipe and SimilarityProtocol. `options_of_class` gives the flags
of the command line and the keys of spec files. `check_fields` checks the values when an object is made.

Words. One word of a command line may be a list of names, ratios, a budget, or methods with their parameters.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from methods.errors import UserError

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", Path: "a path"}


@dataclasses.dataclass(frozen=True)
class Option:
    """Describes a field: one flag of a command, and the same key of spec files.

    owner        the dataclass that has the field
    field        its name in the dataclass
    hint         its annotation
    flag         the flag without its dashes
    help         what `--help` says; empty where the field has no flag
    group        the heading under which `--help` shows it
    repeated     whether the flag is given several times, and not once with commas
    least        the smallest number that is allowed, alone or in a list
    right_value  the words of an error for a right value, by default made from the annotation and `least`
    """

    owner: type
    field: str
    hint: Any
    default: Any
    flag: str
    help: str = ""
    metavar: str | None = None
    group: str = ""
    repeated: bool = False
    least: float | None = None
    right_value: str = ""

    @property
    def bare(self) -> Any:
        """Return the annotation without None; of several types the first."""
        return get_args(self.hint)[0] if get_origin(self.hint) in (Union, UnionType) else self.hint

    @property
    def kind(self) -> Any:
        """Return the type of its values; tuple for every list."""
        kind = get_origin(self.bare) or self.bare
        return {Sequence: tuple, Literal: str}.get(kind, kind)

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the values that it may have, where the annotation lists them; else none."""
        return tuple(filter(None, get_args(self.bare))) if get_origin(self.bare) is Literal else ()

    def convert(self, value: Any) -> Any:
        """Return a value in the type of the field; a list may come as one value, or as a text with commas.

        Raises UserError, in one line, for a value that is of another type or out of range.
        """
        try:
            if isinstance(value, bool) and self.kind is not bool:
                raise TypeError
            plain = value if self.kind is not tuple else split_repeated(value) if self.repeated else split_list(value)
            return self._adapter.validate_python(plain)
        except (TypeError, ValueError):  # pydantic's own error is one
            raise UserError(self._mistake(value)) from None

    @functools.cached_property
    def _adapter(self) -> Any:
        """Return pydantic's adapter of the annotation and the range."""
        from pydantic import Field, TypeAdapter

        limits = Field() if self.least is None else Field(ge=self.least, allow_inf_nan=False)
        annotated: Any = Annotated
        if self.kind is tuple:
            many: Any = GenericAlias(tuple, (annotated[get_args(self.bare)[0], limits], ...))
            return TypeAdapter[Any](many)
        further_types = get_args(self.hint)[1:] if self.bare is not self.hint else ()
        either: Any = Union
        return TypeAdapter[Any](either[(annotated[self.bare, limits], *further_types)])

    def _mistake(self, value: Any) -> str:
        """Return the message on a wrong value: what would be right, and the value."""
        if self.choices:
            right_value = " or ".join([", ".join(self.choices[:-1]), self.choices[-1]])
        elif self.kind is tuple:
            right_value = f"a list of {'words' if get_args(self.bare)[0] is str else 'whole numbers'}"
            right_value += "" if self.least is None else f", each {self.least} or more"
        elif self.least is not None:
            right_value = {0.0: "0 or positive", 1.0: "a positive number"}.get(self.least, f"{self.least} or more")
        else:
            right_value = KINDS.get(self.kind, f"a {self.kind.__name__}")
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        number = isinstance(value, str) and re.fullmatch(r"-?\d+\.?\d*|nan|inf", value)
        name = f"--{self.flag}" if self.help else self.field
        return f"{name} is {self.right_value or right_value}; got {text if number else repr(text)}"


def option(default: Any, help: str, metavar: str | None = None, **details: Any) -> Any:
    """Return the field of a dataclass that has a flag, by default of the field's name with dashes.

    help     what `--help` says; {default} is the default
    details  the other fields of Option: flag, group, repeated, least, right_value
    """
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar, **details})


@functools.cache
def _describe_fields(owner: Any) -> list[Option]:
    """Return every field of a dataclass; its attribute PREFIX stands in front of their flags."""
    hints, options = get_type_hints(owner), list[Option]()
    for field in dataclasses.fields(owner):
        metadata: dict[str, Any] = {
            "flag": getattr(owner, "PREFIX", "") + field.name.replace("_", "-")
        } | field.metadata
        metadata["help"] = metadata.get("help", "").format(default=field.default)
        options.append(Option(owner, field.name, hints[field.name], field.default, **metadata))
    return options


def options_of_class(owner: type) -> list[Option]:
    """Return the flags of a dataclass, in the order of its fields."""
    return [option for option in _describe_fields(owner) if option.help]


def check_fields(settings: Any) -> None:
    """Convert the values of a dataclass to the types of its fields, in its __post_init__.

    Raises UserError, in one line, for the first value that is of another type or out of range.
    """
    owner: Any = type(settings)
    for option in _describe_fields(owner):
        object.__setattr__(settings, option.field, option.convert(getattr(settings, option.field)))


def split_repeated(value: Any) -> tuple[str, ...]:
    """Return the words of a flag that is given several times; a table gives NAME=VALUE, with commas for a list."""
    if isinstance(value, Mapping):
        return tuple(f"{name}={','.join(map(to_word, split_list(inner)))}" for name, inner in value.items())
    return (value,) if isinstance(value, str) else tuple(value)


class MethodChoice(NamedTuple):
    """Holds a method of a run with the parameters that were given, as text.

    by_name  whether the method itself was named, and not `all`
    """

    method: str
    given: dict[str, Any]
    by_name: bool = True


def split_names(text: str) -> tuple[str, ...]:
    """Return the names of a list: 'a, b,a' -> ('a', 'b'); 'none' -> ()."""
    names = tuple(dict.fromkeys(filter(None, (piece.strip() for piece in text.split(",")))))
    return () if names == ("none",) else names


def split_list(value: Any) -> tuple[Any, ...]:
    """Return the values of a list that was given as text with commas, as one value, or as a list."""
    if isinstance(value, str):
        return split_names(value)
    return tuple(value) if isinstance(value, Iterable) else (value,)


def hint_of_similar_name(name: str, names: Iterable[str]) -> str:
    """Return a hint at the known name that is most like `name`: '; did you mean laco?'; empty where none is like it."""
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def refuse_name(where: str, name: str, names: Iterable[str], see: str) -> NoReturn:
    """Raise UserError for a name that is none of these; it names the one that is most like it.

    where  the words in front of the name, as in "RunSpec takes no"
    see    what is right, or where that stands
    """
    raise UserError(f"{where} {name!r}{hint_of_similar_name(name, names)}; {see}")


def to_word(value: Any) -> str:
    """Return a value as it is typed: None -> 'none', True -> 'true'."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def parse_ratios(values: Any) -> list[float]:
    """Return the ratios of a text, a number or a list: '0.1,0.2' -> [0.1, 0.2].

    A ratio is the share of all stored parameters to remove. Raises UserError for one that is not in [0, 1).
    """
    ratios = []
    for piece in values.split(",") if isinstance(values, str) else split_list(values):
        try:
            ratio = float(piece)
        except (TypeError, ValueError):
            raise UserError(f"a ratio is a number in [0, 1), such as 0.3; got {str(piece).strip()!r}") from None
        if not (math.isfinite(ratio) and 0 <= ratio < 1):
            raise UserError(f"a ratio is the share of parameters to remove, in [0, 1); got {str(piece).strip()}")
        ratios.append(ratio)
    return list(dict.fromkeys(ratios))


def parse_budget(values: Iterable[str]) -> tuple[list[float], str]:
    """Return the shares to remove, and their quantity: 'macs=0.8,0.6' -> ([0.2, 0.4], 'macs').

    Raises UserError for a name of no quantity, for a share that is not in (0, 1], and for a second quantity.
    """
    from methods.counted import QUANTITIES

    form = f"a budget is NAME=SHARE, NAME one of {', '.join(QUANTITIES)}, as in macs=0.8 or macs=0.8,0.6"
    removed_shares, of = list[float](), ""
    for piece in values:
        name, _, text = piece.rpartition("=")
        name = name.strip()
        if name and of and name != of:
            raise UserError(f"a run has budgets of one quantity; got {of} and {name}")
        of = of or name
        if of not in QUANTITIES:
            raise UserError(f"{form}; got {piece!r}{hint_of_similar_name(of, QUANTITIES)}")
        try:
            share = float(text)
        except ValueError:
            raise UserError(f"{form}; got {piece!r}") from None
        if not 0 < share <= 1:
            raise UserError(f"a budget is the share of the dense model that may stay, in (0, 1]; got {text.strip()}")
        removed_shares.append(round(1 - share, 12))
    return list(dict.fromkeys(removed_shares)), of


def parse_methods(values: str | Iterable[str]) -> list[MethodChoice]:
    """Return the methods of a text, or of a list of texts, with their parameters.

    'laco:C=3,T=0.7,slicegpt' -> [('laco', {'C': '3', 'T': '0.7'}), ('slicegpt', {})]; 'all' is every built-in method
    that takes a ratio. A comma separates methods; a piece that is only `name=value` belongs to the method before it.
    Raises UserError where no method is named, and for a parameter that is not written so or is given twice.
    """
    choices: list[MethodChoice] = []
    for piece in ",".join([values] if isinstance(values, str) else values).split(","):
        head, colon, rest = piece.strip().partition(":")
        if not head and not colon:
            continue
        if colon or "=" not in head:
            choices.append(MethodChoice(head.strip(), {}))
        elif choices:
            rest = head
        else:
            raise UserError(f"{piece.strip()!r} is a parameter without a method; write METHOD:{piece.strip()}")
        if rest:
            name, equals, value = rest.partition("=")
            method, given = choices[-1].method, choices[-1].given
            if not equals or not name.strip() or not value.strip():
                raise UserError(f"a parameter is written NAME=VALUE, as in laco:C=3,T=0.7; got {rest!r}")
            if name.strip() in given:
                both = f"{given[name.strip()]},{value.strip()}"
                raise UserError(
                    f"{method}:{name.strip()} is given twice, as {both.replace(',', ' and ')}; give one, or for a run "
                    f"of each --set {method}.{name.strip()}={both}"
                )
            given[name.strip()] = value.strip()
    if ("all", {}, True) in choices:
        from methods.cards import cards_of_methods

        named = [choice for choice in choices if choice != ("all", {}, True)]
        every = [card.name for card in cards_of_methods() if not card.fixed]
        choices = [*(MethodChoice(name, {}, by_name=(name, {}, True) in named) for name in every), *named]
    if not choices:
        raise UserError("no method was named; `python -m bench list methods` shows them")
    return choices
