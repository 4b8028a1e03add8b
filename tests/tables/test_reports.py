"""Reports over a small fixed set of records: figures computed by hand, and golden files of each renderer.

PRUNEBENCH_UPDATE_GOLDEN=1 python -m pytest tests/tables/test_reports.py  writes tests/golden/reports; read the diff
"""

from __future__ import annotations

import copy
import csv as csv_reader
import io
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_cells import made_cell, made_inputs
from made_records import (
    DENSE,
    FAILED,
    FIXED,
    HUGE,
    LACO,
    MENDED,
    RECORDS,
    SLICEGPT,
    changed,
    checked,
    drawn,
    failed,
    with_cell,
    with_measured,
)

from bench.plan.protocol import protocol_of_profile
from bench.records.frame import frame_of_records
from bench.records.measured import Measured
from bench.records.quantities import quantity_of_column
from bench.records.quantity import format_perplexity
from bench.records.record import Record, save
from bench.records.run_folder import load_run
from reports import groups as groups_of_rows
from reports.formats import latex, markup
from reports.formats import markup as markdown_text
from reports.formats import terminal as terminal_text
from reports.formats.terminal import text_of_cell as cell_text
from reports.groups import group_records
from reports.legend import ONE_TIMED, READING, REASON, TIMED_ELSEWHERE, reason_of_error
from reports.page.page import render_page
from reports.report import LINE, to_csv, to_markdown, to_terminal, write_report
from reports.tables.views import build_view
from reports.text import escape_markdown, to_printable, width_of, wrap

GOLDEN = Path(__file__).parents[1] / "golden" / "reports"


def of_grid(render: Callable[..., str]) -> Callable[[list[Record]], str]:
    """A renderer of the view grid, of records of its own."""
    return lambda _: render(build_view("grid", copy.deepcopy(MENDED)))


def of_view(name: str, render: Callable[..., str]) -> Callable[[list[Record]], str]:
    """A renderer of one view, with the difference to no method tested."""
    return lambda records: render(
        build_view(name, records, needs={"laco": "calibration", "llm-pruner": "calibration, gradients"})
    )


def bare_page(records: list[Record]) -> str:
    """The page of four cells without its style and scripts, but with the data of these."""
    some = [record for record in records if record.cell.method in ("dense", "laco", HUGE.cell.method, "shortgpt")]
    text = re.sub(r'(?s)(<(style|script|pre)(?: tabindex="0")?>).*?(</\2>)', r"\1\3", render_page(some))
    return re.sub(r"sha256-[\w+/=]{44}", "sha256-", text)


def shown_cells(records: list[Record]) -> str:
    """What `show` prints of a cell that was measured, and of one that was not."""
    chosen = {record.cell.method: record for record in records}
    return "\n".join(cell_text(chosen[method], f"{method}--0.3--00000000") for method in ("laco", "shortgpt"))


RENDERED = {
    "page.html": bare_page,
    "show.txt": shown_cells,
    "report.txt": to_terminal,
    "report.md": to_markdown,
    "report.csv": to_csv,
    "main.tex": of_view("main", latex.render),
    "main.html": of_view("main", markup.render_html),
    "per-task.txt": of_view("per-task", terminal_text.render),
    "by-ratio.txt": of_view("by-ratio", terminal_text.render),
    "by-ratio.csv": of_view("by-ratio", markup.render_csv),
    "by-ratio.md": of_view("by-ratio", markdown_text.render_markdown),
    "grid.txt": of_grid(terminal_text.render),
    "grid.md": of_grid(markdown_text.render_markdown),
    "grid.csv": of_grid(markup.render_csv),
    "grid.tex": of_grid(latex.render),
    "grid.html": of_grid(markup.render_html),
    "speed.txt": of_view("speed", terminal_text.render),
    "cost.txt": of_view("cost", terminal_text.render),
    "decisions.txt": of_view("decisions", terminal_text.render),
    "decisions.tex": of_view("decisions", latex.render),
}


