"""Figures: equal bytes for equal records, every name shown as it is, fronts by brute force, looks that stay apart."""

from __future__ import annotations

import _thread
import copy
import math
import random
import re
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_cells import made_inputs
from made_records import (
    DENSE,
    LACO,
    MENDED,
    RECORDS,
    SLICEGPT,
    changed,
    drawn,
    failed,
    mended,
    with_cell,
    with_measured,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing
from matplotlib.text import Text
from PIL import Image

import methods
from bench.plan.cell import TaskInput, TimedOn
from bench.plan.kinds import to_plain
from bench.records.record import Record
from methods.files import write_atomically
from reports.families import COLOURS_BY_FAMILY
from reports.figures import catalogue, style
from reports.figures.catalogue import figures_of_report
from reports.figures.curves import BEST, FEW, MOST, Chart, Curve, move_apart, write_names
from reports.figures.figure import FORMATS, Figure, render_figure, save_figure, to_svg
from reports.figures.pareto import front_of
from reports.figures.quality import PlottedPoint
from reports.figures.style import make_axes
from reports.figures.traces import _boxes
from reports.page.page import render_page

ROOT = Path(__file__).parents[2]
LOOKING = [card.name for card in methods.cards_of_methods() if card.look and card.name != "dense"]
HOSTILE = r"a_b&c%$\frac{$#{}~\`<script>alert(1)</script>剪枝--"


def with_rounds(record: Record) -> Record:
    draw, points = random.Random(0), []
    for point in record.measured.timed_points:
        calls = {
            side: [[ms * draw.uniform(0.9, 1.1) for _ in range(4)] for _ in range(6)]
            for side, ms in point.ms_by_model().items()
        }
        points.append(to_plain(point) | {"rounds": calls})
    return changed(record, "measured", "speed", "points", to=points)


TRACE = [
    {"pointer": 25, "layers": 30, "merged": 3, "similarity": 0.73, "accepted": False},
    {"pointer": 24, "layers": 30, "merged": 3, "similarity": None, "accepted": False},
    {"pointer": 23, "layers": 30, "merged": 3, "similarity": 0.91, "accepted": True},
]
MERGED = changed(with_rounds(LACO), "decisions", "trace", to=TRACE)
ALL = [MERGED, with_rounds(DENSE), *(record for record in RECORDS if record not in (LACO, DENSE))]


def by_name(records: list[Record]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures_of_report(records)}


def test_there_is_a_figure_for_all_that_was_measured_and_for_nothing_else():
    expected = {"perplexity-wiki-by-ratio", "perplexity-wiki-by-method", "average-by-ratio", "average-by-method"}
    expected |= {"perplexity-wiki-by-cost", "average-by-cost", "tasks-kept", "depth", "similarity-1", "latency-0.3"}
    assert set(by_name(ALL)) == expected
    bare = [changed(record, "measured", "tasks", to={}) for record in (DENSE, LACO)]
    bare = [changed(record, "measured", "speed", to={}) for record in bare]
    expected = {"perplexity-wiki-by-method", "perplexity-wiki-by-cost", "depth"}  # over one ratio there is no line
    assert set(by_name(bare)) == expected
    assert (
        figures_of_report([]) == figures_of_report([DENSE]) == figures_of_report([failed("error", "laco", "x")]) == []
    )


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Every figure as SVG, one of each kind of drawing in every format; all drawn twice."""
    folder = tmp_path_factory.mktemp("figures")
    for turn in ("one", "two"):
        for figure in figures_of_report(copy.deepcopy(ALL)):
            kinds = FORMATS if figure.name in ("average-by-ratio", "depth") else ("svg",)
            for kind, content in render_figure(figure, kinds).items():
                write_atomically(folder / turn / f"{figure.name}.{kind}", content)
    return folder


def test_equal_records_give_equal_bytes(drawings):
    names = sorted(path.name for path in (drawings / "one").iterdir())
    assert len(names) == len(by_name(ALL)) + 4
    for name in names:
        assert (drawings / "one" / name).read_bytes() == (drawings / "two" / name).read_bytes(), name


def test_an_svg_is_sound_described_and_asks_for_nothing(drawings):
    for figure in figures_of_report(ALL):
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
    records[2] = with_cell(records[2], ratio=0.1)
    for figure in figures_of_report(records):
        drawing = figure.draw()
        shown = [text.get_text() for text in drawing.findobj(lambda one: hasattr(one, "get_text"))]
        assert not [text for text in shown if "剪" in text]
        ElementTree.fromstring(to_svg(figure))
    drawing = by_name(records)["perplexity-wiki-by-ratio"].draw()
    (label,) = (text.get_text() for text in drawing.axes[0].texts if "a_b" in text.get_text())
    assert label == style.name_in_font(HOSTILE)
    assert r"$\frac{$" in label


def test_a_curve_joins_setups_that_agree_in_what_decides_a_perplexity():
    protocol = replace(LACO.cell.protocol, profile="curves", tasks=(), checks=False, speed_rounds=0)
    brief = [with_cell(one, protocol=protocol, inputs=made_inputs()) for one in (DENSE, with_cell(LACO, ratio=0.1))]
    brief[1] = with_measured(brief[1], ratio=0.1, tasks={})
    inputs = made_inputs(tasks={"piqa": TaskInput(1, "a")}, timed_on=TimedOn("one", 2))
    timed = [with_cell(record, inputs=inputs) for record in (DENSE, LACO)]
    found = by_name([*timed, *brief])
    assert "perplexity-wiki-by-ratio-2" not in found
    curve = found["perplexity-wiki-by-ratio"]
    assert curve.description.endswith("Points of 2 setups that agree in all that decides it.")
    (line,) = (line for line in curve.draw().axes[0].lines if line.get_label() == "laco")
    assert list(line.get_xdata()) == [pytest.approx(10), pytest.approx(100 * LACO.measured.ratio)]
    assert "average-by-ratio" not in found  # its tasks were not measured at 0.1
    assert {"perplexity-wiki-by-method", "perplexity-wiki-by-method-2"} <= set(found)
    brief = [changed(record, "cell", "protocol", "window", to=128) for record in brief]
    assert "perplexity-wiki-by-ratio" not in by_name([DENSE, LACO, *brief])  # one ratio in each


def test_what_a_compensation_gives_by_hand():
    figure = by_name(MENDED)["perplexity-wiki-mended"]
    assert figure.description == (
        "Perplexity on wiki with a compensation, times that of the method without. "
        "At ratio 0.2: shortgpt replaceme 0.743. At ratio 0.3: shortgpt ghost 0.315, replaceme 0.207; flap refit 0.846."
    )
    assert by_name(MENDED)["average-mended"].description == (
        "Average accuracy with a compensation, points more than without. At ratio 0.2: shortgpt replaceme +1.0. "
        "At ratio 0.3: shortgpt ghost +2.0, replaceme +1.0; flap refit +1.0."
    )
    drawing = figure.draw()
    points = [
        {line.get_label(): list(line.get_xdata()) for line in axis.lines if not line.get_label().startswith("_")}
        for axis in drawing.axes
    ]
    assert points[0] == {"replaceme": [pytest.approx(62.7 / 84.4)]}
    assert points[1]["refit"] == [pytest.approx(110 / 130)]
    assert points[1]["ghost"] == [pytest.approx(160 / 508)]  # of the method with the same parameters
    assert points[1]["replaceme"] == []  # far from the others, and therefore in figures:
    assert [text.get_text() for text in drawing.axes[1].texts] == ["\N{LEFTWARDS ARROW} 0.21"]
    assert 0.25 < drawing.axes[1].get_xlim()[0] < 160 / 508
    assert [text.get_text() for text in drawing.axes[0].get_yticklabels()] == ["flap", "shortgpt"]
    assert not {"perplexity-wiki-mended", "average-mended"} & set(by_name(ALL))


@pytest.mark.parametrize("count", [MOST - 2, MOST - 1])  # and dense, and laco mended
@pytest.mark.parametrize("alone", ["method-0", "laco"])
def test_a_figure_over_the_ratio_leaves_out_mended_methods_that_it_has_no_room_to_name(count, alone):
    cells = [DENSE]
    for number, method in enumerate([f"{alone}+ghost", *[f"method-{number}" for number in range(count)]]):
        for ratio in (0.2, 0.3):
            cell = changed(changed(LACO, "cell", "method", to=method), "cell", "ratio", to=ratio)
            cells.append(changed(cell, "measured", "perplexity", "wiki", "perplexity", to=30.0 + number))
    found = by_name(cells)["perplexity-wiki-by-ratio"]
    named = names(found)
    stays = count + 2 <= MOST or alone == "laco"  # which was not measured, so that no gain is known
    assert (f"{alone}+ghost" in named) == stays
    assert len(named) == count + stays
    assert ("methods with a compensation have figures of their own" in found.title) == (not stays)


def test_what_a_compensation_harms_many_times_over_is_told_in_figures():
    worse = [
        mended("sleb", 0.2, 20.0, 0.4),
        mended("sleb+ghost", 0.2, 250.0, 0.4),
        mended("sleb+scale", 0.2, 13.0, 0.4),
    ]
    (axis,) = by_name([DENSE, *worse])["perplexity-wiki-mended"].draw().axes
    assert [text.get_text() for text in axis.texts] == ["12 \N{RIGHTWARDS ARROW}"]
    assert axis.get_xlim() == pytest.approx((0.65 - 0.05 * 0.35, 1 + 0.05 * 0.35))


def test_a_compensation_keeps_the_colour_of_its_method():
    assert style.style_of("shortgpt+ghost").colour == style.style_of("shortgpt").colour
    assert style.style_of("shortgpt+ghost").hollow
    assert style.style_of("shortgpt+ghost") != style.style_of("shortgpt+scale")
    assert style.style_of("laco-ls", "laco-ls") == style.looks_by_name()["laco-ls"]


def test_the_files_of_a_figure_are_one_drawing(tmp_path):
    """They are cut at the same edges, in points: what one file shows no other one loses."""
    figure = by_name([DENSE, LACO])["perplexity-wiki-by-method"]
    save_figure(figure, tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pdf", ".png", ".svg"]
    root = ElementTree.parse(tmp_path / f"{figure.name}.svg").getroot()
    size = [float(root.get(side).removesuffix("pt")) for side in ("width", "height")]
    box = re.search(rb"/MediaBox \[ ?0 0 (\S+) (\S+) ?\]", (tmp_path / f"{figure.name}.pdf").read_bytes())
    assert [float(box[1]), float(box[2])] == pytest.approx(size, abs=0.01)
    with Image.open(tmp_path / f"{figure.name}.png") as image:
        assert [72 / 160 * pixels for pixels in image.size] == pytest.approx(size, abs=72 / 160)


def test_letters_are_not_joined():
    """A joined fi would be of a second font in every PDF."""
    fi = changed(LACO, "cell", "method", to="finercut")
    assert (
        render_figure(by_name([DENSE, fi])["perplexity-wiki-by-method"], ("pdf",))["pdf"].count(b"/FontDescriptor ")
        == 2
    )


ALONE = """
import sys
from pathlib import Path

sys.path.insert(0, "tests")
from made_records import DENSE, LACO

from methods.errors import Unwritable
from multiprocessing import active_children
from reports.figures import catalogue

drawn = catalogue.figures_of_report([DENSE, LACO])
folder = Path(sys.argv[1])
for count in (1, 3):
    catalogue._processes = lambda: count
    catalogue.Gallery(drawn, folder / str(count)).end()
    assert {path.stem for path in (folder / str(count)).iterdir()} == {figure.name for figure in drawn}
    assert not active_children()
    (folder / "file").write_text("no folder")
    try:
        catalogue.Gallery(drawn, folder / "file").end()
    except Unwritable as error:
        print(error)
"""


@pytest.mark.nightly
def test_figures_that_are_drawn_side_by_side_have_the_same_bytes(tmp_path):
    """In a process of its own, since one with threads is not forked; what goes wrong in a fork its parent says."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("cannot be written: File exists") == 2
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "3").iterdir())
    assert len(names) > 10
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes(), name


