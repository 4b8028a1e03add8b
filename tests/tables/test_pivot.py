"""The one pivot: where cells stand, in which order, and what stands where there is none."""

from __future__ import annotations

import pytest

from methods.errors import UserError
from reports.tables.pivots import pivot
from reports.tables.table import Column, Row, TableCell

LACO, FLAP = Row("laco", "laco", 0.2), Row("flap", "flap", 0.2)
LOW, HIGH = Column("kl", "0.1"), Column("kl", "0.3")


def test_cells_stand_where_they_say_in_the_order_of_their_coming():
    columns, rows = pivot(
        [(LACO, HIGH, TableCell("3")), (FLAP, LOW, TableCell("1")), (LACO, LOW, TableCell("2"))], [LOW]
    )
    assert columns == (LOW, HIGH)
    assert [(row.label, row.ratio, [cell.text for cell in row.cells]) for row in rows] == [
        ("laco", 0.2, ["2", "3"]),
        ("flap", 0.2, ["1", "-"]),
    ]


def test_an_announced_column_without_cells_is_there():
    columns, (row,) = pivot([(LACO, LOW, TableCell("1"))], [LOW, HIGH])
    assert columns == (LOW, HIGH)
    assert [cell.text for cell in row.cells] == ["1", "-"]


def test_no_place_is_filled_twice():
    with pytest.raises(UserError, match=r"two cells are called 'laco' in the column '0\.1'"):
        pivot([(LACO, LOW, TableCell("1")), (LACO, LOW, TableCell("2"))])