@pytest.mark.parametrize(("name", "render"), RENDERED.items(), ids=RENDERED)
def test_golden(name, render):
    path, text = GOLDEN / name, render(RECORDS)
    if os.environ.get("PRUNEBENCH_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    assert text == path.read_bytes().decode("utf-8")


@pytest.mark.parametrize("render", RENDERED.values(), ids=RENDERED)
def test_equal_records_give_equal_bytes(render):
    assert render(copy.deepcopy(RECORDS)) == render(RECORDS)


def row(records: list[Record], label: str) -> dict[str, Any]:
    table = frame_of_records(records)
    return table.loc[table["label"] == label].iloc[0].to_dict()


def test_figures_by_hand():
    found = row([DENSE, LACO], "laco")
    assert found["average"] == pytest.approx((0.3 + 0.58 + 0.49 + 0.36 + 0.3) / 5)
    assert found["kept"] == pytest.approx(2.03 / 2.70)
    variances = [p * (1 - p) / 99 for p in (0.3, 0.58, 0.49, 0.36, 0.3)]
    assert found["average_stderr"] == pytest.approx(math.sqrt(sum(variances)) / 5)
    assert found["prefill_speed"] == pytest.approx(80 / 57)
    assert (found["prefill_speed_low"], found["prefill_speed_high"]) == pytest.approx((0.98 * 80 / 57, 1.02 * 80 / 57))
    assert found["decode_speed"] == pytest.approx(20 / 14.25)
    assert found["prefill_tokens_per_second"] == pytest.approx(128 / 0.057)
    assert found["decode_ms_per_token"] == pytest.approx(14.25)
    assert found["ratio"] == pytest.approx(11 * 3_540_096 / 134_515_008)
    assert found["requested_ratio"] == 0.3
    assert (found["miss"], found["flags"]) == (0, None)
    assert (found["task_winogrande"], found["task_winogrande_metric"]) == (0.49, "acc")
    assert found["task_piqa_acc"] == pytest.approx(0.9 * 0.58)
    assert found["task_piqa_low"] < 0.58 < found["task_piqa_high"]


def test_checks_have_a_row_of_figures_and_a_table_of_their_own():
    dense = with_measured(DENSE, **checked({}, None, 1.0))
    pruned = with_measured(LACO, **checked({}, 2.0743, 0.0))
    table = frame_of_records([dense, pruned, FIXED]).set_index("label")
    laco = table.loc["laco"]
    assert (laco["kl"], laco["kl_low"], laco["kl_high"]) == pytest.approx((2.0743, 0.9 * 2.0743, 1.1 * 2.0743))
    assert (laco["copying"], laco["agreement"], laco["distinct_2"]) == (0.0, 0.7588, 0.7446)
    assert pd.isna(table.loc["dense", "kl"])
    assert table.loc["dense", "copying"] == 1.0
    assert pd.isna(table.loc["drop:layers=20-24", "copying"])
    text = to_markdown([dense, pruned])
    heads = "method agreement (%) ↑ copying (%) ↑ counting (%) ↑ repetition (%) distinct 2-grams (%)"
    assert heads in re.sub(r"[\s|]+", " ", text)
    assert "| laco" in text
    assert "2.07 ± 0.21" in text
    lines = to_terminal([dense, pruned]).splitlines()
    head = next(line for line in lines if line.startswith("method"))
    assert head.split()[:6] == ["method", "removed", "params", "ppl", "wiki", "KL"]
    (row,) = (line for line in lines if line.startswith("laco  ") and " 343" in line)
    assert re.search(r" 343 ± 46 +2\.07  ", row)
    assert not [line for line in lines if line.startswith("method") and "copying" in line]


def test_the_dense_row_is_its_own_baseline():
    found = row(RECORDS, "dense")
    assert (found["kept"], found["prefill_speed"], found["decode_speed"], found["ratio"]) == (1, 1, 1, 0)
    assert all(pd.isna(found[name]) for name in ("requested_ratio", "prune_seconds", "miss"))
    assert found["prefill_speed_low"] < 1 < found["prefill_speed_high"]


def test_a_missed_budget_is_flagged_and_half_a_percent_is_not():
    assert row(RECORDS, "slicegpt")["miss"] == pytest.approx(-0.008)
    assert row(RECORDS, "slicegpt")["flags"] == "missed_ratio"
    close = with_measured(LACO, ratio_budget=LACO.measured.ratio + 0.0049)
    assert row([DENSE, close], "laco")["flags"] is None
    assert "*" not in to_terminal([DENSE, close])
    close = with_measured(LACO, ratio_budget=LACO.measured.ratio - 0.0051)
    assert row([DENSE, close], "laco")["flags"] == "missed_ratio"
    assert "28.9 %*" in to_terminal([DENSE, close])


def test_missing_is_missing_and_whole_numbers_stay_whole():
    table = frame_of_records(RECORDS)
    assert table["parameters"].dtype == "Int64"
    failed_row = table.loc[table["label"] == "flap"].iloc[0]
    figures = [name for name in table.columns if name.startswith(("param", "ratio", "perp", "task", "aver", "kept"))]
    figures.remove("ratio_of")
    assert len(figures) > 30
    assert failed_row[figures].isna().all()
    assert row(RECORDS, "<script>alert(1)</script>|x")["average"] is not None
    assert math.isnan(row(RECORDS, "<script>alert(1)</script>|x")["average"])


@pytest.mark.parametrize(
    ("path", "to", "missing"),
    [
        (("measured", "tasks", "piqa", "documents"), 200, {"kept"}),
        (("measured", "tasks", "piqa", "main"), "acc", {"kept"}),
        (("measured", "tasks", "piqa", "fewshot"), 5, {"kept"}),
        (("cell", "dtype"), "bfloat16", {"kept"}),
        (("cell", "model"), "another", {"kept"}),
    ],
)
def test_unlike_is_not_compared(path, to, missing):
    records = [DENSE, changed(LACO, *path, to=to)]
    found = row(records, "laco")
    assert {name for name in ("kept",) if pd.isna(found[name])} == missing
    assert found["prefill_speed"] == pytest.approx(80 / 57)  # each record holds both sides of it
    assert READING["no_dense"] in to_terminal(records)


def test_draws_share_a_row_with_the_spread_between_them():
    records = [*RECORDS[:1], drawn(0, 100.0, 0.3), drawn(1, 1000.0, 0.4), drawn(2, 10000.0, 0.5)]
    table = to_terminal(records)
    lines = [line for line in table.splitlines() if line.startswith("drop-random ")]
    assert "1,000 [100, 10,000]" in lines[0]
    assert "40.0 ± 10.0" in table
    assert "drop-random [3 draws]" in table
    assert to_csv(records).count(",drop-random,drop-random,") == 3  # the frame stays one row per cell


def test_draws_of_which_the_first_is_timed_have_its_speed_and_say_so():
    first, *others = drawn(0, 100.0, 0.3), drawn(1, 1000.0, 0.4, timed=False), drawn(2, 10000.0, 0.5, timed=False)
    shuffled = [others[0], first, others[1]]
    alone, shared = (group_records([*RECORDS[:1], *draws])[0][0].rows[-1] for draws in ([first], shuffled))
    for name in ("prefill_speed", "prefill_speed_low", "prefill_speed_high"):
        assert shared[name] == alone[name]
    assert shared["average"] == pytest.approx(0.4)
    said = f"{ONE_TIMED.sentence[:-1]}: drop-random."
    assert said in " ".join(to_terminal([*RECORDS[:1], *shuffled]).split())
    assert f"{TIMED_ELSEWHERE.sentence[:-1]}: drop-random." in " ".join(to_terminal([*RECORDS[:1], *others]).split())
    assert said not in " ".join(to_terminal([*RECORDS[:1], first, drawn(1, 1000.0, 0.4)]).split())


def test_a_draw_that_was_named_or_failed_has_a_row_of_its_own():
    alone = [drawn(0, 100.0, 0.3), drawn(7, 300.0, 0.4, given=("seed",)), failed("error", "drop-random", "no memory")]
    names = [line.split("  ")[0] for line in to_terminal([*RECORDS[:1], *alone]).splitlines()]
    assert {"drop-random", "drop-random:seed=7"} <= set(names)
    assert ": drop-random [error: no memory]." in " ".join(to_terminal([*RECORDS[:1], *alone]).split())
    assert "draws" not in to_terminal([*RECORDS[:1], *alone])


def test_no_dense_cell_no_comparison():
    for records in ([LACO], [LACO, replace(DENSE, status="error", error="x", measured=Measured())]):
        found = row(records, "laco")
        assert found["flags"] == "no_dense_cell"
        assert pd.isna(found["kept"])
        assert found["average"] > 0
        assert READING["no_dense"] in to_terminal(records)


def test_an_average_needs_every_task():
    tasks = LACO.measured.task_scores
    some = with_measured(LACO, tasks={name: task for name, task in tasks.items() if name != "piqa"})
    found = row([DENSE, some], "laco")
    assert pd.isna(found["average"])
    assert pd.isna(found["kept"])


def test_the_baseline_has_the_same_seed_where_there_is_one():
    other = changed(
        changed(DENSE, "cell", "seed", to=1), "measured", "tasks", "piqa", "metrics", "acc_norm", "value", to=0.5
    )
    again = changed(LACO, "cell", "seed", to=1)
    kept = frame_of_records([DENSE, other, LACO, again])["kept"].tolist()
    assert kept == pytest.approx([1, 1, 2.03 / 2.70, 2.03 / 2.49])
    assert frame_of_records([DENSE, again])["kept"].tolist() == pytest.approx([1, 2.03 / 2.70])
    assert "of c4, seeds 0, 1" in " ".join(to_terminal([DENSE, other, LACO, again]).split())


def test_a_task_without_accuracy_is_shown_but_not_averaged():
    wikitext = {
        "metrics": {"word_perplexity": {"value": 31.2345}},
        "main": "word_perplexity",
        "version": 2,
        "documents": 62,
        "available": 62,
        "fewshot": 0,
    }
    records = [changed(record, "measured", "tasks", "wikitext", to=wikitext) for record in (DENSE, LACO)]
    assert row(records, "laco")["average"] == row([DENSE, LACO], "laco")["average"]
    assert row(records, "laco")["score_wikitext"] == 31.2345
    text = to_terminal(records)
    assert re.search(r"openbookqa +wikitext$", text, re.MULTILINE)
    assert re.search(r"30\.0 +31\.2$", text, re.MULTILINE)
    assert re.search("wikitext +word_perplexity, all 62 documents, 0-shot, not in the average", text)


def test_the_label_is_the_cells():
    asked = made_cell(
        "laco", 0.3, protocol_of_profile("smoke"), parameters={"C": 3, "T": 0.7, "I": 2}, given=("C", "T")
    )
    record = Record(cell=asked, status="error", environment={}, error="x")
    assert frame_of_records([record])["label"].tolist() == [asked.label] == ["laco:C=3,T=0.7"]
    assert frame_of_records([record])["model"].tolist() == ["m"]


# --- terminal


def test_terminal_lines_fit_and_hold_no_control_character():
    wide = [
        changed(LACO, "cell", "method", to=method) for method in ("剪" * 60, "x" * 150, "a\x9b31m\u202eb\rc\u2028d")
    ]
    records = [*RECORDS, *wide, failed("error", "y" * 99, "boom " * 200 + "z" * 150)]
    records += [
        changed(record, "measured", "perplexity", "f" * 80, to=record.measured.text_scores["wiki"]) for record in wide
    ]
    text = to_terminal(records)
    lines = text.split("\n")
    assert max(map(width_of, lines)) <= LINE
    assert max(map(width_of, lines)) > LINE - 10  # the room is used
    assert all(character.isprintable() for line in lines for character in line)
    assert sum(line.count("剪") for line in lines) % 60 == 0  # wrapped, not cut
    assert not any(line != line.rstrip() for line in lines)


@pytest.mark.parametrize("letter", ["x", "剪"])
def test_terminal_uses_the_whole_line_and_no_more(letter):
    widest = 0
    for length in range(6, 29):
        records = [DENSE, SLICEGPT, changed(HUGE, "cell", "method", to=letter * (length // width_of(letter)))]
        widest = max(widest, *map(width_of, to_terminal(records).splitlines()))
    assert widest == LINE


def test_terminal_has_one_table_where_it_fits():
    few = []
    for record in (DENSE, LACO):
        few.append(with_measured(record, tasks={"piqa": record.measured.task_scores["piqa"]}))
    heads = [line for line in to_terminal(few).splitlines() if line.startswith("method")]
    assert [head.split() for head in heads] == [
        [
            "method",
            "removed",
            "params",
            "ppl",
            "wiki",
            "piqa",
            "average",
            "kept",
            "bpb",
            "prefill",
            "decode",
            "pruned",
            "in",
        ]
    ]


def test_terminal_aligns_what_follows_the_figures():
    lines = [line for line in to_terminal([DENSE, LACO]).splitlines() if line.startswith(("dense", "laco"))][:2]
    assert lines[0].index("±") == lines[1].index("±")
    assert lines[0].index("%") == lines[1].index("%")


def test_terminal_repeats_dense_on_top_of_each_ratio_rising():
    lines = to_terminal(RECORDS).splitlines()
    after = [lines[number + 1].split()[0] for number, line in enumerate(lines) if line.startswith("method")]
    assert after == ["dense"] * 7
    titles = [line for line in lines if line.startswith("SmolLM2")]
    ratios = [re.search(r"ratio (\S+)", title) for title in titles]
    assert [ratio[1] for ratio in ratios if ratio] == ["0.1:", "0.3:", "fixed"]


def test_columns_and_notes_of_what_was_not_measured_are_left_out():
    bare = [with_measured(record, tasks=None, speed=None) for record in (DENSE, LACO)]
    text = " ".join(to_terminal(bare).split())
    assert not re.search("average|kept|prefill|decode|accurac|standard error|missing", text)
    drawn_windows = "16 windows of 512 tokens, drawn from the text, stride 512"
    assert f"ppl wiki {drawn_windows}, each begins with BOS, 8,176 tokens scored" in text
    assert "average" in to_terminal([DENSE, LACO])


def test_a_dense_cell_alone():
    text = to_terminal([DENSE])
    assert text.startswith("SmolLM2-135M-Instruct   cpu, float32, 2 threads   quick\n\nmethod")
    assert "calibration" not in text
    assert "## Dense model" in to_markdown([DENSE])


def test_the_budget_counts_layers_only_where_it_is_whole_layers():
    assert "ratio 0.3: 11 of 30 layers, 95.6 M parameters" in to_terminal([DENSE, LACO])
    exact = changed(LACO, "cell", "match", to="exact")
    assert "ratio 0.3: 95.6 M parameters" in to_terminal([DENSE, exact])
    uneven = changed(LACO, "measured", "ratio_budget", to=0.3)
    assert "ratio 0.3: 94.2 M parameters" in to_terminal([DENSE, uneven])


def test_cells_that_disagree_are_both_described():
    longer = changed(LACO, "measured", "perplexity", "wiki", "tokens", to=4096)
    text = " ".join(to_terminal([DENSE, longer]).split())
    assert "8,176 tokens scored" in text
    assert "4,096 tokens scored" in text


def test_one_window_has_no_interval():
    wiki = replace(DENSE.measured.text_scores["wiki"], perplexity_low=None, perplexity_high=None, windows=1)
    single = with_measured(DENSE, perplexity={"wiki": wiki})
    text = to_terminal([single])
    assert "20.8 " in text
    assert re.search("ppl wiki +1 window of", text)
    assert "of a perplexity" not in text


def test_many_tasks_and_documents_go_on_below():
    many = []
    for record in (DENSE, LACO):
        task = record.measured.task_scores["piqa"]
        tasks = {f"mmlu_subject_{n}": replace(task, documents=100 + n) for n in range(12)}
        many.append(with_measured(record, tasks=tasks))
    text = to_terminal(many)
    assert all(text.count(f"mmlu_subject_{n} ") + text.count(f"mmlu_subject_{n}\n") >= 1 for n in range(12))
    assert all(re.search(f"mmlu_subject_{n} .*, 10{n} documents", text) for n in (1, 2))


# --- markdown and csv


def cells_of(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_markdown_tables_stay_tables():
    lines = to_markdown(RECORDS).splitlines()
    columns = 0
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            columns = columns if before.startswith("|") else len(cells_of(line))
            assert len(cells_of(line)) == columns >= 2
    assert sum(line.startswith("|:--") for line in lines) == 11
    assert "<script>" not in "\n".join(lines)
    assert all(character.isprintable() for line in lines for character in line)


def test_markdown_says_which_way_is_better_and_the_unit():
    text = to_markdown([DENSE, LACO])
    assert re.search(r"\| +ppl wiki ↓ \| +average \(%\) ↑ \| +kept ↑ \|", text)
    assert re.search(r"\| +prefill \(tokens/s\) ↑ \| +decode \(ms/token\) ↓ \|", text)


def test_markdown_environment():
    later = changed(LACO, "environment", "date", to="2026-01-02T04:00:00+00:00")
    other = changed(later, "environment", "versions", to={"torch": "2.14.0"})
    text = to_markdown([DENSE, other])
    assert "- date: 2026-01-02T03:04:05+00:00 to 2026-01-02T04:00:00+00:00\n" in text
    assert "- torch: 2.13.0, 2.14.0\n" in text
    assert "- memory: 8.00 GiB\n" in text
    assert "- dirty: no\n" in text
    assert "- commit: 0123456789ab\n" in text


def test_csv_is_one_line_per_cell_in_full_precision():
    text = to_csv(RECORDS)
    rows = list(csv_reader.DictReader(io.StringIO(text)))
    assert len(text.splitlines()) == len(RECORDS) + 1
    assert sorted(entry["status"] for entry in rows) == sorted(record.status for record in RECORDS)
    by_label = {entry["label"]: entry for entry in rows}
    assert float(by_label["laco"]["ratio"]) == LACO.measured.ratio
    assert by_label["laco"]["parameters"] == str(LACO.measured.parameters)
    assert "<script>alert(1)</script>|x" in by_label
    assert by_label["flap"]["ratio"] == by_label["flap"]["average"] == ""
    assert all(re.fullmatch(r"[\w,.-]+", name) for name in rows[0])


def test_csv_tells_cells_apart_that_were_not_measured_alike():
    inputs = made_inputs(calibration_sha256="d" * 64)  # follows from the text, so that it need not be told
    other = with_cell(LACO, protocol=replace(LACO.cell.protocol, calibration="wiki"), inputs=inputs)
    alike = [with_cell(record, inputs=made_inputs()) for record in (DENSE, LACO)]
    rows = list(csv_reader.DictReader(io.StringIO(to_csv([*alike, other]))))
    assert [(row["label"], row["conditions"]) for row in rows] == [
        ("dense", 'calibration "c4"'),
        ("laco", 'calibration "c4"'),
        ("laco", 'calibration "wiki"'),
    ]
    assert list(rows[0])[:3] == ["model", "conditions", "label"]
    weights = [with_cell(LACO, inputs=made_inputs(digit * 64)) for digit in "ab"]
    rows = list(csv_reader.DictReader(io.StringIO(to_csv(weights))))
    assert [row["conditions"] for row in rows] == [f'weights_sha256 "{digit * 12}..."' for digit in "ab"]
    assert "conditions" not in to_csv([DENSE, LACO]).splitlines()[0].split(",")


def test_csv_says_what_a_ratio_is_a_share_of_and_which_draw_a_cell_is():
    decoder = changed(LACO, "cell", "ratio_of", to="decoder")
    records = [DENSE, LACO, decoder, *(drawn(draw, 90.0, 0.4) for draw in (3, 5)), drawn(7, 90.0, 0.4, ("seed",))]
    rows = list(csv_reader.DictReader(io.StringIO(to_csv(records))))
    assert [row["ratio_of"] for row in rows if row["label"] in ("dense", "laco")] == ["", "all", "decoder"]
    assert [(row["draw"], row["seed"]) for row in rows if row["method"] == "drop-random"] == [
        ("3", "0"),
        ("5", "0"),
        ("", "0"),
    ]
    for name in ("main", "grid", "speed"):
        tables = build_view(name, [*records, *(changed(one, "cell", "ratio_of", to="decoder") for one in MENDED[1:])])
        lines = list(csv_reader.DictReader(io.StringIO(markup.render_csv(tables))))
        found = {(line["label"].partition(" at ")[0], line["requested_ratio"], line["ratio_of"]) for line in lines}
        assert {("dense", "", ""), ("laco", "0.3", "decoder")} <= found, name
        assert {of for _, ratio, of in found if not ratio} == {""}, name


def test_a_failed_cell_does_not_set_the_order_of_the_columns():
    assert list(frame_of_records([FAILED[0], DENSE, LACO])) == list(frame_of_records([LACO, DENSE, FAILED[0]]))


def test_write_leaves_both_files_and_nothing_else(tmp_path):
    for number, record in enumerate(RECORDS):
        save(record, tmp_path / "run" / "cells" / f"{number}.json")
    records = load_run(tmp_path / "run")
    write_report(tmp_path / "run", records)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["cells", "report.csv", "report.md"]
    assert (tmp_path / "run" / "report.md").read_text(encoding="utf-8") == to_markdown(RECORDS)
    assert (tmp_path / "run" / "report.csv").read_text(encoding="utf-8") == to_csv(RECORDS)


# --- pieces


@pytest.mark.parametrize(
    ("column", "figure", "expected"),
    [
        ("ratio", 0.2894, "28.9 %"),
        ("ratio", -0.00001, "0.0 %"),
        ("parameters", 134_515_008, "134.5 M"),
        ("parameters", 6_738_415_616, "6.74 B"),
        ("parameters", 999, "999"),
        ("perplexity_wiki", 5.4721, "5.47"),
        ("perplexity_wiki", 20.84, "20.8"),
        ("perplexity_wiki", 343.4, "343"),
        ("perplexity_wiki", 12345.4, "12,345"),
        ("perplexity_wiki", 3.4e8, "3.4e8"),
        ("perplexity_wiki", math.inf, "inf"),
        ("task_piqa", 0.7166, "71.7"),
        ("kept", 0.8366, "84 %"),
        ("prefill_speed", 1.3456, "1.35x"),
        ("prefill_speed", 0.0123, "0.012x"),
        ("decode_speed", 20000.0, "20,000x"),
        ("prune_seconds", 26.31, "26.3 s"),
        ("prune_seconds", 0.00123, "<0.1 s"),
        ("prune_seconds", 3700.4, "3,700 s"),
        ("prefill_tokens_per_second", 2245.6, "2,246"),
        ("decode_ms_per_token", 14.25, "14.2"),
        ("weight_bytes", 538_060_032, "513 MiB"),
        ("kv_bytes_per_token", 512, "512 B"),
    ],
)
def test_how_figures_are_written(column, figure, expected):
    assert quantity_of_column(column).show(figure) == expected


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((20.8, 19.9, 21.7), "20.8 ± 0.9"),
        ((20.8, 20.77, 20.83), "20.8 ± 0.03"),
        ((210.0, 200.0, 310.0), "210 [200, 310]"),
        ((12345.0, 11000.0, 13900.0), "12,345 ± 1,450"),
        ((3.4e8, 2.9e8, 4.0e8), "3.4e8 ± 5.5e7"),
        ((20.8, 20.8, 20.8), "20.8"),
        ((20.0, 19.0, 21.4), "20.0 ± 1.2"),
        ((20.0, 19.0, 21.6), "20.0 [19.0, 21.6]"),
    ],
)
def test_how_intervals_are_written(interval, expected):
    assert quantity_of_column("perplexity_").show_interval(*interval) == expected


def test_the_decimals_of_an_error_follow_its_figure():
    assert format_perplexity(0.456, beside=5.4) == "0.46"
    assert format_perplexity(12.3, beside=343.0) == "12"


def test_long_and_nested_names_are_shortened_in_headings():
    assert quantity_of_column("perplexity_hub:org/name:test").heading == "ppl name:test"
    assert len(quantity_of_column("task_" + "x" * 90).heading) == 40


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("`x` *y* [z](w) $m$ ~s~", r"\`x\` \*y\* \[z\](w) \$m\$ \~s\~"),
        ("arc_easy _x_", r"arc_easy \_x\_"),
        ("a\nb", r"a\\nb"),
    ],
)
def test_markdown_escapes(text, expected):
    assert escape_markdown(text) == expected


def test_printable_shows_what_cannot_be_seen():
    assert to_printable("größe\n\x1b[31m\u202e\x00\ud800 é") == r"größe\n\x1b[31m\u202e\x00\ud800 é"


def test_wrap_breaks_at_words_and_within_long_ones():
    assert wrap("one two three", 8, indent="  ") == ["one two", "  three"]
    assert wrap("abcdefgh", 5, indent=" ") == ["abcde", " fgh"]
    assert wrap("laco:C=3,T=0.7,I=2", 10, breaks=",") == ["laco:C=3,", "T=0.7,I=2"]
    assert wrap("", 5) == [""]


def test_width_counts_columns():
    assert [width_of(text) for text in ("abc", "剪枝", "e\u0301", "±")] == [3, 4, 1, 1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("one\n  two", "one two"),
        ("KeyError: 1\nmore\nTraceback (most recent call last):\n  File\nKeyError: 1\nmore", "KeyError: 1 more"),
    ],
)
def test_reasons_are_one_line(error, expected):
    assert reason_of_error(error) == expected
    assert reason_of_error("x" * 400).startswith("x" * REASON + " ...")


def test_a_row_is_named_once_however_often_its_name_is_read(monkeypatch):
    """Each name is held against all cells of the setup: with 84 of them, names took most of ten seconds."""
    names = list[Record]()
    name_beside = groups_of_rows.label_with_differences
    monkeypatch.setattr(
        groups_of_rows, "label_with_differences", lambda one, several: names.append(one) or name_beside(one, several)
    )
    ((group, *_), *_) = group_records(RECORDS)
    labels = [[group.label(place) for place in range(len(group.rows))] for _ in range(3)]
    assert labels[0] == labels[1] == labels[2]
    assert len(names) == len(group.rows)