def test_where_threads_run_python_nothing_is_forked():
    """Also one that `threading` did not start, as that of pytest-xdist: a lock of its own would stay held in a fork."""
    begun, over = threading.Event(), threading.Event()

    def waits() -> None:
        begun.set()
        over.wait()

    _thread.start_new_thread(waits, ())
    try:
        assert begun.wait(10)
        assert catalogue._processes() == 1
    finally:
        over.set()


def test_a_perplexity_has_a_logarithmic_axis_and_an_average_has_not():
    found = by_name(ALL)
    assert found["perplexity-wiki-by-ratio"].draw().axes[0].get_yscale() == "log"
    assert found["average-by-ratio"].draw().axes[0].get_yscale() == "linear"
    assert found["perplexity-wiki-by-method"].draw().axes[0].get_xscale() == "log"


OF = ("all", "decoder", "macs")


def of_several(*ratios: float) -> list[Record]:
    """Three methods at these ratios of all, of the decoder and of the work, each figure another."""
    cells = [DENSE]
    for place, of in enumerate(OF):
        for number, method in enumerate(("laco", "flap", "sleb")):
            for ratio in ratios:
                cell = changed(changed(LACO, "cell", "method", to=method), "cell", "ratio", to=ratio)
                cell = changed(cell, "cell", "ratio_of", to=of)
                cells.append(changed(cell, "measured", "perplexity", "wiki", "perplexity", to=30 + 10 * place + number))
    return cells


