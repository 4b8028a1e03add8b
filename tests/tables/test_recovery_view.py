"""The view recovery: curves by tokens, and tokens, work and seconds to come near the dense model, by hand."""

from __future__ import annotations

import math

import pytest
from made_records import DENSE, LACO, changed, with_cell, with_measured
from made_skills import HEALED

from bench.plan.protocol import Recipe
from bench.stats.power_law import fit_power_law
from reports.figures.catalogue import figures_of_report
from reports.figures.figure import to_svg
from reports.tables.recovery import work_of_training
from reports.tables.views import build_view

TOKENS = (0, 1000, 2000, 4000, 8000)
PERPLEXITY = {t: 20.8 * math.exp(30 * max(t, 500) ** -0.4) for t in TOKENS}  # the dense model has 20.8
DENSE_AT_WORK = with_measured(DENSE, macs_per_token=150)
RECIPE = Recipe("full", loss="kl", tokens=8000, length=100, passes=2, at=TOKENS[:-1])


def healed(recipe=RECIPE, **changes):
    points = []
    for tokens in TOKENS[:-1]:
        score = {f"perplexity{end}": PERPLEXITY[tokens] * by for end, by in (("", 1), ("_low", 0.9), ("_high", 1.1))}
        point = HEALED["curve"][0] | {"step": tokens // 100, "tokens": tokens, "seconds": tokens / 200}
        points.append(point | {"texts": {"wiki": score}})
    text = LACO.plain()["measured"]["perplexity"]["wiki"] | {"perplexity": PERPLEXITY[8000]}
    end = points[-1] | {"step": 80, "tokens": 8000, "seconds": 40.0}
    del end["texts"]
    measured = {"seconds": 40.0, "tokens": 8000, "curve": [*points, end]}
    record = with_measured(LACO, healing=measured, perplexity={"wiki": text}, macs_per_token=100, **changes)
    return with_cell(record, healing=recipe)


def test_a_row_has_the_perplexity_at_each_number_of_tokens_and_at_the_end():
    curve, _ = build_view("recovery", [DENSE_AT_WORK, LACO, healed()])
    assert [column.label for column in curve.columns] == ["0", "1.0 k", "2.0 k", "4.0 k", "8.0 k"]
    (row,) = curve.rows  # the dense model and what is not healed have no curve
    assert row.label == "laco, healed"
    assert [cell.value for cell in row.cells] == pytest.approx(list(PERPLEXITY.values()))
    assert [cell.low for cell in row.cells[:-1]] == pytest.approx([0.9 * PERPLEXITY[t] for t in TOKENS[:-1]])
    assert "dense 20.8" in curve.title


def test_tokens_work_and_time_to_a_level_are_those_by_hand():
    _, levels = build_view("recovery", [DENSE_AT_WORK, healed()])
    assert [row.cells[0].text for row in levels.rows] == ["50 %", "25 %", "10 %"]
    excess = [math.log(PERPLEXITY[t] / 20.8) for t in TOKENS]
    for row, share in zip(levels.rows, (0.5, 0.25, 0.1), strict=True):
        _, tokens, work, time = row.cells
        expected = fit_power_law(TOKENS, excess).find_tokens(math.log(1 + share))
        assert expected[0] == pytest.approx((math.log(1 + share) / 30) ** (1 / -0.4), rel=1e-6)
        assert [tokens.value, tokens.low, tokens.high] == pytest.approx(expected)
        # 2 x (forward, and back for activations and weights) x 100 a token, and a dense forward of 4,000 distinct ones
        assert work.value == pytest.approx(600 * tokens.value + 2 * 150 * 4000)
        assert time.value == pytest.approx(26.31 + tokens.value / 200)
        assert (" FLOP [" in work.text, " s [" in time.text) == (True, True)


def test_work_follows_from_what_is_trained_and_how():
    assert work_of_training(Recipe("full"), 100, DENSE_AT_WORK) == (600, 0)
    assert work_of_training(Recipe("lora"), 100, DENSE_AT_WORK) == (400, 0)
    assert work_of_training(Recipe("norms", recompute=True), 100, None) == (600, 0)
    assert work_of_training(Recipe("lora"), None, DENSE_AT_WORK) == (None, 0)
    assert work_of_training(Recipe("lora", loss="kl", tokens=1000, length=100), 100, DENSE_AT_WORK) == (400, 300_000)


def test_bits_of_right_answers_are_a_measure_of_their_own_where_points_have_them():
    """The mean over the tasks of the points, dense too, with 1.96 standard errors; a task of the end alone is none."""
    bits = {t: 1.5 * math.exp(2 * max(t, 500) ** -0.3) for t in TOKENS}
    plain = healed().plain()["measured"]
    for point in plain["healing"]["curve"][:-1]:
        own = bits[point["tokens"]]
        point["answers"] = {
            "piqa": {"value": own - 0.2, "stderr": 0.03},
            "arc_easy": {"value": own + 0.2, "stderr": 0.04},
        }
    made = {
        name: plain["tasks"][name] | {"answer_bpb": {"value": bits[8000] + more, "stderr": 0.03}}
        for name, more in (("piqa", -0.2), ("arc_easy", 0.2))
    }
    of_dense = DENSE_AT_WORK.plain()["measured"]["tasks"]
    for name, value in (("piqa", 1.4), ("arc_easy", 1.6)):
        of_dense[name]["answer_bpb"]["value"] = value
    record = with_measured(healed(), healing=plain["healing"], tasks=plain["tasks"] | made)
    dense = with_measured(DENSE_AT_WORK, tasks=of_dense)
    names = ["recovery-wiki-0.3", "recovery-cost-wiki-0.3", "recovery-answer_bpb-0.3", "recovery-cost-answer_bpb-0.3"]
    tables = build_view("recovery", [dense, record])
    assert [table.name for table in tables] == names
    (row,) = tables[2].rows
    assert [cell.value for cell in row.cells] == pytest.approx(list(bits.values()))
    assert [cell.high - cell.value for cell in row.cells[:-1]] == pytest.approx([1.96 * 0.025] * 4)
    assert "bits per byte of the right answers by tokens of healing, dense 1.5" in tables[2].title
    assert [row.cells[0].text for row in tables[3].rows] == ["10 %", "5 %", "2 %"]
    for row, share in zip(tables[3].rows, (0.1, 0.05, 0.02), strict=True):
        assert row.cells[1].value == pytest.approx((math.log(1 + share) / 2) ** (1 / -0.3), rel=1e-5)
    drawn = {each.name: each for each in figures_of_report([dense, record]) if each.name.startswith("recovery")}
    assert list(drawn) == [names[0], names[2]]
    assert "bits per byte, lower is better" in to_svg(drawn[names[2]])


def test_stages_that_a_cell_goes_on_from_count_as_tokens_and_time():
    stage = {"method": "laco", "decisions": {}, "measured": {"layers": 24, "prune_seconds": 3.0}}
    stage["measured"]["healing"] = {"tokens": 500, "seconds": 7.0}
    chained = changed(healed(), "decisions", "earlier", to=[stage])
    (_, alone), (_, after) = (build_view("recovery", [DENSE_AT_WORK, record]) for record in (healed(), chained))
    for row, later in zip(alone.rows, after.rows, strict=True):
        assert later.cells[1].value == pytest.approx(row.cells[1].value + 500)
        assert later.cells[2].value == pytest.approx(row.cells[2].value + 500 * 600)
        assert later.cells[3].value == pytest.approx(row.cells[3].value + 10)


def test_without_a_dense_model_there_are_curves_alone_and_without_points_nothing():
    assert [table.name for table in build_view("recovery", [healed()])] == ["recovery-wiki-0.3"]
    assert build_view("recovery", [DENSE, LACO]) == []
    few = with_cell(with_measured(LACO, healing=HEALED), healing=Recipe())
    _, levels = build_view("recovery", [DENSE, few])
    assert {cell.value for row in levels.rows for cell in row.cells[1:]} == {None}


def test_the_figure_says_where_curves_begin_and_end():
    (figure,) = [each for each in figures_of_report([DENSE_AT_WORK, healed()]) if each.name.startswith("recovery")]
    assert "after 8.0 k tokens and 66.3 s" in figure.description
    assert "seconds of pruning and healing" in to_svg(figure)
    assert not [each for each in figures_of_report([DENSE, LACO]) if each.name.startswith("recovery")]
