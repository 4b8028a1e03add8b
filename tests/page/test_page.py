"""The page: what stands in it, and what a reader with a browser, a keyboard or a phone can do with it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import findings, needs_chromium, opened
from made_records import DENSE, LACO, RECORDS, changed, drawn, measured, ok
from pages import ROOT

from bench.records.record import record_from_plain
from bench.records.run_folder import load_run
from reports.page.charts import to_inline
from reports.page.page import render_page, to_json
from reports.page.sections import VIEWS, list_rows, sections_of_views
from reports.tables.views import build_views

DRAWS = [drawn(seed, ppl, 0.3) for seed, ppl in ((0, 900.0), (1, 1100.0), (2, 1000.0))]
AT_01 = [ok("laco", 0.1, measured(14_160_384, (90.0, 92.8, 95.0), [0.36, 0.5, 0.6, 0.3, 0.2], 70.0)), *DRAWS]
ALL = [*RECORDS, *AT_01]
HOSTILE = "<script>alert(1)</script>|x"


class Tags(HTMLParser):
    """All tags of a page with their attributes, and the text of its style and script elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"style": [], "script": []}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open in self.inside:
            self.inside[self._open].append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


@pytest.fixture(scope="module")
def html() -> str:
    return render_page(ALL)


@pytest.fixture(scope="module")
def tags(html: str) -> Tags:
    return Tags(html)


@pytest.fixture(scope="module")
def address(html: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path.as_uri()


def test_equal_records_give_equal_bytes(html):
    assert render_page(json_again(ALL)) == html


def json_again(records: list[Any]) -> list[Any]:
    return [record_from_plain(json.loads(json.dumps(record.plain()))) for record in records]


def test_nothing_leads_out_of_the_file(tags):
    for tag, attributes in tags.tags:
        for name in ("src", "href", "action", "data", "srcset", "poster", "formaction"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/")), f"<{tag} {name}={value[:80]}>"
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import|<link|<iframe|<base", "".join(tags.inside["style"]))


def test_a_name_within_the_page_is_of_one_place(tags):
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), [name for name in ids if ids.count(name) > 1]
    links = {attributes["href"][1:] for tag, attributes in tags.tags if tag == "a"}
    targets = {attributes["data-target"] for _, attributes in tags.tags if "data-target" in attributes}
    assert links | targets <= set(ids)


def test_the_policy_names_the_style_and_scripts_that_are_there_and_nothing_else(tags):
    (policy,) = [a["content"] for _, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    kinds = [a.get("type") for tag, a in tags.tags if tag == "script"]
    scripts = [text for text, kind in zip(tags.inside["script"], kinds, strict=True) if kind != "application/json"]
    for rule, texts in (("style-src", tags.inside["style"]), ("script-src", scripts)):
        sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert rules[rule].split() == [f"'sha256-{found}'" for found in sums]
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules


def test_data_for_the_script_end_no_element_and_no_line():
    hostile = {"a</script><!--": ["&amp;", "\u2028\u2029", "größe", None, 1.5]}
    text = to_json(hostile)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == hostile
    with pytest.raises(ValueError):
        to_json([float("nan")])


def test_cells_of_two_protocols_are_not_mistaken_for_each_other():
    both = [changed(one, "cell", "protocol", "windows", to=99) for one in (DENSE, LACO)]
    rows, targets = list_rows([DENSE, LACO, *both])
    windows = {one.id: one.records[0].cell.protocol.windows for one in rows}
    found = sections_of_views(build_views(VIEWS, [DENSE, LACO, *both]), targets)
    assert {one["name"] for one in found} >= {"results", "tasks", "speed", "cost"}
    for table in (table for one in found for table in one["tables"]):
        (said,) = (one for one in table["conditions"] if one.startswith("windows "))
        assert {f"windows {windows[row['target']]}" for row in table["rows"]} == {said}


def test_cells_of_two_machines_have_links_at_one_ratio_and_at_several():
    low = changed(changed(LACO, "cell", "ratio", to=0.1), "environment", "gpu", to="H100")
    exact = changed(low, "cell", "match", to="exact")
    records = [changed(DENSE, "environment", "gpu", to="H200"), low, exact, LACO]
    rows, targets = list_rows(records)
    tables = [table for one in sections_of_views(build_views(VIEWS, records), targets) for table in one["tables"]]
    label = {one.id: one.label for one in rows}
    assert len(tables) > 5
    for row in (row for table in tables for row in table["rows"]):
        shown = [cell["target"] for cell in row["cells"] if cell["figure"] != "-"]
        assert [label.get(target) for target in shown] == [row["label"].partition(" at ")[0]] * len(shown)


def test_a_budget_and_a_ratio_that_go_by_one_number_are_both_named_and_found():
    budget = changed(changed(LACO, "cell", "ratio", to=1 - 0.7), "cell", "ratio_of", to="macs")
    decoder = changed(changed(LACO, "cell", "ratio", to=0.1), "cell", "ratio_of", to="decoder")
    text = render_page([DENSE, LACO, budget, decoder])
    options = re.findall(r'<option value="(.*?)">(.*?)</option>', text)
    assert options == [("", "every ratio"), ("0.1", "0.1 of the decoder"), ("0.3", "0.3, macs=0.7")]
    table = text[text.index('<table id="by-ratio-0"') :]
    table = table[: table.index("</table>")]
    heads = re.findall(r'<th scope="col" data-ratio="(.*?)".*?<button type="button">(.*?)</button>', table)
    assert heads == [("0.3", "0.3"), ("0.1", "0.1 of the decoder"), ("0.3", "macs=0.7")]
    titles = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])["titles"]
    row = table[table.index('data-method="laco"') :]
    asked = [titles[target].partition(" of SmolLM2")[0] for target in re.findall(r'data-target="(.*?)"', row)]
    assert asked == ["laco at ratio 0.3", "laco at ratio 0.1 of the decoder", "laco at budget macs=0.7"]


