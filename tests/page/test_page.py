"""The page: what stands in it, and what a reader with a browser, a keyboard or a phone can do with it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import combinations
from typing import Any

import pytest
from browser import findings, needs_chromium, opened
from made_records import DENSE, LACO, RECORDS, changed, drawn, measured, ok
from made_skills import answered
from pages import ROOT

from bench.cli.main import main
from bench.data.task_descriptions import describe_tasks
from bench.plan.command import command_of_cell
from bench.records.record import record_from_plain
from bench.records.run_folder import load_runs
from bench.records.samples import Samples
from methods.cards import cards_of_methods, read_comparisons
from reports.page.explorer import data_of_explorer
from reports.page.page import render_page, to_json

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
def data(tags: Tags) -> dict[str, Any]:
    return json.loads(next(text for text in tags.inside["script"] if text.startswith("{")))


@pytest.fixture(scope="module")
def address(html: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path.as_uri()


def test_equal_records_give_equal_bytes(html):
    assert render_page([record_from_plain(json.loads(json.dumps(record.plain()))) for record in ALL]) == html


def test_nothing_leads_out_of_the_file(tags):
    for tag, attributes in tags.tags:
        for name in ("src", "href", "action", "data", "srcset", "poster", "formaction"):
            value = attributes.get(name) or "#"
            assert value.startswith("#"), f"<{tag} {name}={value[:80]}>"
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import|<link|<iframe|<base", "".join(tags.inside["style"]))
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), [name for name in ids if ids.count(name) > 1]


def test_the_policy_names_the_scripts_that_are_there_and_nothing_else(tags):
    (policy,) = [a["content"] for _, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    kinds = [a.get("type") for tag, a in tags.tags if tag == "script"]
    scripts = [text for text, kind in zip(tags.inside["script"], kinds, strict=True) if kind != "application/json"]
    assert len(scripts) == 4
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert rules["script-src"].split() == [f"'sha256-{found}'" for found in sums]
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules


def test_a_page_of_one_cell_has_no_library_and_each_library_has_its_licence(html):
    assert len(render_page([DENSE, LACO]).encode()) < 150_000
    assert html.count("Permission to use, copy, modify, and/or distribute this software") == 2
    assert "Mike Bostock" in html
    assert "Observable, Inc." in html


def test_data_for_the_script_end_no_element_and_no_line(html):
    hostile = {"a</script><!--": ["&amp;", "\u2028\u2029", "größe", None, 1.5]}
    text = to_json(hostile)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == hostile
    assert HOSTILE not in html
    with pytest.raises(ValueError):
        to_json([float("nan")])


def test_a_page_without_records_says_so():
    text = render_page([])
    assert "No cell of this run has been measured yet." in text
    assert '<main id="explorer"' not in text


def test_every_row_has_its_figures_as_tables_print_them(data):
    (setup,) = data["setups"]
    assert [amount["name"] for amount in setup["amounts"]] == ["0.1", "0.3", "fixed by parameters"]
    rows = {row["label"]: row for row in setup["amounts"][1]["rows"]}
    assert rows["dense"]["values"]["perplexity_wiki"] == [20.8, "20.8", "± 0.9", 19.9, 21.7, 0]
    assert rows["flap"]["values"] == {}
    assert {row["failure"] for row in rows.values()} >= {"", "error", "out of memory", "unsupported"}
    assert rows["laco"]["removed"]
    assert set(describe_tasks(ALL[0].cell.protocol.tasks)) <= set(setup["amounts"][1]["reading"])
    names = {column["name"]: column for column in data["columns"]}
    assert (names["average"]["better"], names["perplexity_wiki"]["log"]) == ("higher", True)
    assert {name for row in rows.values() for name in row["values"]} <= set(names)
    assert not [name for name in names if name.startswith(("byte_perplexity", "lost_"))]


def test_cells_of_two_protocols_have_setups_of_their_own():
    both = [changed(one, "cell", "protocol", "windows", to=99) for one in (DENSE, LACO)]
    setups = data_of_explorer([DENSE, LACO, *both], Samples())["setups"]
    assert len(setups) == 2
    assert [re.findall(r"windows \d+", setup["name"]) for setup in setups] == [["windows 16"], ["windows 99"]]


def test_answers_that_changed_sides_are_counted_from_the_samples():
    tasks = ("basic_skills_arithmetic_rc", "piqa_rc")
    records, samples = answered(tasks, {"dense": 1.0, "laco": 0.5}, documents=40)
    (amount,) = data_of_explorer(records, samples)["setups"][0]["amounts"]
    (sides,) = amount["sides"]
    numbers = {record.cell.method: place for place, record in enumerate(records)}
    first, second = 0, 0
    for task in tasks:
        main = records[0].measured.task_scores[task].main
        a, b = (samples.of(numbers[row["method"]], task, main).values for row in amount["rows"])
        first, second = first + int((a > b).sum()), second + int((b > a).sum())
    assert sides == [first, second, 80]
    assert first > second


def test_verdicts_and_letters_say_the_same_of_a_shipped_run():
    merged = load_runs([ROOT / "docs/results/laco-puzzle-seeds"])
    data = data_of_explorer(merged.records, merged.samples)
    checked = 0
    for amount in (amount for setup in data["setups"] for amount in setup["amounts"]):
        for name, tie in amount["ties"].items():
            pairs = dict(zip(combinations(range(len(amount["rows"])), 2), amount["verdicts"][name], strict=True))
            for a, b in combinations(map(int, tie["letters"]), 2):
                shares = not spelt(tie["letters"][str(a)]).isdisjoint(spelt(tie["letters"][str(b)]))
                assert shares is (pairs[min(a, b), max(a, b)] in "=.")
                checked += 1
    assert checked > 10


def spelt(words: str) -> set[str]:
    """The letters that words such as 'a c-e' name."""
    ends = [(word[0], word[-1]) for word in words.split()]
    return {chr(number) for first, last in ends for number in range(ord(first), ord(last) + 1)}


def test_every_method_has_a_family_a_source_and_whether_its_code_was_run(data):
    cards = {card.name: card for card in cards_of_methods()}
    families = {name: card.family for name, card in cards.items()}
    assert [families[name] for name in ("laco", "blockpruner", "flap", "slicegpt", "svd-llm", "2ssp", "reap")] == [
        *("depth", "sublayer", "width", "residual", "low-rank", "mixed", "experts")
    ]
    laco = data["methods"]["laco"]
    assert "arXiv 2402.11187" in laco["source"]
    assert laco["equation"].startswith("theta*_l = ")
    assert read_comparisons()["laco"].compared in laco["reproduced"]
    assert data["methods"]["drop-random"]["family"] == "control"


def test_site_writes_one_file_of_the_chosen_cells(tmp_path, capsys):
    run = ROOT / "docs/results/laco-puzzle-seeds"
    assert main(["site", str(run), "--ratio", "0.3", "--title", "Two & three", "--out", str(tmp_path / "a")]) == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["index.html"]
    text = (tmp_path / "a" / "index.html").read_text(encoding="utf-8")
    assert "<h1>Two &amp; three</h1>" in text
    assert "index.html: " in capsys.readouterr().err
    data = json.loads(next(part for part in Tags(text).inside["script"] if part.startswith("{")))
    assert {amount["name"] for setup in data["setups"] for amount in setup["amounts"]} == {"0.3 of the decoder"}


def shown(view: Any) -> list[str]:
    """The methods of the table that are seen, from top to bottom."""
    return view.locator("#table tbody th .name").all_inner_texts()


def figures(view: Any) -> list[str]:
    """The figures of the measure, from top to bottom, without the dense model's."""
    return [
        text.split()[0]
        for text in view.locator("#table tbody tr:not(.dense) td:nth-child(2):not(.failure)").all_inner_texts()
    ]


