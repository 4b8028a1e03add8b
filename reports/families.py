"""The colour of each family of methods, for drawings and for pages: what a method removes has one colour everywhere.

A colour stands for what a method removes, by `methods.cards.Card.family`; what looks at nothing is a control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from methods.cards import Card

CONTROL = "control"  # the family of what looks at nothing, such as random layers
COLOURS_BY_FAMILY = {  # on light paper, as in drawings; on dark paper
    "depth": ("#0072b2", "#56a8e0"),
    "sublayer": ("#a4508b", "#e09bc4"),
    "width": ("#b45309", "#e9a24a"),
    "residual": ("#1b1e22", "#e6e8ea"),
    "low-rank": ("#5b4bb5", "#ab9df2"),
    "mixed": ("#007a59", "#3fc19a"),
    "experts": ("#a61b1b", "#f08a80"),
    CONTROL: ("#6b7280", "#9aa3ad"),
}


def find_family(card: Card) -> str:
    """Return the family of a method: what it removes, or `CONTROL` for one that looks at nothing."""
    return card.family if card.cost else CONTROL


def give_custom_properties() -> str:
    """Return the colours as custom properties of CSS, one a line, such as `--depth: light-dark(#0072b2, #56a8e0);`."""
    return "\n".join(
        f"  --{family}: light-dark({light}, {dark});" for family, (light, dark) in COLOURS_BY_FAMILY.items()
    )
