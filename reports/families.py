"""The colour of each family of methods, for drawings and for pages: what a method removes has one colour everywhere.

A colour stands for what a method removes, by `methods.cards.Card.family`; what looks at nothing is a control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from methods.cards import Card

CONTROL = "control"  # the family of what looks at nothing, such as random layers
COLOURS_BY_FAMILY = {  # on light paper, as in drawings; on dark paper
    "depth": ("#0072B2", "#56A8E0"),
    "sublayer": ("#A4508B", "#E09BC4"),
    "width": ("#B45309", "#E9A24A"),
    "residual": ("#1B1E22", "#E6E8EA"),
    "low-rank": ("#5B4BB5", "#AB9DF2"),
    "mixed": ("#007A59", "#3FC19A"),
    "experts": ("#A61B1B", "#F08A80"),
    CONTROL: ("#6B7280", "#9AA3AD"),
}


def find_family(card: Card) -> str:
    """Return the family of a method: what it removes, or `CONTROL` for one that looks at nothing."""
    return card.family if card.cost else CONTROL


def give_custom_properties() -> str:
    """Return the colours as custom properties of CSS, one a line, such as `--depth: light-dark(#0072B2, #56A8E0);`."""
    return "\n".join(
        f"  --{family}: light-dark({light}, {dark});" for family, (light, dark) in COLOURS_BY_FAMILY.items()
    )