@needs_chromium
def test_sorting_choosing_and_the_address_that_keeps_it(address, chromium):
    with opened(chromium) as view:
        view.goto(address)
        view.locator("#amount").select_option("0.3")
        numbers = [float(figure.replace(",", "")) for figure in figures(view)]
        assert numbers == sorted(numbers)
        assert len(numbers) > 2
        assert shown(view)[0] == "dense"
        assert shown(view)[-3:] == ["flap", "llm-pruner", "shortgpt"]  # failed, in the order they came in
        view.locator("#table thead button", has_text="ppl wiki").press("Enter")
        assert [float(figure.replace(",", "")) for figure in figures(view)] == sorted(numbers, reverse=True)
        assert view.evaluate("document.activeElement.textContent") == "ppl wiki"
        view.locator("#by").select_option("average")
        view.get_by_role("searchbox", name="Name").fill("laco")
        expected = shown(view)
        assert {"dense", "laco"} <= set(expected) <= {"dense", "laco", *(one for one in expected if "laco" in one)}
        view.get_by_role("searchbox", name="Name").fill("")
        view.get_by_role("checkbox", name="depth").uncheck()
        assert "laco" not in shown(view)
        assert "slicegpt" in shown(view)
        expected = shown(view)
        assert "by=average" in view.url
        view.reload()
        assert shown(view) == expected
        assert view.locator("#by").input_value() == "average"
        assert view.complaints == []