def test_a_page_without_records_says_so():
    text = render_page([], title="run")
    assert "No cell of this run has been measured yet." in text
    assert '<form id="filter"' not in text


def test_failures_have_their_reason_and_no_figure(html):
    assert html.count("CUDA out of memory. Tried to allocate 20.00 GiB") >= 2
    assert re.search(r'<td class="failure" colspan="\d+">out of memory</td>', html)


def test_a_drawing_loses_what_a_policy_refuses_and_takes_the_ink_of_the_page():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9pt" height="9pt" '
        'viewBox="0 0 9 9"><style>*{}</style><script>x</script><title>A &lt;b&gt;</title>'
        '<path style="fill: #FFFFFF; stroke: #000000; font: italic 10px \'DejaVu Sans\'" onload="x"/>'
        '<path style="stroke: #0072b2"/><use xlink:href="#m"/><use xlink:href="https://example.org/"/></svg>'
    )
    root = ElementTree.fromstring(to_inline(svg))
    assert [child.tag for child in root] == ["title", "path", "path", "use", "use"]
    assert root[0].text == "A <b>"
    font = {"font-style": "italic", "font-size": "10px", "font-family": "'DejaVu Sans'"}
    assert root[1].attrib == {"fill": "var(--paper)", "stroke": "currentColor"} | font
    assert root[2].attrib == {"stroke": "#0072b2"}
    assert [use.attrib for use in root[3:]] == [{"href": "#m"}, {}]
    assert (root.get("width"), root.get("height"), root.get("class")) == ("9pt", None, None)
    a_map = ElementTree.fromstring(
        to_inline(svg.replace("<title>", '<image xlink:href="data:image/png;base64,"/><title>'))
    )
    assert (a_map.get("class"), a_map[2].get("fill")) == ("paper", "#FFFFFF")


def shown(view: Any, table: str) -> list[str]:
    """The methods of a table in the order in which they are seen."""
    return view.locator(f"#{table} tbody tr:not([hidden]) th").all_inner_texts()


