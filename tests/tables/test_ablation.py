"""The ablation view: every cell stands where its factors say, and what is fixed, joined or failed is said."""

from __future__ import annotations

import csv as csv_reader
import io
import itertools
from dataclasses import replace

import pytest
from made_records import (
    DENSE,
    PER_LAYER,
    RECIPE,
    changed,
    checked,
    drawn,
    failed,
    measured,
    ok,
    plain_inputs,
    share,
    with_cell,
    with_measured,
)
from made_runs import run_folder

from bench.cli.main import main
from bench.plan.kinds import to_plain
from bench.records.quantities import quantity_of_column
from bench.records.record import Record
from reports.figures import catalogue, factors
from reports.figures.figure import to_svg
from reports.formats import latex, markup
from reports.formats import markup as markdown_text
from reports.formats import terminal as terminal_text
from reports.groups import group_records
from reports.legend import READING
from reports.tables.ablation import studies_of
from reports.tables.views import build_view

LOOK = {"calibration": "calibration", "sequences": "calibration_sequences", "length": "calibration_length"}


def laco(*, ppl: float = 100.0, layers: int = 4, ratio: float | None = None, seed: int = 0, **given: object) -> Record:
    """A measured cell of laco; `given` are parameters, or what it looks at."""
    looks = {LOOK[name]: given.pop(name) for name in LOOK if name in given}
    parameters = {"C": 4, "I": 2, "T": None, "merge": "last"} | given
    figures = checked(measured(layers * PER_LAYER, (0.9 * ppl, ppl, 1.1 * ppl), [0.3] * 5, 60.0), 0.01 * ppl, 0.5)
    record = ok("laco", ratio, figures, prune_seconds=3.0, parameters=parameters, given=tuple(given), seed=seed)
    for name, value in looks.items():
        record = changed(record, "cell", "protocol", name, to=value)
    tasks = {"piqa": {"version": 1, "sha256": f"documents of {seed}"}}
    inputs = plain_inputs(texts={"wiki": "t"}, calibration_sha256=f"{looks}{seed}", tasks=tasks)
    return changed(record, "cell", "inputs", to=inputs)


def dense_of(record: Record, ppl: float = 20.8) -> Record:
    """The dense cell of a record's setup."""
    found = replace(DENSE, cell=replace(record.cell, method="dense", parameters={}, given=(), ratio=None))
    return changed(found, "measured", "perplexity", "wiki", "perplexity", to=ppl)


CS, TS = (2, 4, 6), (0.45, 0.65)
GRID = [laco(C=C, T=T, ppl=10 * C + T, layers=C) for C, T in itertools.product(CS, TS)]
RECORDS = [dense_of(GRID[0]), *GRID]


def grid(records: list[Record], measure: str) -> dict[str, dict[str, object]]:
    """{row: {column: value}} of the one table of a measure."""
    (table,) = (table for table in build_view("ablation", records) if table.name.endswith(measure.replace("_", "_")))
    return {
        row.label: {column.label: cell.value for column, cell in zip(table.columns, row.cells, strict=True)}
        for row in table.rows
    }


def test_every_cell_stands_where_its_factors_say():
    shuffled = [RECORDS[at] for at in (3, 0, 6, 1, 5, 2, 4)]
    expected = {str(C): {f"T={T:g}": 10 * C + T for T in TS} for C in CS}
    assert grid(shuffled, "perplexity_wiki") == expected
    assert list(grid(RECORDS, "perplexity_wiki")) == ["2", "4", "6"]
    kl = grid(RECORDS, "kl")
    assert kl["6"]["T=0.65"] == pytest.approx(0.01 * (60 + 0.65))
    assert grid(RECORDS, "layers")["4"] == {"T=0.45": 26, "T=0.65": 26}


def settings(records: list[Record]) -> dict[str, str]:
    """{setting: value} of the last table of the last study."""
    table = build_view("ablation", records)[-1]
    assert (table.head, [column.label for column in table.columns]) == ("setting", ["value"])
    return {row.label: row.cells[0].text for row in table.rows}


