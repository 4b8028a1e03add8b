"""What a method wrote and chose beside the dense model, on the page: what the data hold, and what a reader sees."""

from __future__ import annotations

import json
from typing import Any

import pytest
from browser import findings, needs_chromium, opened
from made_samples import MadeSamples
from made_skills import record

import bench
from bench.records import run_folder
from bench.records.changed_answers import find_beside
from bench.records.samples import Samples
from reports.page.answers import ANSWERS, EACH, TEXT
from reports.page.explorer import data_of_explorer
from reports.page.page import render_page

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
TASKS = {"boolq_rc": 0.5, "piqa_rc": 0.5}
RECORDS = [record(method, TASKS) for method in ("dense", "laco", "flap")]
CHECKS = ("copying", "counting", "counting", "counting", "repetition")


def rows(number: int, name: str) -> list[dict[str, Any]]:
    """Continuations, and 30 answers of each task, of which all but the dense model's third have changed."""
    if name == "continuations":
        prompts = [f"prompt {place}\n\tof {check}" for place, check in enumerate(CHECKS)]
        written = [f"{HOSTILE} {number} {place}\n\u202eend " + "long " * 300 * (place == 4) for place in range(5)]
        columns = zip(CHECKS, prompts, written, strict=True)
        return [dict(zip(("check", "prompt", "written"), values, strict=True)) for values in columns]
    answers = [f"{HOSTILE} {document} {number if document % 3 else 0}" for document in range(30)]
    right = [int(document % 2 == bool(number)) for document in range(30)]
    return [
        {"doc_id": document, "doc_hash": str(document), "target": "yes", "acc": metric, "responses": [answer]}
        for document, (answer, metric) in enumerate(zip(answers, right, strict=True))
    ]


SAMPLES = MadeSamples(lambda *_: None, rows)


def rows_of(data: dict[str, Any]) -> dict[str, Any]:
    """The rows of the one amount by their labels."""
    (setup,) = data["setups"]
    (amount,) = setup["amounts"]
    return {row["label"]: row for row in amount["rows"]}