@needs_chromium
def test_two_methods_a_card_the_matrix_and_a_hostile_name(address, chromium):
    with opened(chromium) as view:
        view.goto(f"{address}#amount=0.3&a=slicegpt&b=laco")
        assert view.locator("#pair-table thead").inner_text().split("\t")[1:3] == ["slicegpt", "laco"]
        ppl = view.locator("#pair-table tbody tr", has_text="ppl wiki").inner_text()
        assert ppl.split("\t")[-1] in ("laco", "slicegpt")
        view.get_by_text("All pairs: which method").click()
        view.get_by_role("button", name="is shown better than").first.click()
        assert "a=" in view.url
        view.get_by_role("button", name=HOSTILE, exact=True).click()
        assert view.locator("#method").input_value() == HOSTILE
        assert "alert" in view.locator("#card-table, #method option:checked").first.inner_text()
        assert view.locator("main script").count() == 0
        view.locator("#method").select_option("laco")
        assert view.locator("#card-text a").first.get_attribute("href") == "https://arxiv.org/abs/2402.11187"
        command = view.locator("#card-text dt", has_text="Command (0.3)").locator("xpath=following-sibling::dd[1]")
        assert command.locator("code").inner_text() == command_of_cell(LACO.cell)
        assert view.complaints == []


@needs_chromium
def test_each_model_has_a_column_of_the_measure(chromium, tmp_path, capsys):
    """Figures, how many times the dense model's they are, and what is not shown to be worse, as each model's table."""
    run = ROOT / "docs/results/grid"
    assert main(["site", str(run), "--methods", "laco-ls,2ssp,flap,slicegpt", "--out", str(tmp_path)]) == 0
    address = (tmp_path / "index.html").as_uri()
    choice = "#by=answer_bpb&amount=0.2+of+the+decoder"
    with opened(chromium) as view:
        view.goto(address + choice)
        heads = view.locator("#models-table thead th").all_inner_texts()[1:]
        lines = view.locator("#models-table tbody tr").all()
        rows = {line.locator("th").inner_text(): line.locator("td").all_inner_texts() for line in lines}
        green = {line.locator("th").inner_text(): line.locator("td.best").count() for line in lines}
        dense = [float(figure) for figure in rows["dense"]]
        assert len(heads) == len(dense) >= 2
        assert len(rows) == len(lines) and {"laco-ls", "2ssp", "flap"} < rows.keys()
        for label, cells in rows.items():
            for cell, whole in zip(cells, dense, strict=True):
                figure, _, times = cell.partition(" ")
                assert (
                    label == "dense"
                    or cell == "-"
                    or float(times.rstrip("×")) == pytest.approx(float(figure) / whole, rel=0.01)
                )
        assert green["laco-ls"] == len(heads) > green["flap"]
        for place, head in enumerate(heads):
            view.locator("#models-table thead button", has_text=head).click()
            assert view.locator("#model").input_value() == head
            table = {
                line.locator(".name").inner_text(): line.locator("td").first.inner_text().split()[0]
                for line in view.locator("#table tbody tr:not(:has(.failure))").all()
            }
            assert {label: cells[place].split()[0] for label, cells in rows.items() if cells[place] != "-"} == {
                label: figure for label, figure in table.items() if label in rows
            }
        view.goto(f"{address}#amount=0.1+of+the+decoder")
        view.reload()
        assert not view.locator("#models").is_visible()  # which only one model has
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
        view.goto(f"{address}#amount=0.3&a=laco&b=slicegpt")
        assert view.locator("#plot svg text").count() > 3
        view.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        view.locator("#matrix tbody tr").first.wait_for()
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        boxes = view.evaluate(
            "[...document.querySelectorAll('#plot svg > text')].map((text) => text.getBoundingClientRect())"
            ".map(({ top, bottom }) => [top, bottom])"
        )
        assert all(a[1] <= b[0] + 3 for a, b in zip(sorted(boxes), sorted(boxes)[1:], strict=False))
        assert findings(view) == []
        assert [request for request in view.requests if not request.startswith(address)] == []
        assert view.complaints == []


@needs_chromium
def test_text_too_pale_is_found_on_each_ground(chromium):
    grey = '<p style="color: #888">same</p>'
    dark, pale = (f'<div style="background: {ground}">{grey}</div>' for ground in ("#000", "#ddd"))
    with opened(chromium) as view:
        for content, count in ((f"<p>dark</p><p>dark</p>{dark}", 0), (dark + grey + dark + grey + pale + pale, 2)):
            view.set_content(f'<html lang="en"><title>A page</title><main>{content}</main></html>')
            assert [found.count("<p ") for found in findings(view)] == [count] * bool(count)