def test_the_rest_has_tables_of_its_own():
    table, *_, values, _ = tables = build_view("ablation", RECORDS)
    assert (table.title, table.head) == ("laco: ppl wiki ↓ by C and T", "C")
    looks = {"calibration": "c4", "calibration sequences": "16", "calibration length": "256"}
    assert settings(RECORDS) == {"I": "2", "merge": "last"} | looks | {"seed": "0"}
    found = {row.label: dict(zip([c.name for c in values.columns], row.cells, strict=True)) for row in values.rows}
    texts = {label: {name: cell.text for name, cell in cells.items()} for label, cells in found.items()}
    assert texts == {
        "dense": {
            "perplexity_wiki": "20.8 ± 0.9",
            "average": "54.0 ± 2.2",
            "answer_bpb": "1.320 ± 0.027",
            "prune_seconds": "-",
        },
        "every cell": {
            "perplexity_wiki": "-",
            "average": "30.0 ± 2.1",
            "answer_bpb": "1.800 ± 0.027",
            "prune_seconds": "3.0 s",
        },
    }
    assert found["dense"]["perplexity_wiki"].value == 20.8
    assert not [table for table in tables if "prune_seconds" in table.name]
    assert dict(table.protocol)["calibration"].startswith("16 sequences")


def test_intervals_are_those_of_the_frame():
    (table, *_) = build_view("ablation", RECORDS)
    cell = table.rows[1].cells[0]
    assert (cell.low, cell.value, cell.high) == pytest.approx((0.9 * 40.45, 40.45, 1.1 * 40.45))
    assert cell.text == "40.5 ± 4.0"


def test_what_stands_beside_a_figure_is_said():
    (table, _) = build_view("ablation", [RECORDS[0], *GRID[::2]])
    shown = {word for word, sentence in READING.items() if sentence in table.footnotes}
    assert shown == {"half", "accuracy"}  # and not "kept", which has no column
    for quantity in ("answer_bpb", "kl"):
        assert quantity_of_column(quantity).footnote in table.footnotes


def test_one_factor_is_a_plain_table():
    (table, _) = build_view("ablation", [RECORDS[0], *GRID[::2]])
    assert [row.label for row in table.rows] == ["dense", "2", "4", "6"]
    assert [column.name for column in table.columns] == [
        *("perplexity_wiki", "kl", "average", "answer_bpb", "ratio", "layers", "prune_seconds")
    ]
    assert [row.cells[0].value for row in table.rows] == [20.8, 20.45, 40.45, 60.45]
    assert settings([RECORDS[0], *GRID[::2]]).items() >= {"T": "0.45", "I": "2"}.items()


def test_more_factors_are_a_grid_for_each_combination_of_the_others():
    cells = [laco(C=C, T=T, I=I, ppl=100 * I + 10 * C + T) for I, C, T in itertools.product((1, 2), CS, TS)]
    tables = [table for table in build_view("ablation", [dense_of(cells[0]), *cells]) if "perplexity" in table.name]
    assert [table.title for table in tables] == [f"laco: ppl wiki ↓ by C and T, I {I}" for I in (1, 2)]
    assert [table.name for table in tables] == ["ablation-laco-perplexity_wiki", "ablation-laco-perplexity_wiki-2"]
    assert [table.rows[2].cells[0].value for table in tables] == [160.45, 260.45]


def test_what_methods_look_at_is_joined_over_setups_and_said():
    cells = [
        laco(ratio=0.1, calibration=text, seed=seed, ppl=ppl)
        for (text, seed), ppl in zip(itertools.product(("wiki", "c4"), (0, 1)), (50.0, 51.0, 60.0, 61.0), strict=True)
    ]
    dense = [dense_of(cell, ppl) for cell, ppl in zip(cells, (20.0, 21.0, 20.0, 21.0), strict=True)]
    records = [*dense, *cells]
    assert grid(records, "perplexity_wiki") == {
        "wiki": {"seed=0": 50.0, "seed=1": 51.0},
        "c4": {"seed=0": 60.0, "seed=1": 61.0},
    }
    table = build_view("ablation", records)[0]
    said = " ".join(table.notes)
    assert "cells of setups that differ in calibration, seed stand in one table" in said
    assert "each seed draws its own documents of the tasks." in said
    assert "20.0 to 21.0" in {cell.text for cell in build_view("ablation", records)[-2].rows[0].cells}
    assert settings(records)["ratio"] == "0.1"
    assert "calibration" not in dict(table.protocol)


def test_what_is_evaluated_otherwise_is_not_joined():
    one, other = laco(ratio=0.1, calibration="c4"), laco(ratio=0.1, calibration="wiki", ppl=70.0)
    assert build_view("ablation", [one, other])
    assert not build_view("ablation", [one, changed(other, "cell", "inputs", "texts", to={"wiki": "another half"})])
    assert not build_view("ablation", [one, changed(other, "cell", "protocol", "windows", to=99)])
    assert not build_view("ablation", [one, changed(other, "cell", "dtype", to="bfloat16")])