def heads(view: Any, table: str) -> list[str]:
    """The headings of a table, without units."""
    return [text.split("\n")[0].strip() for text in view.locator(f"#{table} thead th").all_inner_texts()]


def column(view: Any, table: str, head: str) -> tuple[Any, list[str]]:
    """The heading of a column, and its figures in the order in which they are seen."""
    place = heads(view, table).index(head)
    cells = view.locator(f"#{table} tbody tr:not([hidden]):not(:has(.failure)) > :nth-child({place + 1})")
    return view.locator(f"#{table} thead th").nth(place), [text.split()[0] for text in cells.all_inner_texts()]


TABLE = "results-1"  # ratio 0.3, with failures


@needs_chromium
def test_sorting_by_figures_with_what_has_none_at_the_end(address, chromium):
    with opened(chromium) as view:
        view.goto(address)
        before = shown(view, TABLE)
        head, _ = column(view, TABLE, "ppl wiki")
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        _, figures = column(view, TABLE, "ppl wiki")
        numbers = [float(figure.replace(",", "")) for figure in figures]
        assert numbers == sorted(numbers)
        assert len(numbers) > 3
        assert shown(view, TABLE)[-3:] == ["flap", "llm-pruner", "shortgpt"]  # failed, in the order they came in
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        _, figures = column(view, TABLE, "ppl wiki")
        assert [float(figure.replace(",", "")) for figure in figures] == sorted(numbers, reverse=True)
        assert shown(view, TABLE)[-3:] == ["flap", "llm-pruner", "shortgpt"]
        head.get_by_role("button").press("Space")
        assert shown(view, TABLE) == before
        assert view.locator(f"#{TABLE} th[aria-sort]:not([aria-sort=none])").count() == 0
        assert view.complaints == []


@needs_chromium
def test_filtering_by_method_and_ratio_keeps_the_dense_model_beside_what_is_left(address, chromium):
    with opened(chromium) as view:
        view.goto(address)
        view.get_by_role("searchbox", name="Method").fill("LACO slice")
        assert shown(view, TABLE) == ["dense", "slicegpt", "laco"]
        view.get_by_role("combobox", name="Ratio").select_option("0.1")
        assert not view.locator(f"#{TABLE}").is_visible()
        assert shown(view, "results-0") == ["dense", "laco"]
        assert view.locator("#by-ratio-0 thead th:visible").all_inner_texts()[1:] == ["0.1"]
        visible = view.locator("details.cell:visible summary").all_inner_texts()
        assert visible
        assert all(re.match(r"dense|laco at ratio 0.1", text) for text in visible)
        assert re.fullmatch(r"\d+ of \d+ rows", view.locator("#shown").inner_text())
        view.reload()  # as a page does that is served while a run goes on
        assert shown(view, "results-0") == ["dense", "laco"]
        view.get_by_role("button", name="Show all").click()
        assert HOSTILE in shown(view, TABLE)
        assert view.complaints == []


@needs_chromium
def test_a_method_with_a_hostile_name_is_text(address, chromium):
    with opened(chromium) as view:
        view.goto(address)
        assert HOSTILE in shown(view, TABLE)
        row = view.locator(f"#{TABLE} tbody tr", has_text="alert(1)")
        row.locator("td").nth(2).click()
        assert HOSTILE in view.locator("#dialog-title").inner_text()
        assert "3.4e8" in view.locator("#dialog-figure").inner_text()
        assert view.locator("main script, dialog script").count() == 0
        assert view.complaints == []