def test_ratios_of_several_things_have_panels_curves_and_sentences_of_their_own():
    found = by_name(of_several(0.3))
    assert "perplexity-wiki-by-ratio" not in found  # no method has two ratios of one thing
    figure = found["perplexity-wiki-by-method"]
    panels = figure.draw().axes
    titles = ["ratio 0.3", "ratio 0.3 of the decoder", "budget macs=0.7"]
    assert [axis.get_title() for axis in panels] == titles
    for name in ("tasks-kept", "depth"):
        maps = by_name(of_several(0.3))[name]
        assert [axis.get_title() for axis in maps.draw().axes[:3]] == titles
        assert all(f"{title.capitalize()}: laco" in maps.description for title in titles)
    found = by_name([with_rounds(DENSE), changed(MERGED, "cell", "ratio_of", to="macs")])
    assert "at budget macs=0.7, each method" in found["latency-macs-0.7"].title
    assert found["similarity-1"].description.startswith("Budget macs=0.7: ")
    assert found["similarity-1"].draw().axes[0].get_title() == "budget macs=0.7"
    for place, axis in enumerate(panels):
        points = [tuple(line.get_xdata()) for line in axis.lines if len(line.get_xdata()) == 1]
        assert sorted(points) == [(30.0 + 10 * place + number,) for number in range(3)]
    for place, title in enumerate(titles):
        best, worst = f"laco with {30 + 10 * place}.0", f"the worst of 3 is sleb with {32 + 10 * place}.0"
        assert re.search(rf"At {title} the best is {best}.*?; {worst}", figure.description), figure.description
    (chart,) = by_name(of_several(0.1, 0.3))["perplexity-wiki-by-ratio"].charts
    labels = [f"{method}{of}" for of in ("", ", of the decoder", ", macs") for method in ("laco", "flap", "sleb")]
    assert [curve.label for curve in chart.curves] == labels
    assert {len(curve.points) for curve in chart.curves} == {2}
    assert len({y for curve in chart.curves for _, y in curve.points}) == 9
    (*_, size) = (one for one in by_name(of_several(0.3))["perplexity-wiki-by-cost"].charts)
    assert sorted(curve.label for curve in size.curves) == sorted(labels)


