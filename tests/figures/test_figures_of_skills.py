"""The map of skills and the slope chart of two methods: what they draw, in which colours, and which two."""

from __future__ import annotations

import numpy as np
import pytest
from made_records import RECORDS
from made_skills import LEAVES, answered

from bench.cli.main import main
from bench.records.samples import Samples
from methods.errors import UserError
from reports.figures.heatmaps import ROW
from reports.figures.skills import PALE, figures_of_skills
from reports.figures.style import LIGHT, style_of
from reports.tables.rows import ReportData
from reports.tables.views import build_view

TASKS = ("basic_skills_arithmetic_rc", "basic_skills_arithmetic_mc", "copycolors_mc", "gsm8k_bpb", "piqa_rc")


def data_of(leaves=LEAVES, tasks=TASKS):
    """Return the data of a report of methods that leave so much of what the dense model knows."""
    records, samples = answered(tasks, leaves)
    return ReportData(records, samples=samples, has_answers=True)


def drawn(figure):
    """Return the panels of a figure."""
    axes = figure.draw().axes
    return [axis for axis in axes if axis.get_title()]


def test_the_map_has_the_values_of_the_tables_and_pales_what_is_not_shown():
    data = data_of()
    loss, _, bits = build_view("skills", data.records, samples=data.samples)
    panels = drawn(figures_of_skills(data)[0])
    assert len(panels) == 2
    for panel, table in zip(panels, (loss, bits), strict=True):
        rows = [row for row in table.rows if row.method != "dense"]
        assert [label.get_text() for label in panels[0].get_yticklabels()] == [row.label for row in rows]
        assert [label.get_text() for label in panel.get_xticklabels()] == [column.label for column in table.columns]
        (image,) = panel.images
        values = [[cell.value if isinstance(cell.value, float) else np.nan for cell in row.cells] for row in rows]
        assert np.array_equal(image.get_array().filled(np.nan), np.array(values), equal_nan=True)
        opacity = [[1.0 if "differs" in cell.marks else PALE for cell in row.cells] for row in rows]
        assert np.array_equal(image.get_alpha(), opacity)
        assert {1.0, PALE} == set(np.ravel(opacity)) or table is bits
    texts = [text.get_text() for text in panels[0].texts]
    assert texts.count("guess") == 3  # the dense model knows no colours
    assert panels[0].figure.get_figheight() == pytest.approx(1.6 + 3 * ROW)


def test_a_line_has_the_colour_of_the_better_method_where_a_difference_is_shown():
    data = data_of({"dense": 1.0, "shortgpt": 0.3, "flap": 0.95}, ("basic_skills_arithmetic_rc", "copycolors_mc"))
    _, figure = figures_of_skills(data, ("shortgpt", "flap"))
    panel = drawn(figure)[0]
    (line,) = [line for line in panel.lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
    assert line.get_color() == style_of("flap").colour
    assert line.get_ydata()[0] > line.get_ydata()[1]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["shortgpt", "flap"]
    same = figures_of_skills(data_of({"dense": 1.0, "shortgpt": 0.9, "flap": 0.9}, TASKS[:1]))[1]
    assert [line.get_color() for line in drawn(same)[0].lines if line.get_marker() == "o"] == [LIGHT]


def test_the_two_methods_are_of_two_families_unless_a_reader_names_others():
    data = data_of({"dense": 1.0, "flap": 0.7, "laco": 0.9, "shortgpt": 0.5})
    for chosen, expected in (((), "flap and laco"), (("shortgpt", "flap"), "shortgpt and flap")):
        _, figure = figures_of_skills(data, chosen)
        assert figure.title.startswith(f"What {expected} lose of each skill")
        assert f"{expected}: " in figure.description
    with pytest.raises(UserError, match="no method 'sleb' for the chart of skills; there are dense, flap"):
        figures_of_skills(data, ("flap", "sleb"))


def test_one_method_has_a_map_alone_and_other_tasks_have_no_figure():
    assert [figure.name for figure in figures_of_skills(data_of({"dense": 1.0, "laco": 0.9}))] == ["skills-0.2"]
    assert figures_of_skills(ReportData(RECORDS, samples=Samples(), has_answers=True)) == []


def test_a_pair_without_a_folder_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--pair", "laco", "flap"]) == 2
    assert capsys.readouterr().err == "prunebench: --pair is about a figure: add --out DIR\n"
