"""The order of rows: the dense model, the best first, what has no figure, what failed; and what is said of it."""

from __future__ import annotations

import pytest
from made_records import DENSE, LACO, MENDED, changed, failed

from bench.records.record import Record
from reports.report import to_csv
from reports.tables.pivots import sort_rows
from reports.tables.table import Row, TableCell
from reports.tables.views import build_view


def method(name: str, ppl: float | None = None, ratio: float = 0.3, **measured: float) -> Record:
    """LaCo's cell under another name, at another ratio and with other figures; without a perplexity for None."""
    found = changed(changed(LACO, "cell", "method", to=name), "cell", "ratio", to=ratio)
    for key, value in measured.items():
        found = changed(found, "measured", key, to=value)
    if ppl is None:
        return changed(found, "measured", "perplexity", to={})
    return changed(found, "measured", "perplexity", "wiki", "perplexity", to=ppl)


BROKEN = failed("error", "aaa", "no")
EVERY = ["dense", "late", "zip", "abc", "tie", "mid", "aaa"]
MIXED = [BROKEN, method("zip", 30.0), method("mid", None), method("abc", 40.0), method("tie", 40.0), DENSE]


def labels(name: str, records: list[Record], at: int = 0) -> list[str]:
    return [row.label for row in build_view(name, records)[at].rows]


def test_the_lowest_perplexity_is_on_top_below_the_dense_model_and_what_failed_is_last():
    for records in (MIXED, MIXED[::-1]):
        assert labels("main", records) == ["dense", "zip", "abc", "tie", "mid", "aaa"]
    (table,) = build_view("main", MIXED)
    assert table.footnotes[-1] == "rows are sorted by ppl wiki, the lowest first."


def test_without_a_perplexity_the_divergence_sorts_and_without_that_the_average():
    records = [changed(record, "measured", "perplexity", to={}) for record in (DENSE, LACO)]
    one, other = (changed(records[1], "cell", "method", to=name) for name in ("one", "other"))
    average = build_view("main", [records[0], one, other])[0]
    assert average.footnotes[-1] == "rows are sorted by average, the highest first."
    checks = [
        changed(one, "measured", "checks", to={"kl": 0.9}),
        changed(other, "measured", "checks", to={"kl": 0.1}),
    ]
    assert labels("main", [records[0], *checks]) == ["dense", "other", "one"]


def test_views_of_their_own_measure_are_sorted_by_it():
    slow, quick = method("slow", 30.0, prune_seconds=9.0), method("quick", 40.0, prune_seconds=1.0)
    assert labels("cost", [DENSE, slow, quick]) == ["dense", "quick", "slow"]
    assert labels("decisions", [DENSE, quick, slow])[1:] == ["slow", "quick"]
    assert "rows are sorted by pruned in, the lowest first." in build_view("cost", [DENSE, slow, quick])[0].footnotes
    tasks = build_view("per-task", [DENSE, slow, quick])[0]
    assert "rows are sorted by average, the highest first." in tasks.footnotes


def test_by_ratio_is_sorted_at_the_last_ratio_that_most_methods_share():
    records = [DENSE, method("a", 30.0, 0.2), method("b", 40.0, 0.2), method("a", 90.0), method("b", 80.0)]
    table = build_view("by-ratio", [*records, method("a", 1.0, 0.4)])[0]
    assert [row.label for row in table.rows] == ["dense", "b", "a"]  # at 0.3, though a is lower at 0.2 and alone at 0.4
    assert table.footnotes[-1] == "rows are sorted by the figures at 0.3, the lowest first."


def test_the_grid_is_sorted_by_the_method_alone():
    for table in build_view("grid", MENDED):
        figures = [row.cells[0].value for row in table.rows if row.method != "dense" and row.cells[0].value is not None]
        better = "high" if "average" in table.name else "low"
        assert figures == sorted(figures, reverse=better == "high"), table.name
        several = sum(row.method != "dense" for row in table.rows) > 1
        assert (f"rows are sorted by the figures under none, the {better}est first." in table.footnotes) == several


@pytest.mark.parametrize(("better", "expected"), [("lower", "bacdf"), ("higher", "acbdf")])
def test_rows_without_a_figure_follow_and_failed_ones_are_last(better, expected):
    values = {"f": TableCell("out of memory"), "d": TableCell(), "a": TableCell("2", value=2.0)}
    values |= {"c": TableCell("2", value=2.0), "b": TableCell("1", value=1.0)}
    rows = [Row(label, label, None, (TableCell(), cell)) for label, cell in values.items()]
    found, said = sort_rows(rows, ["first", "second"], better, "the figures at", last=False)
    assert "".join(row.label for row in found) == expected
    assert said == [f"rows are sorted by the figures at second, the {better[:-2]}est first."]


def test_a_report_as_csv_has_the_order_of_its_tables():
    lines = to_csv([*MIXED, method("late", 1.0, 0.2)]).splitlines()[1:]
    assert [next(name for name in line.split(",") if name in EVERY) for line in lines] == EVERY