@pytest.mark.parametrize(
    ("field", "value", "name", "said"),
    [
        ("healing", RECIPE, "laco, healed by C", ""),
        ("earlier", [{"method": "laco", "parameters": {}, "ratio": 0.1}], "laco at 0.1, then laco by C", ""),
        ("ratio_of", "decoder", "laco by C", "decoder"),
    ],
)
def test_what_was_done_else_and_what_the_ratio_is_of_make_other_studies(field, value, name, said):
    """Each with all of its cells: none stands for one that was healed or had another budget."""
    plain = [laco(C=C, ratio=0.3, ppl=10 * C) for C in CS]
    others = [changed(laco(C=C, ratio=0.3, ppl=100 * C), "cell", field, to=value) for C in (*CS, 8)]
    records = [dense_of(plain[0]), *itertools.chain(*itertools.zip_longest(plain, others))]
    records = [record for record in records if record is not None]
    tables = [table for table in build_view("ablation", records) if table.head == "C"]
    assert [table.title for table in tables] == ["laco by C", name]
    for table, factor, values in zip(tables, (10, 100), (CS, (*CS, 8)), strict=True):
        rows = [row for row in table.rows if row.label != "dense"]
        assert [row.label for row in rows] == list(map(str, values))
        assert [row.cells[0].value for row in rows] == [pytest.approx(factor * C) for C in values]
    assert settings(records).get("ratio of", "") == said
    drawings = [one for one in catalogue.figures_of_report(records) if one.name.startswith("ablation-")]
    assert len({one.name for one in drawings}) == len(drawings) == 2 * len(studies_of(records)[0].measures()[:3])


def test_cells_with_the_same_settings_are_counted():
    again = changed(GRID[0], "cell", "inputs", "texts", to={"wiki": "t"})
    again = changed(again, "cell", "inputs", "calibration_sha256", to="of another version of the text")
    (table, *_) = build_view("ablation", [*RECORDS, again])
    assert "left out, since another cell has the same settings: 1." in table.notes
    plain = [laco(T=0.5), *(changed(laco(), "cell", "inputs", "versions", to={"torch": one}) for one in ("1", "2"))]
    assert build_view("ablation", plain)[0].title.startswith("laco by ")


def test_ratios_alone_are_no_ablation():
    assert build_view("ablation", [laco(ratio=0.1), laco(ratio=0.2)]) == []
    both = [laco(C=C, ratio=ratio, ppl=C + ratio) for C in (2, 3) for ratio in (0.1, 0.2)]
    assert grid(both, "perplexity_wiki")["3"] == {"ratio=0.1": 3.1, "ratio=0.2": 3.2}


def test_a_parameter_called_like_an_outer_factor_is_the_methods_own():
    cells = [changed(laco(ratio=0.1, seed=seed), "cell", "parameters", "seed", to=7) for seed in (0, 1)]
    (table, _) = build_view("ablation", cells)
    assert table.head == "seed"
    assert settings(cells)["laco.seed"] == "7"


def test_lists_and_dictionaries_of_a_plugin_are_factors_too():
    given = [{"blocks": numbers, "shares": {"mlp": share}} for numbers in ([1, 2], [3]) for share in (0.1, 0.2)]
    records = [laco(ppl=100.0 + at, **one) for at, one in enumerate(given)]
    found = grid([dense_of(records[0]), *records], "perplexity_wiki")
    assert found == {
        "[1, 2]": {'shares={"mlp": 0.1}': 100.0, 'shares={"mlp": 0.2}': 101.0},
        "[3]": {'shares={"mlp": 0.1}': 102.0, 'shares={"mlp": 0.2}': 103.0},
    }
    assert build_view("ablation", records[::2])[0].head == "blocks"
    axis = factors.figures_of_studies(group_records(records[::2]))[0].draw().axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["[1, 2]", "[3]"]


def test_draws_of_a_random_method_are_one_cell():
    records = [changed(drawn(draw, 100.0 + draw, 0.3), "cell", "seed", to=seed) for draw in (0, 1) for seed in (0, 1)]
    found = studies_of(records)
    assert [(study.factors, len(study.points)) for study in found] == [(("seed",), 2)]
    assert [point.row["perplexity_wiki"] for point in found[0].points.values()] == pytest.approx([100.5] * 2, rel=1e-4)


def test_a_cell_without_figures_says_why_and_where():
    lost = failed("out_of_memory", "laco", "full", parameters={**GRID[0].cell.parameters, "C": 8}, given=("C", "T"))
    lost = with_cell(lost, ratio=None, inputs=GRID[0].cell.inputs)
    table = build_view("ablation", [*RECORDS, lost])[0]
    assert table.rows[-1].label == "8"
    assert [cell.text for cell in table.rows[-1].cells] == ["out of memory", "-"]
    assert any("out of memory: full" in note for note in table.notes)