FIGURES = """() => [...document.querySelectorAll("#results td[data-target], #by-ratio td[data-target]")].map((cell) => {
  const table = cell.closest("table"), data = JSON.parse(document.getElementById("data").textContent);
  const row = [...table.tBodies[0].rows].indexOf(cell.parentNode), figure = data.tables[table.id][row][cell.cellIndex];
  return {
    head: table.id.startsWith("by-ratio") ? table.closest("figure").querySelector("strong").textContent
                                          : table.tHead.rows[0].cells[cell.cellIndex].textContent.trim(),
    ratio: cell.parentNode.dataset.ratio || table.tHead.rows[0].cells[cell.cellIndex].dataset.ratio || "",
    method: cell.parentNode.dataset.method, drawn: cell.dataset.target in data.drawn, figure,
    title: data.titles[cell.dataset.target], text: document.getElementById(cell.dataset.target).textContent,
  };
})"""


@needs_chromium
def test_every_figure_leads_to_the_cell_that_it_comes_from(address, chromium):
    with opened(chromium) as view:
        view.goto(address)
        checked = 0
        for found in view.evaluate(FIGURES):
            ratio = found["ratio"] if found["method"] not in ("dense", "drop:layers=20-24") else ""
            at = f" at ratio {ratio}" if re.fullmatch(r"0\.\d+", ratio) else ""
            assert found["title"].startswith(f"{found['method']}{at} of "), found
            if (
                found["head"].lower().startswith("ppl wiki")
                and isinstance(found["figure"], list)
                and not found["drawn"]
            ):
                assert f"{found['figure'][0]:.6g}" in found["text"]
                checked += 1
        assert checked > 8


@needs_chromium
def test_protocol_and_environment_are_one_click_or_key_away_from_a_figure(address, chromium):
    with opened(chromium) as view:
        view.goto(address)
        figure = view.locator(f"#{TABLE} tr[data-method=laco] td").nth(2)
        assert "343" in figure.inner_text()
        figure.click()
        dialog = view.get_by_role("dialog")
        assert "ppl wiki: 343 ± 46; exactly 343.4; 95 % interval" in dialog.locator("#dialog-figure").inner_text()
        text = dialog.inner_text()
        for said in ("16 windows of 512 tokens", "2.13.0", "Example CPU", "0123456789abcdef", "removed_layers"):
            assert said in text, said
        view.keyboard.press("Escape")
        assert not dialog.is_visible()
        view.locator(f"#{TABLE} tr[data-method=laco] a").press("Enter")
        assert view.locator("#dialog-title").inner_text().startswith("laco at ratio 0.3")
        dialog.get_by_role("button", name="Close").click()
        view.locator("#results-0 tr[data-method=drop-random] td").nth(2).click()
        assert "standard deviation between the draws" in view.locator("#dialog-figure").inner_text()
        assert view.complaints == []


SEVERAL = (
    (DRAWS, {"ppl wiki": "one standard deviation between the draws", "average %": "standard deviation between"}),
    (  # of which one choice alone was timed
        [DRAWS[0], *(drawn(seed, ppl, 0.3, timed=False) for seed, ppl in ((1, 1100.0), (2, 1000.0)))],
        {"ppl wiki": "one standard deviation between the draws", "decode": "95 % interval"},
    ),
    ([changed(LACO, "cell", "seed", to=seed) for seed in (0, 1, 2)], {"ppl wiki": "95 % interval"}),
    (  # two choices at each of two seeds
        [changed(one, "cell", "seed", to=seed) for one in DRAWS[:2] for seed in (0, 1)],
        {"ppl wiki": "95 % interval", "average %": "standard error"},
    ),
)


@needs_chromium
@pytest.mark.parametrize(("records", "expected"), SEVERAL)
def test_what_stands_beside_a_mean_is_said_as_what_it_is(records, expected, tmp_path, chromium):
    path = tmp_path / "report.html"
    path.write_text(render_page([DENSE, *records], drawings=()), encoding="utf-8")
    with opened(chromium) as view:
        view.goto(path.as_uri())
        for head, said in expected.items():
            figure = view.locator("#results-0 tbody tr:not(.dense) td").nth(heads(view, "results-0").index(head) - 1)
            figure.click()
            text = view.locator("#dialog-figure").inner_text()
            assert f"; {said}" in text, text
            assert ("between the draws" in text) == ("between" in said)
            view.keyboard.press("Escape")
        assert view.complaints == []


