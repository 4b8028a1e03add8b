"""Defines a quantity, how a field of a typed result declares one, and how its values are written.

`declare_quantity` stands where a result has its field. `bench.records.quantities` collects all of them. The frame,
tables, figures, footnotes, trackers and docs/quantities.md follow from what is declared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.plan.kinds import Meaning

MISSING = "-"


@dataclass(frozen=True)
class Part:
    """A part of the frame.

    conditions    what its values depend on
    topic         the word by which a table asks for the footnotes of its columns; empty: the name of each column
    view_columns  the group of columns of the main or per-task view that has its quantities
    """

    conditions: str
    topic: str = ""
    view_columns: str = ""


PARTS = {  # in the order of tables
    "amount": Part("size"),
    "text": Part("text", "perplexity", "quality"),
    "positions": Part("text", "positions"),
    "checks": Part("text", "checks", "checks"),
    "task": Part("task", "tasks"),
    "answers": Part("task", "answers", "answers"),
    "flips": Part("task", "flips", "flips"),
    "skills": Part("task", "skills"),
    "written": Part("task", "written", "written"),
    "mean": Part("task", "tasks", "summary"),
    "speed": Part("speed", "speed", "summary"),
    "size": Part("size"),
    "cost": Part("cost"),
    "healing": Part("cost"),
}
SCALE_OF_UNIT = {"%": 100.0}  # from a value to its axis
WORDS_OF_UNIT = {"%": " %", "x": " times as fast"}  # behind a value that is read out of a figure


@dataclass(frozen=True)
class Quantity:
    """Something that is measured: where a record holds it, and how it is named, written, averaged and compared.

    name          the column of the frame; {} stands for a text or a task: "answer_bpb_{}"
    heading       of columns and axes; {} stands for the name of the text or task
    meaning       what it is, without a verb
    format        (value, value beside it) -> text; the second sets the decimals, so that 20.8 gets +- 0.9
    unit          of the value as it is written; empty if there is none, or if the format picks one by size
    unit_in_cell  whether the unit stands behind each value, or once in the heading or a note
    better        which way is better; None if neither is
    spread        what ± takes from the frame: the 95 % interval (_low, _high) or the standard error (_stderr)
    average       over draws and seeds: the mean, the mean of logarithms, or the highest value
    path          the place in a record's `measured`: "tasks.{}.answer_bpb"; empty for what is computed from others
    part          the part of the frame, one of PARTS
    depends_on    the conditions that cells must share to be compared; empty for those of the part
    reads_text    whether a check reads the first text, whose windows must then be the same
    over_tasks    whether the mean over all tasks has a column of its own
    tested        whether rows are tested in pairs, by samples of windows or documents that have a column for it
    view_columns  the group of columns of the main or per-task view that has it; None for that of the part, empty: none
    is_wide       whether a terminal has room for its spread
    is_drawn      whether it has figures by ratio, by method, and against size and speed
    note          the footnote of its column; None for one that is made of the rest, empty for none
    topic         the word by which a table asks for the footnote; empty for that of the part, or for the name
    title         its name in titles and on axes; empty for the heading
    scale         from a value to its axis; None for that of the unit
    read_out      the words behind a value that is read out of a figure; empty for those of the unit
    """

    name: str
    heading: str
    meaning: str
    format: Callable[[float, float], str]
    unit: str = ""
    unit_in_cell: bool = True
    better: Literal["higher", "lower"] | None = None
    spread: Literal["interval", "stderr"] | None = None
    average: Literal["mean", "log mean", "highest"] = "mean"
    path: str = ""
    part: str = "size"
    depends_on: str = ""
    reads_text: bool = True
    over_tasks: bool = False
    tested: bool = False
    view_columns: Literal["", "quality", "summary", "checks", "cost", "answers", "flips", "written"] | None = None
    is_wide: bool = False
    is_drawn: bool = False
    note: str | None = None
    topic: str = ""
    title: str = ""
    scale: float | None = None
    read_out: str = ""

    @property
    def is_each(self) -> bool:
        """Say whether each text or task has a column of its own."""
        return "{}" in self.name

    @property
    def field(self) -> str:
        """Return the name of the field that holds it; empty for what is computed from others."""
        return self.path.rpartition(".")[2]

    @property
    def is_logarithmic(self) -> bool:
        """Say whether it is averaged and drawn by its logarithm, since values can lie orders of magnitude apart."""
        return self.average == "log mean"

    @property
    def conditions(self) -> str:
        """Return the kind of conditions that cells must share to be compared: size, text, task, speed or cost."""
        return self.depends_on or PARTS[self.part].conditions

    @property
    def columns(self) -> str:
        """Return the group of columns of the main or per-task view that has it; empty if none has."""
        return PARTS[self.part].view_columns if self.view_columns is None else self.view_columns

    @property
    def kind(self) -> str:
        """Return the word by which a table asks for the footnote of its column."""
        return self.topic or PARTS[self.part].topic or self.name

    @property
    def axis_scale(self) -> float:
        """Return the factor from a value to the unit of its axis, such as per cent."""
        return SCALE_OF_UNIT.get(self.unit, 1.0) if self.scale is None else self.scale

    @property
    def words_of_unit(self) -> str:
        """Return the words behind a value that is read out of a figure: ' %'."""
        return self.read_out or WORDS_OF_UNIT.get(self.unit, "")

    @property
    def footnote(self) -> str:
        """Return the sentence that explains its column; empty if there is none."""
        if self.note is not None:
            return self.note
        spread = {"interval": ", ± half the 95 % interval", "stderr": ", ± one standard error"}
        unit = f", in {self.unit}" if self.unit else ""
        return f"{self.heading.removesuffix(' {}')}: {self.meaning}{unit}{spread.get(self.spread or '', '')}."

    def show(self, value: float) -> str:
        """Write a value with its unit."""
        space = "" if self.unit == "x" else " "
        text = self.format(value, value)
        return f"{text}{space}{self.unit}" if self.unit and self.unit_in_cell else text

    def show_interval(self, value: float, low: float, high: float) -> str:
        """Write '20.8 ± 0.9', or '20.8 [18.1, 26.0]' where one side is more than half as long again as the other."""
        below, above = value - low, high - value
        if below == above == 0:
            return self.show(value)
        if max(below, above) > 1.5 * min(below, above):
            return f"{self.show(value)} [{self.format(low, value)}, {self.format(high, value)}]"
        return f"{self.show(value)} ± {self.format((high - low) / 2, value)}"


def declare_quantity(
    heading: str,
    meaning: str,
    format: Callable[[float, float], str],
    *,
    source: str = "",
    is_needed: bool = False,
    **more: Any,
) -> Any:
    """Return the field of a quantity in a typed result. Its type is a number, or a metric with a standard error.

    source     the module that writes it, where that is not its result's
    is_needed  whether every such result has it
    more       further fields of Quantity. The path follows from the place of the field, and so do name and part, unless
               they are given.

    A quantity whose spread is an interval has its ends beside it, in the fields NAME_low and NAME_high.
    """
    quantity = {"heading": heading, "meaning": meaning, "format": format, **more}
    metadata = {"meaning": Meaning(meaning, source), "quantity": quantity}
    return field(metadata=metadata) if is_needed else field(default=None, metadata=metadata)


def is_finite(value: Any) -> bool:
    """Say whether a value of a row is there and is a finite number."""
    return value is not None and math.isfinite(value)


def shorten_name(name: str) -> str:
    """Shorten a text's or task's name for a heading: to the end of a path, to both ends of a long one."""
    name = name.rsplit("/", 1)[-1]
    return name if len(name) <= 40 else f"{name[:19]}…{name[-20:]}"


def format_count(figure: float, _beside: float = 0) -> str:
    """Write 134515008 as '134.5 M'; k, M and B are thousands, millions and billions."""
    for size, letter, decimals in ((1e9, "B", 2), (1e6, "M", 1), (1e3, "k", 1)):
        if abs(figure) >= size:
            return f"{figure / size:.{decimals}f} {letter}"
    return f"{figure:,.0f}"


def format_bytes(figure: float, _beside: float = 0) -> str:
    """Write 268435456 bytes as '256 MiB'."""
    for exponent, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if figure >= 2**exponent:
            return f"{format_significant(figure / 2**exponent)} {unit}"
    return f"{figure:,.0f} B"


def format_significant(figure: float, _beside: float = 0) -> str:
    """Write three significant digits: 0.00123, 1.23, 12.3, 1,234."""
    if figure == 0 or not math.isfinite(figure):
        return f"{figure:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(figure))))
    return f"{figure:,.{min(decimals, 6)}f}"


def format_perplexity(figure: float, beside: float) -> str:
    """Write 5.47, 20.8, 343, 12,345, 3.4e8: with the decimals that suit `beside`; never 0.0 for what is not zero."""
    if not math.isfinite(figure):
        return f"{figure:g}"
    if beside >= 1e6:
        mantissa, exponent = f"{figure:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    decimals = 2 if beside < 10 else 1 if beside < 100 else 0
    text = f"{figure:,.{decimals}f}"
    return text if float(text.replace(",", "")) or not figure else f"{figure:.1g}"


def format_percent(figure: float, _beside: float = 0) -> str:
    """Write 0.289 as '28.9'."""
    return f"{100 * figure:z.1f}"


def format_whole_percent(figure: float, _beside: float = 0) -> str:
    """Write 0.837 as '84'."""
    return f"{100 * figure:z.0f}"


def format_speed(figure: float, beside: float) -> str:
    """Write 1.3456 as '1.35'; beside figures below a tenth two significant digits, from a hundred on no decimals."""
    text = f"{figure:.2g}" if beside < 0.1 else f"{figure:.2f}" if beside < 100 else f"{figure:,.0f}"
    return text if float(text.replace(",", "")) or not figure else f"{figure:.1g}"


def format_bits(figure: float, _beside: float = 0) -> str:
    """Write 1.4321 bits per byte as '1.432'."""
    return f"{figure:,.3f}"


def format_seconds(figure: float, _beside: float = 0) -> str:
    """Write 26.31 as '26.3'; '<0.1' below, no decimals from a hundred on."""
    return "<0.1" if figure < 0.1 else f"{figure:.1f}" if figure < 100 else f"{figure:,.0f}"