def test_a_missed_ratio_has_its_star():
    missed = [laco(C=C, T=T, ratio=0.1) for C in (2, 3) for T in TS]
    missed[0] = with_measured(missed[0], ratio_budget=missed[0].measured.ratio + 0.01)
    cells = {row.label: row.cells for row in build_view("ablation", missed)[0].rows}
    assert [cell.text.endswith("*") for cell in cells["2"]] == [True, False]


RENDERERS = {
    "terminal": terminal_text.render,
    "markdown": markdown_text.render_markdown,
    "csv": markup.render_csv,
    "latex": latex.render,
    "html": markup.render_html,
}


@pytest.mark.parametrize("form", RENDERERS)
def test_every_format_heads_the_rows_with_the_factor(form, tmp_path, capsys):
    run = str(run_folder(tmp_path / "run", RECORDS))
    assert main(["report", run, "--view", "ablation", "--format", form, "--explain"]) == 0
    out = capsys.readouterr().out
    assert out == RENDERERS[form](build_view("ablation", sorted(RECORDS, key=RECORDS.index)))
    assert {"terminal": "\nC  ", "markdown": "| C ", "csv": ",C=2,", "latex": "\nC & ", "html": '"col">C</th>'}[
        form
    ] in out


def test_csv_names_both_factors():
    lines = list(csv_reader.DictReader(io.StringIO(markup.render_csv(build_view("ablation", RECORDS)))))
    (found,) = (one for one in lines if (one["label"], one["measure"]) == ("C=4", "perplexity_wiki, T=0.65"))
    assert float(found["value"]) == 40.65


def test_a_run_without_factors_is_told_so(tmp_path, capsys):
    assert main(["report", str(run_folder(tmp_path / "run", [DENSE, laco(ratio=0.1)])), "--view", "ablation"]) == 2
    assert "no method of these runs has cells that differ in" in capsys.readouterr().err


def test_the_figure_has_a_line_for_each_value_of_the_second_factor():
    found = factors.figures_of_studies(group_records(RECORDS))
    assert [figure.name for figure in found] == [
        "ablation-laco-perplexity-wiki",
        "ablation-laco-kl",
        "ablation-laco-average",
    ]
    axis = found[0].draw().axes[0]
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}
    assert lines["T 0.45"] == ([2, 4, 6], [20.45, 40.45, 60.45])
    assert set(lines) == {"T 0.45", "T 0.65", "dense"}
    assert axis.get_xlabel() == "C"
    assert "the best is 20.4 ± 2.0 at C 2, T 0.45" in found[0].description
    assert to_svg(found[0]) == to_svg(found[0])


def test_the_dense_model_of_several_seeds_is_a_range_and_a_divergence_has_its_unit():
    cells = [laco(ratio=0.1, seed=seed) for seed in (0, 1, 2)]
    dense = []
    for record, accuracy in zip(cells, (0.4, 0.6, 0.5), strict=True):
        tasks = to_plain(dense_of(record).measured.tasks)
        for task in tasks.values():
            task["metrics"][task["main"]] = share(accuracy)
        dense.append(with_measured(dense_of(record), tasks=tasks))
    found = {figure.name: figure for figure in factors.figures_of_studies(group_records([*dense, *cells]))}
    axis = found["ablation-laco-average"].draw().axes[0]
    lines = [(line.get_label(), line.get_ydata()[0]) for line in axis.lines if line.get_label().startswith("dense")]
    assert lines == [("dense, the lowest and the highest", pytest.approx(figure)) for figure in (40, 60)]
    axis = found["ablation-laco-perplexity-wiki"].draw().axes[0]
    assert [line.get_label() for line in axis.lines if line.get_label() != "laco"] == ["dense"]  # all have the same
    assert found["ablation-laco-kl"].draw().axes[0].get_ylabel() == "KL (nats/token)"
    assert found["ablation-laco-kl"].description.startswith("KL (nats/token), 3 cells: ")


def test_words_stand_side_by_side_on_the_axis():
    cells = [laco(ratio=0.1, calibration=text, ppl=ppl) for text, ppl in (("c4", 50.0), ("wiki", 60.0))]
    axis = factors.figures_of_studies(group_records(cells))[0].draw().axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["c4", "wiki"]
    assert list(axis.lines[0].get_ydata()) == [50.0, 60.0]


def test_the_page_has_the_tables_where_there_are_any():
    from reports.page.page import render_page

    assert "<summary>One factor at a time</summary>" in render_page(RECORDS)
    assert "<summary>One factor at a time</summary>" not in render_page([DENSE])