@needs_chromium
def test_the_theme_follows_the_system_and_the_button_and_is_kept(address, chromium):
    def paper(view: Any) -> str:
        return str(view.evaluate("getComputedStyle(document.body).backgroundColor"))

    with opened(chromium, color_scheme="dark") as view:
        view.goto(address)
        dark = paper(view)
        view.get_by_role("button", name="Light theme").click()
        light = paper(view)
        assert (light, dark) == ("rgb(255, 255, 255)", "rgb(21, 23, 26)")
        view.reload()
        assert paper(view) == light
        assert view.get_by_role("button", name="Dark theme").is_visible()
        assert view.complaints == []


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1400, "light")])  # a scheme changes colours alone
def test_no_serious_barrier_no_request_and_nothing_wider_than_the_window(address, width, scheme, chromium):
    with opened(chromium, color_scheme=scheme, viewport={"width": width, "height": 900}) as view:
        view.goto(address)
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        for details in view.locator("details.protocol, details.cell:nth-of-type(-n+4)").all():
            details.evaluate("element => { element.open = true; }")
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        view.locator(f"#{TABLE} tr[data-method=laco] td").nth(2).click()
        assert findings(view, "dialog") == []
        view.keyboard.press("Escape")
        assert findings(view) == []
        assert view.requests == [address] or all(request.startswith("data:") for request in view.requests[1:])
        assert view.complaints == []


@needs_chromium
def test_a_page_of_setups_with_long_names_is_no_wider_than_a_phone(tmp_path: Path, chromium):
    """Setups that differ in their tasks are told apart by one word of all five, which is as wide as the window."""
    records = load_run(ROOT / "docs" / "results" / "laco-puzzle-seeds")
    text = render_page(records, drawings=(), tables={})
    assert "tasks hellaswag+piqa+winogrande+arc_easy+openbookqa" in text
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    with opened(chromium, viewport={"width": 400, "height": 900}) as view:
        view.goto((tmp_path / "page.html").as_uri())
        assert view.evaluate("document.documentElement.scrollWidth") <= 400


@needs_chromium
def test_text_too_pale_is_found_on_each_ground(chromium):
    grey = '<p style="color: #888">same</p>'
    dark, pale = (f'<div style="background: {ground}">{grey}</div>' for ground in ("#000", "#ddd"))
    with opened(chromium) as view:
        for content, count in ((f"<p>dark</p><p>dark</p>{dark}", 0), (dark + grey + dark + grey + pale + pale, 2)):
            view.set_content(f'<html lang="en"><title>A page</title><main>{content}</main></html>')
            assert [found.count("<p ") for found in findings(view)] == [count] * bool(count)


def curves(view: Any, state: str, chart: int = 0) -> list[str]:
    """The labels of the curves of a chart that are in a state, such as "on"."""
    found = view.locator(".chart").nth(chart).locator(f".curve.{state}")
    return sorted(found.evaluate_all("curves => curves.map((curve) => curve.dataset.label)"))


def figures_beside(view: Any) -> list[str]:
    """The figures that are seen in the first chart."""
    return [text.text_content() for text in view.locator(".chart").first.locator(".figure").all() if text.is_visible()]


def test_a_picture_comes_before_the_sentences(html, tags):
    assert (
        html.index('<section id="charts"') < html.index('<section id="summary"') < html.index('<section id="results"')
    )
    charts = [attributes for tag, attributes in tags.tags if tag == "svg" and attributes.get("role") == "group"]
    assert "perplexity on wiki" in charts[0]["aria-label"]
    labels = {attributes["data-label"] for tag, attributes in tags.tags if tag == "g" and "data-label" in attributes}
    assert {"laco", "drop-random", HOSTILE} <= labels
    first = html[html.index('<section id="charts"') : html.index('<section id="summary"')]
    assert 'aria-label="laco: 92.8 at 10.5 %, 343 at 28.9 %"' in first
    assert re.search(r'aria-label="laco: [\d.]+ % at 10.5 %, [\d.]+ % at 28.9 %"', html)
    assert re.search(r'aria-label="laco: 92.8 at [\d.]+ times as fast, 343 at ', html)
    assert "average" not in first
    only = render_page([DENSE, LACO])
    assert re.search('<section id="charts"(?s:.*?)by method', only[: only.index('<section id="summary"')])