def names(figure: Figure, panel: int = 0) -> list[str]:
    """The names beside a chart, from the bottom to the top, without the dense model's."""
    texts = [text for text in figure.draw().axes[panel].texts if not text.get_text().startswith("dense")]
    return [text.get_text() for text in sorted(texts, key=lambda text: text.get_position()[1])]


def every_method(count: int = 0) -> list[Record]:
    """Each built-in method, and more, at two ratios, each worse than the one before it."""
    methods = [
        *LOOKING,
        *(f"mine-{number}" for number in range(count)),
    ]
    cells = [DENSE]
    for number, method in enumerate(methods):
        for ratio in (0.1, 0.3):
            cell = changed(changed(LACO, "cell", "method", to=method), "cell", "ratio", to=ratio)
            cell = changed(cell, "measured", "perplexity", "wiki", "perplexity", to=(30 + number) * (1 + ratio))
            cells.append(changed(cell, "measured", "ratio", to=ratio))
    return cells


def test_names_stand_beside_the_curves_and_on_no_other_name():
    found = by_name(every_method())
    for figure, count in (
        ("perplexity-wiki-by-ratio", len(LOOKING)),
        ("perplexity-wiki-by-cost", BEST),
    ):
        drawing = found[figure].draw()
        FigureCanvasAgg(drawing).draw()
        for axis in drawing.axes:
            texts = [text for text in axis.texts if not text.get_text().startswith("dense")]
            boxes = sorted((Text.get_window_extent(text) for text in texts), key=lambda box: box.y0)
            assert len(boxes) == count
            assert all(box.x0 > axis.get_window_extent().x1 for box in boxes)
            assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))


