"""The table of quantities: those that results declare at their fields, and those that follow from others.

`list_quantities` has them in the order of tables, and docs/quantities.md shows them. `quantity_of_column` returns that
of a column of the frame: of perplexity_wiki the quantity "perplexity_{}".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from bench.records.quantity import (
    MISSING,
    PARTS,
    Quantity,
    format_bytes,
    format_percent,
    format_significant,
    format_speed,
    format_whole_percent,
    shorten_name,
)

PART_OF_PLACE = {"perplexity.{}": "text", "positions.{}": "positions", "tasks.{}": "answers"}
PART_OF_PLACE |= {part: part for part in ("checks", "healing")}
TASK = Quantity(
    *("task_{}", "{}", "main metric of a task, where it is an accuracy", format_percent, "%", False, "higher"),
    spread="stderr",
    part="task",
    tested=True,
    note="",
)
STAYS = Quantity("{}_stays", "", "share of the dense model's that stays", format_percent, "%", part="amount")
FLIPPED = Quantity(
    *("flips_{}", "flips {}", "answers that are lost or gained", format_percent, "%", False, "lower"),
    spread="stderr",
    part="flips",
    note="",
)
LOST = replace(
    FLIPPED,
    name="lost_{}",
    heading="lost {}",
    meaning="answers that the dense model has right, and this one wrong",
    view_columns="",
)
GAINED = replace(
    LOST,
    name="gained_{}",
    heading="gained {}",
    meaning="answers that the dense model has wrong, and this one right",
    better=None,
)
CHANGED = replace(
    LOST,
    name="changed_{}",
    heading="changed {}",
    meaning="answers whose likeliest choice is not the dense model's",
)
FLIPS = (FLIPPED, LOST, GAINED, CHANGED)
FLIPS_NOTE = (
    "flips: answers that are right in the dense model and wrong here (lost), or the reverse (gained), ± one "
    "standard error, every task weighing alike; changed: another choice is the likeliest."
)
SKILL_LOSS = replace(
    FLIPPED,
    name="skill_loss_{}",
    heading="{} lost",
    meaning="accuracy that is lost, of what the dense model has above guesses",
    spread="interval",
    part="skills",
)
SKILL_LOSSES = (
    SKILL_LOSS,
    replace(
        SKILL_LOSS,
        name="skill_text_{}",
        heading="{} text lost",
        meaning=f"{SKILL_LOSS.meaning}, where texts of choices are scored",
    ),
    replace(
        SKILL_LOSS,
        name="skill_letter_{}",
        heading="{} letter lost",
        meaning=f"{SKILL_LOSS.meaning}, where letters of the same choices are scored",
    ),
    replace(
        SKILL_LOSS,
        name="skill_bits_{}",
        heading="{} bits added",
        meaning="bits per byte of right answers that are added, of the dense model's",
    ),
    *(
        replace(
            SKILL_LOSS,
            name=f"skill_above_{forms}{{}}",
            heading=f"{{}} {forms.replace('_', ' ')}above guesses",
            meaning=f"accuracy of the dense model minus that of guesses{where}",
            better=None,
        )
        for forms, where in {"": "", "text_": ", of texts of choices", "letter_": ", of their letters"}.items()
    ),
)
DERIVED = (  # by bench.records.frame, from other values of a record and of the dense model's
    Quantity("miss", "miss", "how much more was removed than the budget asks for", format_percent, "%", part="amount"),
    replace(STAYS, name="bytes_stays", heading="bytes"),
    replace(STAYS, name="kv_stays", heading="KV cache"),
    replace(STAYS, name="macs_stays", heading="MACs"),
    replace(STAYS, name="latency_stays", heading="latency"),
    TASK,
    Quantity(
        *("score_{}", "{}", "main metric of a task, where it is no accuracy", format_significant),
        spread="stderr",
        part="task",
        note="",
    ),
    replace(
        TASK,
        name="average",
        heading="average",
        meaning="mean over the accuracies of all tasks",
        part="mean",
        is_wide=True,
        is_drawn=True,
        title="average accuracy",
    ),
    *FLIPS,
    *(
        replace(
            quantity,
            name=quantity.name.removesuffix("_{}"),
            heading=quantity.heading.removesuffix(" {}"),
            meaning=f"{quantity.meaning}, mean over tasks",
            view_columns="flips",
            note=FLIPS_NOTE if quantity is FLIPPED else "",
        )
        for quantity in FLIPS
    ),
    *SKILL_LOSSES,
    Quantity(
        *("written_{}", "written of {}", "answers chosen right that are written right too", format_percent, "%", False),
        better="higher",
        spread="interval",
        part="written",
        note="written of: of the answers that are chosen right, how many are right too where the model writes them, ± "
        "half the 95 % interval.",
    ),
    Quantity(
        *("kept", "kept", "the average as a share of the dense model's", format_whole_percent, "%"),
        better="higher",
        part="mean",
        is_wide=True,
        note="",
    ),
    *(
        Quantity(
            *(f"{stage}_speed", stage, "milliseconds of the dense model over those of this one", format_speed, "x"),
            better="higher",
            spread="interval",
            part="speed",
            note="",
            title=f"{stage}, times as fast as dense",
        )
        for stage in ("prefill", "decode")
    ),
    Quantity(
        *("prefill_tokens_per_second", "prefill", "rate at which a prompt is read", format_significant, "tokens/s"),
        unit_in_cell=False,
        better="higher",
        part="speed",
        view_columns="cost",
    ),
    Quantity(
        *("decode_ms_per_token", "decode", "time from one token to the next", format_significant, "ms/token"),
        unit_in_cell=False,
        better="lower",
        part="speed",
        view_columns="cost",
    ),
    Quantity(
        *("prune_memory_bytes", "memory to prune", "highest memory while it was pruned", format_bytes),
        better="lower",
        average="highest",
        part="cost",
    ),
    Quantity(
        *("peak_memory_bytes", "peak memory", "highest memory of all stages", format_bytes),
        better="lower",
        average="highest",
        part="cost",
        view_columns="cost",
    ),
)


@cache
def list_quantities() -> tuple[Quantity, ...]:
    """Return all quantities in the order of tables."""
    from bench.records.measured import Measured

    declared = list(find_quantities(Measured))
    means = [_mean_over_tasks(quantity) for quantity in declared if quantity.over_tasks]
    order = list(PARTS)
    return tuple(sorted([*declared, *DERIVED, *means], key=lambda quantity: order.index(quantity.part)))


def find_quantities(result: Any, place: str = "") -> Iterator[Quantity]:
    """Yield the quantities that the fields of a result declare, and those of the results inside it.

    place  the path of the result in `measured`, with {} for the name of a text or task
    """
    hints = get_type_hints(result)
    for field in fields(result):
        path = f"{place}.{field.name}".removeprefix(".")
        if "quantity" in field.metadata:
            name = f"{field.name}_{{}}" if "{}" in place else field.name
            follows: dict[str, Any] = {"name": name, "path": path, "part": PART_OF_PLACE.get(place, "size")}
            yield Quantity(**follows | field.metadata["quantity"])
            continue
        hint = hints[field.name]
        for kind in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
            if is_dataclass(kind):
                yield from find_quantities(kind, path)
            elif get_origin(kind) is dict and is_dataclass(get_args(kind)[1]):
                yield from find_quantities(get_args(kind)[1], f"{path}.{{}}")


def _mean_over_tasks(quantity: Quantity) -> Quantity:
    """Return the quantity of the mean of a task's quantity over all tasks."""
    texts = (quantity.name, quantity.heading, quantity.title)
    name, heading, title = (text.removesuffix("{}").rstrip("_ ") for text in texts)
    meaning = f"{quantity.meaning}, mean over tasks"
    return replace(quantity, name=name, heading=heading, title=title, meaning=meaning, path="", part="mean")