@needs_chromium
def test_a_curve_stands_out_under_the_pointer_with_the_focus_and_when_it_is_tapped(address, chromium):
    with opened(chromium, has_touch=True) as view:
        view.goto(address)
        assert curves(view, "on") == [] == figures_beside(view)
        laco = view.locator(".chart").first.locator(".curve[data-label=laco]")
        laco.locator(".name").hover()
        assert curves(view, "on") == ["laco"]
        assert curves(view, "on", chart=1) == ["laco"]  # in every chart
        assert figures_beside(view) == ["92.8", "343"]
        box = laco.locator("circle").first.bounding_box()
        view.mouse.move(box["x"] - 4, box["y"] - 4)
        assert len(curves(view, "on")) == 1
        view.mouse.move(0, 0)
        assert curves(view, "on") == []
        laco.locator(".name").tap()
        assert curves(view, "on") == ["laco"]
        view.mouse.move(0, 0)
        assert curves(view, "on") == ["laco"]  # until it is tapped again, or Escape
        view.reload()  # as a page does that is served while a run goes on
        assert curves(view, "on") == ["laco"]
        laco.locator(".name").tap()
        assert curves(view, "on") == []
        view.locator("#hint").click()
        view.keyboard.press("Tab")  # one stop for a chart
        reached = [curves(view, "on")]
        for _ in range(2):
            view.keyboard.press("ArrowDown")
            reached.append(curves(view, "on"))
        view.keyboard.press("ArrowUp")
        assert reached[1] == curves(view, "on")
        assert len({str(one) for one in reached}) == 3
        assert all(len(one) == 1 for one in reached)
        view.keyboard.press("Tab")
        assert view.evaluate("document.activeElement.closest('svg') === document.querySelectorAll('.chart svg')[1]")
        assert view.complaints == []


@needs_chromium
@pytest.mark.parametrize("width", [400, 1400])
def test_a_chart_can_be_read_without_a_script(address, width, chromium):
    with opened(chromium, java_script_enabled=False, viewport={"width": width, "height": 900}) as view:
        view.goto(address)
        boxes = [text.bounding_box() for text in view.locator(".chart").first.locator(".name").all()]
        assert len(boxes) > 3
        assert all(0 < box["x"] < width and box["height"] > 9 for box in boxes)
        tops = sorted(box["y"] for box in boxes)
        assert all(below - above > 12 for above, below in pairwise(tops))
        assert not view.locator("#hint").is_visible()


@needs_chromium
def test_every_control_is_reached_by_keyboard_and_says_what_it_is(address, chromium):
    with opened(chromium) as view:
        view.goto(address)
        reached = []
        for _ in range(60):
            view.keyboard.press("Tab")
            reached.append(view.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        for name in ("Skip to the summary", "theme", "In short", "filter-method", "filter-ratio", "ppl wiki", "laco"):
            assert name in reached, (name, reached)


@needs_chromium
def test_on_paper_the_protocol_is_open_and_controls_are_gone(address, tmp_path: Path, chromium):
    with opened(chromium) as view:
        view.goto(address)
        view.evaluate("dispatchEvent(new Event('beforeprint'))")
        view.emulate_media(media="print")
        assert view.locator("details.protocol:not([open])").count() == 0
        for name in ("#filter", "#theme", "nav", "#cells"):
            assert not view.locator(name).is_visible()
        assert view.locator(f"#{TABLE}").is_visible()
        view.evaluate("dispatchEvent(new Event('afterprint'))")
        assert view.locator("details.protocol[open]").count() == 0
        assert view.complaints == []