def test_the_best_laco_and_the_reference_are_in_colour_and_the_rest_is_grey():
    records = every_method()
    labels = list(dict.fromkeys(record.cell.method for record in records[1:]))
    worst = labels[-1]
    expected = {*[one for one in labels if one != "laco"][: BEST - 1], "laco", worst}
    assert expected < set(labels)
    for figure in (
        one for one in figures_of_report(records, reference=worst) if one.name.startswith("perplexity") and one.charts
    ):
        for chart, axis in zip(figure.charts, figure.draw().axes[-len(figure.charts) :], strict=True):
            assert {curve.label for curve in chart.curves if curve.emphasised} == expected
            lines = {line.get_label(): line.get_color() for line in axis.lines if line.get_label() in labels}
            assert {label for label, colour in lines.items() if colour != style.LIGHT} == expected
            assert lines[worst] == style.style_of(worst).colour
    assert f"in colour the {BEST} best at the highest ratio and drop and laco" in by_name_of(records, "drop").title
    few = [record for record in records if record.cell.method in ("dense", *labels[: FEW - 1])]
    assert all(curve.emphasised for curve in by_name_of(few).charts[0].curves)
    assert "in colour" not in by_name_of(few).title


def by_name_of(records: list[Record], reference: str = "") -> Figure:
    return next(
        one for one in figures_of_report(records, reference=reference) if one.name == "perplexity-wiki-by-ratio"
    )


def test_what_removed_too_little_is_not_in_colour_for_its_figure():
    records = every_method()
    flattered = [changed(r, "measured", "ratio_budget", to=r.measured.ratio + 0.1) for r in records[-2:]]
    flattered = [changed(r, "measured", "perplexity", "wiki", "perplexity", to=1.0) for r in flattered]
    (curve,) = (
        one for one in by_name_of([*records[:-2], *flattered]).charts[0].curves if 1.0 in dict(one.points).values()
    )
    assert not curve.emphasised