def quantities_of_part(part: str) -> list[Quantity]:
    """Return the quantities of a part of the frame that a record holds at a path of their own."""
    return [quantity for quantity in list_quantities() if quantity.part == part and quantity.path]


@cache
def quantity_of_column(column: str) -> Quantity:
    """Return the quantity of a column of the frame: 'average', 'perplexity_wiki', 'answer_bpb_piqa'.

    Its heading has the name of the text or task. A column that has none, such as 'average_chance', is named by its own
    words.
    """
    quantity = find_quantity(column)
    if quantity is None:
        return Quantity(column, shorten_name(column).replace("_", " "), "", format_significant)
    if not quantity.is_each:
        return quantity
    name = column.removeprefix(quantity.name.removesuffix("{}"))
    heading, title = (text.format(shorten_name(name)) for text in (quantity.heading, quantity.title))
    return replace(quantity, heading=heading, title=title)


@cache
def find_quantity(column: str) -> Quantity | None:
    """Return the quantity that a column of the frame belongs to, as the table has it; None if there is none."""
    beginnings = {quantity.name.partition("{}")[0]: quantity for quantity in list_quantities() if quantity.is_each}
    exact = {quantity.name: quantity for quantity in list_quantities()}
    if column in exact:
        return exact[column]
    fitting = [beginning for beginning in beginnings if column.startswith(beginning)]
    return beginnings[max(fitting, key=len)] if fitting else None


def format_value(row: Mapping[str, Any], column: str, *, spread: bool = True) -> str:
    """Return the value of a row of the frame as a table writes it, with its spread where there is one."""
    quantity = quantity_of_column(column)
    value, low, high, stderr = (row.get(f"{column}{end}") for end in ("", "_low", "_high", "_stderr"))
    if value is None:
        return MISSING
    if spread and quantity.spread == "interval" and low is not None and high is not None:
        return quantity.show_interval(value, low, high)
    if spread and quantity.spread == "stderr" and stderr is not None:
        return f"{quantity.show(value)} ± {quantity.format(stderr, value)}"
    return quantity.show(value)
