"""Figures: equal bytes for equal records, every name shown as it is, fronts by brute force, looks that stay apart."""

from __future__ import annotations

import copy
import math
import random
import re
from xml.etree import ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing
from test_reports import DENSE, LACO, MENDED, RECORDS, SLICEGPT, changed, drawn, failed

import methods
from bench.record import Record
from reports import style
from reports.charts import Point
from reports.figures import FORMATS, Figure, figures, save, svg
from reports.fronts import front_of

HOSTILE = r"a_b&c%$\frac{$#{}~\`<script>alert(1)</script>剪枝--"


def with_rounds(record: Record) -> Record:
    new = copy.deepcopy(record)
    draw = random.Random(0)
    for point in new.measured["speed"]["points"]:
        calls = {
            side: [[point[f"{side}_ms"] * draw.uniform(0.9, 1.1) for _ in range(4)] for _ in range(6)]
            for side in ("dense", "pruned")
        }
        point["rounds"] = calls
    return new


TRACE = [
    {"pointer": 25, "layers": 30, "merged": 3, "similarity": 0.73, "accepted": False},
    {"pointer": 24, "layers": 30, "merged": 3, "similarity": None, "accepted": False},
    {"pointer": 23, "layers": 30, "merged": 3, "similarity": 0.91, "accepted": True},
]
MERGED = changed(with_rounds(LACO), "decisions", "trace", to=TRACE)
ALL = [MERGED, with_rounds(DENSE), *(record for record in RECORDS if record not in (LACO, DENSE))]


def by_name(records: list[Record]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures(records)}