@pytest.mark.parametrize("seed", range(20))
def test_names_are_apart_in_their_order_and_as_near_as_can_be(seed):
    draw = random.Random(seed)
    wanted = sorted(draw.uniform(0, 1) ** 2 for _ in range(6))
    found, gap = move_apart(wanted, 0.1), 0.1
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(found))
    assert found[0] >= -1e-9 and found[-1] <= 1 + 1e-9

    def cost(places: list[float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(places, wanted, strict=True))

    for _ in range(500):  # nothing else that is allowed is nearer
        other = sorted(min(max(place + draw.gauss(0, 0.05), 0), 1) for place in found)
        if all(b - a >= gap for a, b in pairwise(other)):
            assert cost(other) >= cost(found) - 1e-9
    assert move_apart([0.5] * 11, 0.5) == pytest.approx([number / 10 for number in range(11)])
    assert move_apart([], 0.1) == []


def test_every_line_has_its_name_once_beside_its_right_end_and_no_two_overlap():
    """In the last panel that has it, also on a logarithmic axis and for a horizontal line; NaN is no end."""
    drawing, panels = make_axes(8.0, 4.0, columns=2)
    lines = {"low": [1, 2, 3], "lower": [1, 2, 2.9], "high": [1, 10, 900], "short": [5, 50, float("nan")]}
    for label, values in lines.items():
        panels[0].plot([1, 2, 3], values, label=label)
        if label != "short":
            panels[1].plot([1, 2, 3], values[::-1], label=label)
    panels[1].axhline(30, label="dense")
    panels[0].plot([1, 2], [1, 1], label="_unnamed")
    for axis in panels:
        axis.set_yscale("log")
    write_names(panels)
    written = [{text.get_text(): text for text in axis.texts} for axis in panels]
    assert [set(names) for names in written] == [{"short"}, {"low", "lower", "high", "dense"}]
    canvas = FigureCanvasAgg(drawing)
    canvas.draw()
    for axis, names in zip(panels, written, strict=True):
        renderer = canvas.get_renderer()
        boxes = sorted((Text.get_window_extent(text, renderer) for text in names.values()), key=lambda box: box.y0)
        assert all(below.y1 <= above.y0 + 0.5 for below, above in pairwise(boxes))
        assert all(box.x0 > axis.bbox.x1 for box in boxes)

    def end(name: str, axis: int) -> tuple[float, float]:
        at = panels[axis].transAxes.transform(written[axis][name].xy)
        return tuple(panels[axis].transData.inverted().transform(at))

    assert end("short", 0) == pytest.approx((2, 50))
    assert end("high", 1) == pytest.approx((3, 1))
    assert end("dense", 1)[1] == pytest.approx(30)


def test_a_curve_starts_at_the_dense_model_and_is_cut_at_the_top():
    dense = Curve("dense", "dense", ((0.0, 10.0),), ("10",))
    curve = Curve("a", "a", ((10.0, 100.0), (20.0, 10_000.0), (30.0, 100.0)), ("100", "10,000", "100"))
    chart = Chart("x", "y", (curve,), dense, (0.0, 40.0), (1.0, 1000.0), logarithmic=True)
    up, out, back, down = (pytest.approx(place) for place in ((0.25, 2 / 3), (0.375, 1), (0.625, 1), (0.75, 2 / 3)))
    assert chart.parts(curve) == [[pytest.approx((0, 1 / 3)), up, out], [back, down]]
    assert chart.end(curve) == down
    high = Curve("b", "b", ((10.0, 1e9),), ("1e9",), joined=False)
    assert chart.parts(high) == []
    assert chart.end(high) == (0.25, 1.0)
    assert replace(chart, dense=None).parts(curve)[0] == [up, out]


def test_bars_are_the_intervals_of_the_record():
    drawing = by_name([DENSE, LACO])["perplexity-wiki-by-method"].draw()
    bars, caps = drawing.axes[0].collections
    assert [path.vertices[:, 0].tolist() for path in bars.get_paths()] == [[300.0, 391.0]]
    assert caps.get_offsets().tolist() == [[300.0, 0.0], [391.0, 0.0]]


def test_boxes_are_what_matplotlib_draws():
    """The quartiles, the whiskers at the 5th and 95th percentile, the calls beyond; for each row where it belongs."""
    calls = [random.Random(seed).choices(range(100), k=48) for seed in (1, 2)]
    mine, theirs = (Drawing().subplots() for _ in range(2))
    _boxes(mine, 0.1, calls, ["#000000", "#D55E00"], filled=True)
    expected = theirs.boxplot(
        calls, positions=[0.1, 1.1], widths=0.26, orientation="horizontal", whis=(5, 95), patch_artist=True
    )
    boxes, across, ends, medians, beyond = mine.collections

    def corners(paths: list[Any]) -> list[Any]:
        return [sorted({(round(x, 9), round(y, 9)) for x, y in path.vertices.tolist()}) for path in paths]

    assert corners(boxes.get_paths()) == corners([box.get_path() for box in expected["boxes"]])
    for collection, lines in ((across, "whiskers"), (ends, "caps"), (medians, "medians")):
        assert sorted(corners(collection.get_paths())) == sorted(corners([one.get_path() for one in expected[lines]]))
    fliers = [(x, y) for one in expected["fliers"] for x, y in zip(*one.get_data(), strict=True)]
    assert sorted(map(tuple, beyond.get_offsets().tolist())) == sorted(fliers)
    assert mine.get_xlim() == theirs.get_xlim()


def test_draws_are_points_and_have_no_bar():
    records = [DENSE, *(drawn(seed, ppl, 0.4) for seed, ppl in enumerate((10.0, 100.0, 1000.0)))]
    axis = by_name(records)["perplexity-wiki-by-method"].draw().axes[0]
    assert len(axis.collections) == 0
    assert sorted(max((line.get_xdata() for line in axis.lines), key=len)) == [10.0, 100.0, 1000.0]


# --- looks


@pytest.mark.parametrize(
    "cards", [methods.cards_of_methods(), methods.cards_of_compensations()], ids=["methods", "compensations"]
)
def test_no_two_looks_are_equal(cards):
    """As points, and so as lines, whose points are drawn; rows of compensations stand in figures of their own."""
    looks = [style.looks_by_name()[card.name] for card in cards if card.look]
    assert len(looks) > 5
    points = [(look.colour, look.marker) for look in looks]
    assert len(set(points)) == len(points)


def test_a_family_has_one_colour_in_drawings_and_on_pages():
    """Which is its own; and each method that says how it looks has that of its family."""
    assert len({*COLOURS_BY_FAMILY.values()}) == len(COLOURS_BY_FAMILY) == 8
    page = render_page([DENSE, LACO])
    for family, (light, dark) in COLOURS_BY_FAMILY.items():
        assert f"--{family}: light-dark({light}, {dark});" in page
    looks = style.looks_by_name()
    assert looks["laco"].colour == looks["sleb"].colour == looks["shortgpt"].colour == COLOURS_BY_FAMILY["depth"][0]
    assert looks["drop-tail"].colour == looks["expert-random"].colour == COLOURS_BY_FAMILY["control"][0]
    assert {looks[name].colour for name in LOOKING} == {light for light, _ in COLOURS_BY_FAMILY.values()}


def test_a_look_hangs_on_the_name_alone():
    assert style.style_of("mine") == style.style_of("mine")
    assert style.style_of("laco", "laco:C=3").colour == style.style_of("laco").colour
    assert style.style_of("laco", "laco:C=3").hollow
    assert len({style.style_of(f"method {number}") for number in range(100)}) > 50


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_colour_is_seen_on_white():
    for one in {look.colour for look in style.looks_by_name().values()}:
        assert 1.05 / (luminance(one) + 0.05) > 2.2, one


# --- fronts


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("column", "cost"), [("perplexity_wiki", "parameters"), ("average", "prefill_speed")])
def test_the_front_is_what_nothing_dominates(seed, column, cost):
    draw = random.Random(seed)
    points = [
        PlottedPoint(str(number), "m", 0.1, {column: float(draw.randint(1, 6)), cost: float(draw.randint(1, 6))}, [])
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


def test_a_curve_that_leaves_all_others_behind_leaves_the_axis():
    """Beyond 1,000 times the dense perplexity, 20.8 here, its name and its figure stand at the top."""
    low = changed(LACO, "cell", "ratio", to=0.1)
    high = changed(
        changed(low, "cell", "method", to="drop-tail"), "measured", "perplexity", "wiki", "perplexity", to=3e9
    )
    records = [DENSE, LACO, low, high]
    drawing = by_name(records)["perplexity-wiki-by-ratio"].draw()
    top = 1000 * DENSE.measured.text_scores["wiki"].perplexity
    assert drawing.axes[0].get_ylim()[1] == pytest.approx(top)
    assert names(by_name(records)["perplexity-wiki-by-ratio"])[-1] == "drop-tail 3.0e9 \N{UPWARDS ARROW}"
    panels = by_name(records)["perplexity-wiki-by-method"].draw().axes
    assert [[text.get_text() for text in axis.texts] for axis in panels] == [["3e9 \N{RIGHTWARDS ARROW}"], []]
    assert [axis.get_xlim()[1] for axis in panels] == [pytest.approx(top)] * 2
    assert all(axis.get_ylim()[0] < 0 and axis.get_ylim()[1] > 1 for axis in panels)  # two rows, both inside
    draws = [drawn(0, 100.0, 0.3), drawn(1, 200.0, 0.4), drawn(2, 2 * top, 0.5)]  # whose mean is on the axis
    panels = by_name([*records, *draws])["perplexity-wiki-by-method"].draw().axes
    rows = [label.get_text() for label in panels[0].get_yticklabels()]
    said = {rows[round(text.get_position()[1])]: text.get_text() for text in panels[0].texts}
    assert said == {"drop-tail": "3e9 \N{RIGHTWARDS ARROW}", "drop-random": "\N{RIGHTWARDS ARROW}"}
    near = by_name([DENSE, LACO, low])["perplexity-wiki-by-ratio"].draw()
    assert near.axes[0].get_ylim()[1] < top
    assert not any("\N{UPWARDS ARROW}" in text.get_text() for text in near.axes[0].texts)


def test_what_was_not_measured_is_not_drawn_as_gone():
    """In the map of what is left, white is what has gone."""
    other = changed(changed(LACO, "cell", "ratio", to=0.1), "cell", "method", to="drop-tail")
    drawing = by_name([DENSE, LACO, other])["depth"].draw()
    said = [[text.get_text() for text in axis.texts] for axis in drawing.axes[:2]]
    assert said == [["not measured"], ["not measured"]]


def test_figures_of_several_models_have_their_names_and_titles_say_what_is_there():
    other = [
        changed(changed(one, "cell", "model", to="x"), "cell", "display_name", to="Model X") for one in (DENSE, LACO)
    ]
    untimed = [with_measured(one, speed=None) for one in other]
    found = by_name([DENSE, LACO, *untimed])
    assert {"depth-SmolLM2-135M-Instruct", "depth-Model-X"} <= set(found)
    assert "depth" not in found
    titles = {name: figure.title for name, figure in found.items() if name.startswith("average-by-cost")}
    assert " against size and speed; " in titles["average-by-cost-SmolLM2-135M-Instruct"]
    assert " against size; " in titles["average-by-cost-Model-X"]