def test_the_data_have_the_first_of_each_kind_and_how_many_there_are():
    data = data_of_explorer(RECORDS, SAMPLES)
    prompts, by_label = data["setups"][0]["prompts"], rows_of(data)
    assert "answers" not in by_label["dense"]
    laco, flap = by_label["laco"]["answers"], by_label["flap"]["answers"]
    assert [prompts[place][0] for place, _ in laco["texts"]] == ["copying", *["counting"] * EACH, "repetition"]
    assert laco["count"] == 5
    assert [place for place, _ in laco["texts"]] == [place for place, _ in flap["texts"]]
    assert len(prompts) == 4  # each once, for both methods
    assert prompts[0][1].startswith("prompt 0\n\\tof copying")
    assert prompts[0][2].startswith(f"{HOSTILE} 0 0\n\\u202eend")
    assert laco["texts"][0][1].startswith(f"{HOSTILE} 1 0\n")
    assert len(laco["texts"][-1][1]) <= TEXT + len("…\\u202e")
    assert laco["sides"] == [30, 30, 0, 60]
    assert [(task, len(answers)) for task, answers in laco["tasks"]] == [(task, ANSWERS // 2) for task in TASKS]
    assert laco["tasks"][0][1][0] == [0, "yes", f"{HOSTILE} 0 0", f"{HOSTILE} 0 0", "lost"]


def test_many_cells_stay_small():
    methods = [record(method, TASKS) for method in ("dense", *(f"laco{number}" for number in range(60)))]
    with_answers, without = (
        len(json.dumps(data_of_explorer(methods, samples))) for samples in (SAMPLES, MadeSamples(lambda *_: None))
    )
    assert 60 * 1000 < with_answers - without < 60 * 2500


def test_records_without_continuations_have_none_and_older_rows_do_not_fail():
    assert not any("answers" in row for row in rows_of(data_of_explorer(RECORDS, Samples())).values())
    older = MadeSamples(lambda *_: None, lambda *_: [{"acc": 1.0}])
    assert not any("answers" in row for row in rows_of(data_of_explorer(RECORDS, older)).values())
    alone = MadeSamples(lambda *_: None, lambda number, name: rows(number, name) if number else [])
    data = data_of_explorer(RECORDS, alone)
    assert [dense for *_, dense in data["setups"][0]["prompts"]] == [None] * 4
    assert rows_of(data)["laco"]["answers"]["tasks"] == []


def test_a_measured_run_has_on_its_page_what_show_prints(model_folder, text_file, tmp_path):
    lines = [{"goal": f"w{n} w3", "sol1": f"w{n + 1} w5", "sol2": f"w6 w{2 * n}", "label": n % 2} for n in range(12)]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = {"texts": str(text_file), "calibration": str(text_file), "window": 40, "windows": 3}
    task = {"tasks": "piqa", "task_data": {"piqa": str(tmp_path / "piqa.jsonl")}}
    where = {"model": str(model_folder), "out": tmp_path / "run", "device": "cpu", "dtype": "float32", "isolate": False}
    more = {"ratio": 0.5, "profile": "smoke", "speed_rounds": 0, "threads": 1, "calibration_length": 24}
    bench.run(bench.RunSpec("dense,drop-tail", **texts, **task, **where, **more))
    merged = run_folder.load_runs([tmp_path / "run"])
    data = data_of_explorer(merged.records, merged.samples)
    beside = find_beside(tmp_path / "run", *run_folder.find_cell(tmp_path / "run", "drop-tail"))
    answers = rows_of(data)["drop-tail"]["answers"]
    pairs = [(*data["setups"][0]["prompts"][place], written) for place, written in answers["texts"]]
    assert len(pairs) == 3 * EACH
    assert set(pairs) <= {(each.check, each.prompt, each.dense, each.written) for each in beside.texts}
    changed = [[each.document, each.target, each.dense, each.answer, each.change] for each in beside.changed["piqa"]]
    assert changed
    assert answers["tasks"] == [["piqa", changed[:ANSWERS]]]
    assert sum(answers["sides"][:3]) == len(changed)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("answers") / "report.html"
    path.write_text(render_page(RECORDS, samples=SAMPLES), encoding="utf-8")
    return path.as_uri()


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1400, "light")])
def test_a_card_has_both_texts_and_the_changed_answers_as_text_alone(address, width, scheme, chromium):
    with opened(chromium, color_scheme=scheme, viewport={"width": width, "height": 900}) as view:
        view.goto(f"{address}#method=laco")
        assert view.locator("#written-title").inner_text() == "What it wrote (0.2): 4 of 5 continuations"
        first = view.locator("#written dl").first
        assert first.locator("dt").all_inner_texts() == ["prompt", "dense", "laco"]
        assert first.locator("dd").nth(0).text_content() == "prompt 0\n\\tof copying"
        assert [first.locator("dd").nth(at).text_content().startswith(f"{HOSTILE} {at - 1} 0\n") for at in (1, 2)]
        assert not view.locator("#changed").is_visible()
        view.locator("#changed-title").focus()
        view.keyboard.press("Enter")
        assert view.locator("#changed-title").inner_text() == (
            "Answers that changed (0.2): 60 of 60, 30 lost and 30 gained"
        )
        assert view.locator("#changed-note").inner_text().startswith("The first 10. ")
        assert view.locator("#changed tbody tr").count() == ANSWERS
        assert view.locator("#changed tbody tr").first.inner_text().split("\t") == [
            *("boolq_rc", "0", "yes", f"{HOSTILE} 0 0", f"{HOSTILE} 0 0", "lost")
        ]
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        assert view.locator("main script, main img").count() == 0
        view.locator("#method").select_option("flap")
        assert view.locator("#written dt").nth(2).text_content() == "flap"
        assert view.locator("#changed").is_visible()  # what a reader has opened stays open
        assert findings(view) == []
        assert view.complaints == []


@needs_chromium
def test_a_card_without_answers_has_neither_part(tmp_path, chromium):
    (tmp_path / "report.html").write_text(render_page(RECORDS), encoding="utf-8")
    with opened(chromium) as view:
        view.goto((tmp_path / "report.html").as_uri())
        assert view.locator("#card-table").is_visible()
        assert not view.locator("#written-part").is_visible()
        assert not view.locator("#changed-part").is_visible()
        assert view.complaints == []