def test_there_is_a_figure_for_all_that_was_measured_and_for_nothing_else():
    expected = {"perplexity-wiki-by-ratio", "perplexity-wiki-by-method", "average-by-ratio", "average-by-method"}
    expected |= {"perplexity-wiki-by-cost", "average-by-cost", "tasks-kept", "depth", "similarity-1", "latency-0.3"}
    assert set(by_name(ALL)) == expected
    bare = [changed(record, "measured", "tasks", to={}) for record in (DENSE, LACO)]
    bare = [changed(record, "measured", "speed", to={}) for record in bare]
    expected = {"perplexity-wiki-by-method", "perplexity-wiki-by-cost", "depth"}  # over one ratio there is no line
    assert set(by_name(bare)) == expected
    assert figures([]) == figures([DENSE]) == figures([failed("error", "laco", "x")]) == []


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Every figure as SVG, one of each kind of drawing in every format; all drawn twice."""
    folder = tmp_path_factory.mktemp("figures")
    for turn in ("one", "two"):
        for figure in figures(copy.deepcopy(ALL)):
            every = figure.name in ("average-by-ratio", "depth")
            for kind in FORMATS if every else ("svg",):
                save(figure, folder / turn / f"{figure.name}.{kind}")
    return folder


def test_equal_records_give_equal_bytes(drawings):
    names = sorted(path.name for path in (drawings / "one").iterdir())
    assert len(names) == len(by_name(ALL)) + 4
    for name in names:
        assert (drawings / "one" / name).read_bytes() == (drawings / "two" / name).read_bytes(), name


def test_an_svg_is_sound_described_and_asks_for_nothing(drawings):
    for figure in figures(ALL):
        text = (drawings / "one" / f"{figure.name}.svg").read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.findtext("{*}title") == figure.title
        assert root.findtext("{*}desc") == figure.description
        assert len(figure.description) > 20
        assert not [one for one in root.iter() if one.tag.endswith(("script", "foreignObject"))]
        for one in root.iter():
            for name, value in one.attrib.items():
                assert not name.lower().startswith("on")
                if name.endswith("href"):
                    assert value.startswith(("#", "data:image/png;"))


def test_figures_of_one_page_share_no_id(drawings):
    texts = [path.read_text(encoding="utf-8") for path in sorted((drawings / "one").glob("*.svg"))]
    ids = [name for text in texts for name in re.findall(r'\bid="(.*?)"', text)]
    assert len(ids) == len(set(ids)) > 100
    assert set(re.findall(r'(?:href="|url\()#(.*?)["\)]', "".join(texts))) <= set(ids)


def test_every_name_is_shown_as_it_is():
    """No mathematics, no markup, no missing glyph; pytest turns a warning of the font into an error."""
    records = [changed(record, "cell", "method", to=HOSTILE) for record in (MERGED, SLICEGPT)]
    records = [changed(record, "cell", "display_name", to=HOSTILE) for record in [with_rounds(DENSE), *records]]
    records[2].cell["ratio"] = 0.1
    for figure in figures(records):
        drawing = figure.draw()
        shown = [text.get_text() for text in drawing.findobj(lambda one: hasattr(one, "get_text"))]
        assert not [text for text in shown if "剪" in text]
        ElementTree.fromstring(svg(figure))
    drawing = by_name(records)["perplexity-wiki-by-ratio"].draw()
    (label,) = (text.get_text() for text in drawing.legends[0].get_texts() if "a_b" in text.get_text())
    assert label == style.name(HOSTILE)
    assert r"$\frac{$" in label


def test_what_a_compensation_gives_by_hand():
    figure = by_name(MENDED)["perplexity-wiki-mended"]
    assert figure.description == (
        "ppl wiki with a compensation, times that without. At ratio 0.2: shortgpt replaceme 0.743. At ratio 0.3: "
        "shortgpt ghost 0.315, replaceme 0.207; flap refit 0.846."
    )
    drawing = figure.draw()
    points = [
        {line.get_label(): line.get_xdata()[0] for line in axis.lines if not line.get_label().startswith("_")}
        for axis in drawing.axes
    ]
    assert points[0] == {"replaceme": pytest.approx(62.7 / 84.4)}
    assert points[1]["ghost"] == pytest.approx(160 / 508)  # of the method with the same parameters
    assert points[1]["refit"] == pytest.approx(110 / 130)
    assert [text.get_text() for text in drawing.axes[0].get_yticklabels()] == ["flap", "shortgpt"]
    assert "perplexity-wiki-mended" not in by_name(ALL)


def test_a_compensation_keeps_the_colour_of_its_method():
    assert style.style("shortgpt+ghost").colour == style.style("shortgpt").colour
    assert style.style("shortgpt+ghost").hollow
    assert style.style("shortgpt+ghost") != style.style("shortgpt+scale")
    assert style.style("laco-ls", "laco-ls") == style.BUILT_IN["laco-ls"]
    assert {card.name for card in methods.compensations()} == set(style.MENDED)


def test_another_ending_is_refused(tmp_path):
    figure = figures([DENSE, LACO])[0]
    with pytest.raises(ValueError, match=r"written as \.svg, \.pdf, \.png; got figure.jpg"):
        save(figure, tmp_path / "figure.jpg")


def test_a_perplexity_has_a_logarithmic_axis_and_an_average_has_not():
    found = by_name(ALL)
    assert found["perplexity-wiki-by-ratio"].draw().axes[0].get_yscale() == "log"
    assert found["average-by-ratio"].draw().axes[0].get_yscale() == "linear"
    assert found["perplexity-wiki-by-method"].draw().axes[0].get_xscale() == "log"


def test_a_legend_covers_no_data():
    records = [DENSE, *(changed(LACO, "cell", "method", to=name) for name in style.BUILT_IN if name != "dense")]
    records.append(changed(LACO, "cell", "ratio", to=0.1))
    for name in ("perplexity-wiki-by-ratio", "perplexity-wiki-by-cost"):
        drawing = by_name(records)[name].draw()
        FigureCanvasAgg(drawing).draw()
        legend = drawing.legends[0].get_window_extent()
        assert all(axis.get_window_extent().x1 <= legend.x0 for axis in drawing.axes)
        assert len(drawing.legends[0].get_texts()) == len(style.BUILT_IN)


def test_bars_are_the_intervals_of_the_record():
    drawing = by_name([DENSE, LACO])["perplexity-wiki-by-method"].draw()
    ends = [path.vertices[:, 0] for one in drawing.axes[0].collections for path in one.get_paths()]
    assert [(min(x), max(x)) for x in ends] == [pytest.approx((300.0, 391.0))]


def test_draws_are_points_and_have_no_bar():
    records = [DENSE, *(drawn(seed, ppl, 0.4) for seed, ppl in enumerate((10.0, 100.0, 1000.0)))]
    axis = by_name(records)["perplexity-wiki-by-method"].draw().axes[0]
    assert axis.collections == [] or not axis.collections
    assert sorted(max((line.get_xdata() for line in axis.lines), key=len)) == [10.0, 100.0, 1000.0]


# --- looks


def test_every_built_in_method_has_a_look_of_its_own():
    assert {card.name for card in methods.catalogue()} <= set(style.BUILT_IN)
    looks = [(one.colour, str(one.line)) for one in style.BUILT_IN.values()]
    assert len(set(looks)) == len(looks)
    points = [(one.colour, one.marker) for one in style.BUILT_IN.values()]
    assert len(set(points)) == len(points)


def test_a_look_hangs_on_the_name_alone():
    assert style.style("mine") == style.style("mine")
    assert style.style("laco", "laco:C=3").colour == style.style("laco").colour
    assert style.style("laco", "laco:C=3").hollow
    assert len({style.style(f"method {number}") for number in range(100)}) > 50


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_colour_is_seen_on_white():
    for one in {look.colour for look in style.BUILT_IN.values()}:
        assert 1.05 / (luminance(one) + 0.05) > 2.2, one


# --- fronts


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("column", "cost"), [("perplexity_wiki", "parameters"), ("average", "prefill_speed")])
def test_the_front_is_what_nothing_dominates(seed, column, cost):
    draw = random.Random(seed)
    points = [
        Point(str(number), "m", 0.1, {column: float(draw.randint(1, 6)), cost: float(draw.randint(1, 6))}, [])
        for number in range(12)
    ]
    signs = (-1 if column.startswith("perplexity") else 1, -1 if cost == "parameters" else 1)
    value = {point.label: (signs[0] * point.row[column], signs[1] * point.row[cost]) for point in points}

    def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] >= b[0] and a[1] >= b[1] and a != b

    expected = {name for name, one in value.items() if not any(dominates(other, one) for other in value.values())}
    front = front_of(column, cost, points)
    assert {point.label for point in front} == expected
    assert [point.row[cost] for point in front] == sorted(point.row[cost] for point in front)


def test_a_perplexity_without_measure_is_left_out():
    endless = changed(LACO, "measured", "perplexity", "wiki", "perplexity", to=math.inf)
    endless = changed(endless, "cell", "method", to="endless")
    found = by_name([DENSE, LACO, endless])["perplexity-wiki-by-method"]
    assert isinstance(found.draw(), Drawing)
    assert "endless" not in found.description
