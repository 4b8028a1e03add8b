"""The view skills: its tables, their marks, and the page that shows them."""

from __future__ import annotations

import pytest
from made_records import RECORDS
from made_skills import LEAVES, answered

from bench.data.skills import QUICK_SKILLS
from reports.formats import terminal
from reports.page.page import VIEWS, render_page
from reports.tables.skills import ABOVE, GUESSES
from reports.tables.views import build_view, build_views

PAIR = ("basic_skills_arithmetic_rc", "basic_skills_arithmetic_mc")


def cells_of(table):
    """Return {row: {column: cell}}."""
    heads = [column.label for column in table.columns]
    return {row.label: dict(zip(heads, row.cells, strict=True)) for row in table.rows}


def test_each_ratio_has_three_tables_of_methods_by_skills():
    records, samples = answered(QUICK_SKILLS)
    tables = build_view("skills", records, samples=samples)
    assert [table.name for table in tables] == ["skills-loss-0.2", "skills-text-letter-0.2", "skills-bits-0.2"]
    loss, forms, bits = map(cells_of, tables)
    assert set(loss) == {ABOVE, *LEAVES} - {"dense"}
    assert "math" not in loss["laco"]
    assert {"math", "language"} < set(bits["laco"])
    for method, leaves in LEAVES.items():
        if method != "dense":
            assert loss[method]["commonsense"].value == pytest.approx(1 - leaves, abs=0.25)
            assert forms[method]["arithmetic, letter"].value > forms[method]["arithmetic, text"].value
    assert loss[ABOVE]["arithmetic"].value == pytest.approx(0.45, abs=0.06)


def test_only_what_is_shown_to_differ_from_the_dense_model_has_a_dagger():
    records, samples = answered(PAIR, {"dense": 1.0, "flap": 1.0, "laco": 0.99, "shortgpt": 0.4})
    table = build_view("skills", records, samples=samples)[0]
    cells = cells_of(table)
    assert [cells[name]["arithmetic"].marks.count("differs") for name in ("flap", "laco", "shortgpt")] == [0, 0, 1]
    assert any(note.startswith("†: differs from the dense model") for note in table.footnotes)


def test_p_values_are_adjusted_for_the_cells_of_a_table():
    few, samples = answered(PAIR, {"dense": 1.0, "laco": 0.93}, documents=200)
    cells = cells_of(build_view("skills", few, samples=samples)[0])["laco"]["arithmetic"]
    assert cells.marks == ("differs",)
    many, samples = answered(PAIR, {"dense": 1.0, **{f"laco-{number}": 1.0 for number in range(40)}, "laco": 0.93}, 200)
    cells = cells_of(build_view("skills", many, samples=samples)[0])["laco"]["arithmetic"]
    assert (cells.low > 0, cells.marks) == (True, ())


def test_a_skill_that_the_dense_model_guesses_says_so_in_place_of_a_share():
    records, samples = answered(("copycolors_mc", *PAIR))
    table = build_view("skills", records, samples=samples)[0]
    cells = cells_of(table)
    assert {cells[method]["copying"].text for method in cells if method != ABOVE} == {GUESSES}
    assert cells[ABOVE]["copying"].low < 0
    assert any(note.startswith(f"{GUESSES}: the dense model is not shown") for note in table.footnotes)


def test_runs_without_tasks_by_skill_have_no_table_and_no_section():
    assert build_view("skills", RECORDS) == []
    assert "<summary>Skills</summary>" not in render_page(RECORDS)
    records, _ = answered(QUICK_SKILLS, documents=40)
    assert build_view("skills", records) == []


def test_terminal_and_page_show_every_table():
    records, samples = answered(QUICK_SKILLS, documents=40)
    tables = build_views(VIEWS, records, samples=samples)
    text = terminal.render(tables["skills"])
    assert text.count("dense, above guesses") >= 2
    page = render_page(records, samples=samples, tables=tables)
    assert "<summary>Skills</summary>" in page
    assert page.count("dense, above guesses") >= 2
