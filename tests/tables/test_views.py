"""Views: what is marked, tested and told of methods, against figures by hand, brute force and the models themselves."""

from __future__ import annotations

import copy
import csv as csv_reader
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from itertools import pairwise

import made_grid
import made_served
import pandas as pd
import pytest
import torch
from conftest import tiny
from made_records import (
    DENSE,
    FIXED,
    LACO,
    MENDED,
    PER_LAYER,
    RECIPE,
    RECORDS,
    SLICEGPT,
    changed,
    checked,
    drawn,
    failed,
    measured,
    mended,
    ok,
    plain_inputs,
    point,
    with_cell,
    with_measured,
)
from made_runs import run_folder
from made_samples import MadeSamples, any_figures, paired_perplexity
from made_skills import with_what_a_view_needs
from scipy.stats import binomtest, ttest_1samp

import methods
from bench.cli.main import main
from bench.plan.protocol import Recipe
from bench.records.frame import frame_of_records
from bench.records.record import Record, peak_of_stage
from bench.records.run_folder import load_runs
from bench.records.samples import Pair, Sample, Samples
from bench.regression.pairs import compare_shares
from methods.errors import UserError
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.ranges import read_numbers, write_ranges
from reports import legend
from reports.figures.catalogue import figures_of_report
from reports.figures.figure import FORMATS
from reports.figures.quality import points_of
from reports.formats import latex, markup, terminal
from reports.groups import group_records
from reports.removed import remaining_of
from reports.report import to_csv
from reports.report import to_markdown as report_markdown
from reports.tables.pivots import gains_of_compensations
from reports.tables.table import Column, Row, Table, TableCell, legend_of, mark_best
from reports.tables.views import VIEWS, build_view, build_views
from reports.text import names_of_files, width_of

HOSTILE = r"a_b&c%$#{}~^\`'\"<script>alert(1)</script>|x"
FILES = ("perplexity-wiki", "piqa")  # of samples


def marks_of(
    values: list[float | None], better: str, eligible: list[bool], is_better: Callable[[int, int], bool]
) -> list[tuple[str, ...]]:
    """The marks of a column of figures, where the test of two places says so."""
    rows = [Row(str(number), "m", 0.1, (TableCell(value=value),)) for number, value in enumerate(values)]
    return [row.cells[0].marks for row in mark_best(rows, 0, better, eligible, is_better)]


@pytest.mark.parametrize(
    ("values", "better", "expected"),
    [
        ([3.0, 1.0, 2.0], "lower", ["", "best", ""]),
        ([3.0, 1.0, 2.0], "higher", ["best", "", ""]),
        ([1.0, 1.0, 2.0], "lower", ["best", "best", ""]),
        ([0.0, 0.0, 0.0], "higher", ["", "", ""]),
        ([1.0, None, None], "lower", ["", "", ""]),  # alone
        ([float("inf"), 5.0, 6.0], "lower", ["", "best", ""]),
    ],
)
def test_the_best_is_marked_where_it_is_shown_to_be_better_than_the_next(values, better, expected):
    def shown(one: int, another: int) -> bool:
        asked.add((values[one], values[another]))
        return True

    asked: set[tuple[float | None, float | None]] = set()
    assert [" ".join(marks) for marks in marks_of(values, better, [True] * 3, shown)] == expected
    finite = sorted({value for value in values if value not in (None, float("inf"))}, reverse=better == "higher")
    assert asked == ({tuple(finite[:2])} if "best" in expected else set())
    assert marks_of(values, better, [True] * 3, lambda *_: False) == [()] * 3
    assert marks_of(values, better, [False] * 3, shown) == [()] * 3


def cells(name: str, column: str, records: list[Record], **more: object) -> dict[str, TableCell]:
    """The cells of a column in the first table of a view, by label."""
    table = build_view(name, records, **more)[0]
    at = [one.name for one in table.columns].index(column)
    return {row.label: row.cells[at] for row in table.rows}


def test_neither_dense_nor_what_removed_too_little_is_the_best():
    third = changed(
        changed(LACO, "cell", "method", to="sleb"), "measured", "perplexity", "wiki", "perplexity", to=500.0
    )
    found = cells("main", "perplexity_wiki", [DENSE, LACO, SLICEGPT, third])
    assert found["slicegpt"].value == 210.0  # the lowest, but 0.8 % of the model short of the budget
    assert {label: cell.marks for label, cell in found.items()} == {
        "dense": (),
        "slicegpt": (),
        "laco": ("best",),
        "sleb": (),
    }
    more = changed(SLICEGPT, "measured", "ratio", to=LACO.measured.ratio + 0.008)
    assert cells("main", "perplexity_wiki", [DENSE, LACO, more, third])["slicegpt"].marks == ("best",)


def test_views_hold_every_measured_figure_of_the_frame():
    table = frame_of_records([DENSE, LACO]).set_index("label")
    for name in ("main", "per-task", "by-ratio"):
        for one in build_view(name, [DENSE, LACO]):
            for row in one.rows:
                for column, cell in zip(one.columns, row.cells, strict=True):
                    expected = table.loc[row.label, column.name]
                    assert cell.value == expected or (cell.value is None and pd.isna(expected))


def test_by_ratio_has_a_column_for_each_ratio_and_says_why_a_cell_is_missing():
    other = changed(changed(LACO, "cell", "ratio", to=0.2), "measured", "perplexity", "wiki", "perplexity", to=99.0)
    (perplexity, *_) = build_view("by-ratio", [DENSE, LACO, other, failed("out_of_memory", "flap", "full")])
    assert [column.label for column in perplexity.columns] == ["0.2", "0.3"]
    rows = {row.label: [cell.text for cell in row.cells] for row in perplexity.rows}
    assert rows == {"dense": ["20.8 ± 0.9"] * 2, "laco": [rows["laco"][0], "343 ± 46"], "flap": ["-", "out of memory"]}
    assert "failed: The cell has no figures: flap at 0.3 [out of memory: full]." in perplexity.notes
    assert rows["laco"][0].startswith("99")


def test_by_ratio_keeps_apart_what_met_its_ratio_or_was_healed_otherwise():
    """A cell does not take the place of another one, and no row is of two recipes."""
    exact = changed(changed(LACO, "cell", "match", to="exact"), "measured", "perplexity", "wiki", "perplexity", to=70.0)
    (perplexity, *_) = build_view("by-ratio", [DENSE, LACO, exact])
    assert {row.label: row.cells[0].value for row in perplexity.rows if row.label != "dense"} == {
        "laco (match layers)": LACO.measured.text_scores["wiki"].perplexity,
        "laco (match exact)": 70.0,
    }
    healed = [
        changed(changed(LACO, "cell", "healing", to=RECIPE | {"loss": loss}), "cell", "ratio", to=ratio)
        for loss, ratio in (("kl", 0.1), ("next-token", 0.3))
    ]
    (perplexity, *_) = build_view("by-ratio", [DENSE, *healed])
    assert {row.label: [cell.text == "-" for cell in row.cells] for row in perplexity.rows} == {
        **{"dense": [False, False], "laco, healed (loss kl)": [False, True]},
        "laco, healed (loss next-token)": [True, False],
    }


def under(record: Record, ppl: float = 20.0, ratio: float | None = 0.3, **inputs: object) -> Record:
    """A copy with another perplexity at another ratio, and with more that its answer stands on."""
    versions = record.environment["versions"] | inputs.get("versions", {})
    for path, value in (
        (("measured", "perplexity", "wiki", "perplexity"), ppl),
        (("cell", "ratio"), None if record.cell.method == "dense" else ratio),
        (("cell", "inputs"), plain_inputs(**inputs)),
        (("environment", "versions"), versions),
    ):
        record = changed(record, *path, to=value)
    return record


TORCHES = ({"torch": "2.13.0"}, {"torch": "2.14.0"})


@pytest.mark.parametrize(
    ("apart", "named"),
    [
        (({"versions": TORCHES[0]}, {"versions": TORCHES[1]}), ("torch 2.13.0", "torch 2.14.0")),
        (
            ({"revision": "1"}, {"revision": "2"}),
            ("revision 1", "revision 2"),
        ),
        (({}, {"parent": "laco--1"}), ("", "parent laco--1")),
        (  # what the versions tell apart already is not named
            ({"versions": TORCHES[0], "parent": "1"}, {"versions": TORCHES[1], "parent": "2"}),
            ("torch 2.13.0", "torch 2.14.0"),
        ),
    ],
)
def test_cells_of_one_label_ratio_and_seed_are_told_apart_wherever_they_stand(apart, named):
    one, other = (under(LACO, 300.0 + 150 * number, **inputs) for number, inputs in enumerate(apart))
    labels = [f"laco ({name})" if name else "laco" for name in named]
    lower = under(LACO, 50.0, 0.1, **apart[1])  # which alone needs no more than its label
    dense = under(DENSE)
    for records in ([dense, one, other, lower], [dense, other, lower, one]):
        table = build_view("by-ratio", records)[0]
        heads = [column.label for column in table.columns]
        figures = {row.label: dict(zip(heads, [c.value for c in row.cells], strict=True)) for row in table.rows}
        assert figures[labels[0]] == {"0.1": None, "0.3": 300}
        assert figures[labels[1]] == {"0.1": 50, "0.3": 450}
        assert set(cells("main", "perplexity_wiki", records)) == {"dense", labels[1]}
        plotted = {(one.label, one.ratio, one.row["perplexity_wiki"]) for one in points_of(group_records(records)[0])}
        assert plotted >= {(labels[0], 0.3, 300), (labels[1], 0.3, 450), (labels[1], 0.1, 50)}
    assert {row.label for row in build_view("main", [dense, one, lower])[0].rows} == {"dense", "laco"}


def test_what_a_compensation_changes_is_of_one_version():
    alone, both = MENDED[3], MENDED[4]
    records = [
        under(record, ppl * times, versions=versions)
        for versions, times in zip(TORCHES, (1, 2), strict=True)
        for record, ppl in ((DENSE, 20.0), (alone, 300.0), (both, 200.0))
    ]
    found = gains_of_compensations("perplexity_wiki", group_records(records)[0][0], Samples())
    assert [(gain.where.row, gain.estimate) for gain in found] == [
        (f"shortgpt (torch {versions['torch']})", pytest.approx(2 / 3)) for versions in TORCHES
    ]
    table = next(one for one in build_view("grid", records) if one.name.startswith("grid-perplexity"))
    shown = {row.label: [cell.value for cell in row.cells] for row in table.rows}
    assert shown["shortgpt (torch 2.13.0)"] == [300, 200]
    assert shown["shortgpt (torch 2.14.0)"] == [600, 400]
    assert shown["dense (torch 2.14.0)"] == [40, None]
    assert {row.ratio for row in table.rows if row.method == "dense"} == {None}
    assert not any("other versions" in note for table in build_view("main", records) for note in table.notes)


def test_draws_and_dense_cells_without_figures_have_rows_of_their_own():
    lost = [failed("error", "drop-random", "lost", parameters={"seed": seed, "draws": 3}) for seed in (2, 3)]
    draws = [changed(drawn(seed, 30.0, 0.5), "cell", "ratio", to=0.3) for seed in (0, 1)]
    dense = changed(replace(lost[0], cell=DENSE.cell), "cell", "seed", to=1)
    (table,) = [
        one for one in build_view("by-ratio", [DENSE, dense, *draws, *lost]) if one.name == "by-ratio-perplexity_wiki"
    ]
    assert {row.label: row.cells[0].text for row in table.rows} == {
        "dense (seed 0)": "20.8 ± 0.9",
        "dense (seed 1)": "error",
        "drop-random (seed 0)": "30.0",
        "drop-random (seed 0, draw 2)": "error",
        "drop-random (seed 0, draw 3)": "error",
    }


def test_rows_of_speed_that_met_their_ratio_otherwise_or_are_draws_are_told_apart():
    exact = changed(changed(LACO, "cell", "match", to="exact"), "measured", "speed", "failed", to="no room")
    draws = [drawn(number, 100.0, 0.3) for number in range(2)]
    timed, sizes = build_view("speed", [DENSE, LACO, exact, *draws])
    names = {"laco (match layers) at 0.3", "laco (match exact) at 0.3"}
    random = {f"drop-random (match layers) at 0.1 (draw {number})" for number in range(2)}
    for table in (timed, sizes):
        assert {row.label for row in table.rows} == {"dense", *names, *random}
    assert any(note.endswith(": laco (match exact) at 0.3 [no room].") for note in timed.notes)


def test_a_report_heads_each_table_of_speed_with_its_conditions_and_notes():
    figures = [point("decode", 1, 64, 14.0), point("decode", 4, 64, 20.0, flags=["noisy"])]
    several = [changed(one, "measured", "speed", "points", to=figures) for one in (DENSE, LACO)]
    halves = [changed(one, "cell", "dtype", to="bfloat16") for one in several]
    _, section = report_markdown([*several, *halves]).split("\n## Speed\n")
    section = section.split("\n## ")[0]
    for dtype in ("float32", "bfloat16"):
        line = f"\n\nSmolLM2-135M-Instruct, cpu, {dtype}, 2 threads, quick"
        assert section.count(f"### Speed{line}") == section.count(f"### Sizes{line}") == 1
    assert section.count(": laco at 0.3 \\[decode at batch 4") == 0
    assert len(re.findall(r"- ! noisy: .*, laco at 0\.3 ", section)) == 2
    assert section.count("- ms: the median of one prefill") == 1


def test_conditions_have_the_machines_of_every_cell():
    far = changed(changed(LACO, "environment", "threads", to=64), "environment", "cpu", to="Large CPU")
    (main, *_) = build_view("main", [DENSE, far])
    assert main.conditions == ("cpu (Example CPU @ 2.0 GHz or Large CPU), float32, 2 or 64 threads", "quick")
    gpus = [changed(one, "environment", "gpu", to=name) for one, name in ((DENSE, "H100"), (LACO, "H200"))]
    assert build_view("main", gpus)[0].conditions[0].startswith("H100 or H200, float32")
    low = changed(changed(gpus[0], "cell", "method", to="sleb"), "cell", "ratio", to=0.1)
    by_ratio = build_view("by-ratio", [DENSE, gpus[1], low])[0].conditions
    assert by_ratio == build_view("by-ratio", [gpus[1], low, DENSE])[0].conditions
    assert by_ratio[0].startswith("H100 or H200 or cpu, float32")
    later = [changed(drawn(draw, 90.0, 0.4), "environment", "threads", to=2 + draw) for draw in range(2)]
    assert build_view("main", [DENSE, *later])[0].conditions == ("cpu, float32, 2 or 3 threads", "quick")


def test_doubts_about_a_speed_stand_under_the_tables_that_show_it():
    flagged = [point("prefill", 1, 128, 57.0), point("decode", 1, 64, 14.0, pruned_cv=0.34, flags=["noisy"])]
    machine = {"flags": ["busy"], "other_cores": 1.25, "stolen_cores": 0.5}
    doubtful = changed(LACO, "measured", "speed", to={"points": flagged, "machine": machine})
    noisy, busy = "laco [decode at batch 1 (± 34 %)]", "laco [1.2 cores taken, 0.5 withheld]"
    said = {
        table.name: [
            doubt for doubt in (noisy, busy) if any(doubt in note.replace(" at 0.3", "") for note in table.notes)
        ]
        for name in ("main", "per-task", "by-ratio", "cost", "decisions")
        for table in build_view(name, [DENSE, doubtful])
    }
    assert {name: doubts for name, doubts in said.items() if doubts} == {
        "main-0.3": [noisy, busy],
        "by-ratio-prefill_speed": [busy],
        "by-ratio-decode_speed": [noisy, busy],
    }
    assert len(said) > 6


def test_a_table_with_a_row_of_draws_says_that_it_is_one():
    draws = [drawn(seed, 100.0 * 10**seed, 0.3, timed=not seed) for seed in range(3)]
    beside = mended("shortgpt+ghost", 0.3, 160.0, 0.38)
    checked = set()
    for name in ("main", "per-task", "by-ratio", "grid"):
        for table in build_view(
            name, [DENSE, *draws, *([changed(beside, "cell", "ratio", to=0.1)] * (name == "grid"))]
        ):
            if any(row.method == "drop-random" for row in table.rows) and not table.name.startswith("grid-gain"):
                lines = [
                    line for line in table.footnotes if line.endswith((": drop-random [3 draws].", ": drop-random."))
                ]
                assert [line.partition(":")[0] for line in lines] == ["draws", "one timed"], table.name
                checked.add(name)
    assert checked == {"main", "per-task", "by-ratio", "grid"}


def grid(records: list[Record], name: str) -> dict[str, dict[str, TableCell]]:
    """A table of the view grid, as row -> column -> cell."""
    (table,) = (table for table in build_view("grid", records) if table.name == name)
    heads = [column.label for column in table.columns]
    return {row.label: dict(zip(heads, row.cells, strict=True)) for row in table.rows}


def test_the_grid_has_methods_in_rows_and_compensations_in_columns():
    found = grid(MENDED, "grid-perplexity_wiki-0.3")
    assert list(found) == ["dense", "laco-ls", "flap", "shortgpt", "shortgpt:token=last"]
    assert list(found["dense"]) == ["none", "ghost", "replaceme", "ghost:ridge=0.1", "refit"]
    values = {(row, column): cell.value for row, cells in found.items() for column, cell in cells.items() if cell.value}
    assert values == {
        ("dense", "none"): 20.8,
        ("shortgpt", "none"): 508.0,
        ("shortgpt", "ghost"): 160.0,
        ("shortgpt", "replaceme"): 105.2,
        ("shortgpt:token=last", "ghost:ridge=0.1"): 171.0,
        ("flap", "none"): 130.0,
        ("flap", "refit"): 110.0,
        ("laco-ls", "none"): 81.9,
    }
    assert (found["flap"]["ghost"].text, found["flap"]["replaceme"].text) == ("unsupported", "-")
    assert found["shortgpt"]["ghost"].text == "160 ± 18"
    marked = {(row, column): cell.marks for row, cells in found.items() for column, cell in cells.items() if cell.marks}
    assert marked == {("laco-ls", "none"): ("best",)}


def test_the_grid_has_every_measure_at_every_ratio_where_something_is_mended():
    alone = mended("shortgpt", 0.2, 84.4, 0.4)
    names = [table.name for table in build_view("grid", MENDED)]
    measures = ["perplexity_wiki", "average", "answer_bpb", "kl", "prune_seconds", "parameters"]
    assert names == [f"grid-{measure}-{ratio}" for ratio in ("0.2", "0.3") for measure in measures]
    assert build_view("grid", [DENSE, alone, LACO]) == build_view("grid", RECORDS) == []
    assert "dense" not in grid(MENDED, "grid-prune_seconds-0.3")
    assert grid(MENDED, "grid-prune_seconds-0.3")["shortgpt"]["none"].text == "1.2 s"
    notes = {table.name: table.notes for table in build_view("grid", MENDED)}
    assert notes["grid-kl-0.2"] == ()
    assert notes["grid-kl-0.3"][-1] == "-: not asked for."
    assert ": flap+ghost [unsupported: the method removes heads and channels" in notes["grid-kl-0.3"][0]


def test_no_table_of_a_share_of_the_decoder_has_a_space_in_its_name():
    """Its LaTeX file is called so, which \\input takes."""
    records = [changed(one, "cell", "ratio_of", to="decoder") for one in MENDED]
    names = [table.name for name in ("main", "grid") for table in build_view(name, records)]
    assert any(name.startswith("grid-perplexity") and name.endswith("of-the-decoder") for name in names)
    assert not [name for name in names if " " in name]


def test_plus_none_is_the_method_alone_and_a_missed_ratio_has_a_star():
    records = [changed(LACO, "cell", "method", to=name) for name in ("sleb+none", "sleb+ghost")]
    records[1] = changed(records[1], "measured", "ratio", to=LACO.measured.ratio - 0.008)
    found = grid([DENSE, *records], "grid-parameters-0.3")["sleb"]
    assert (found["none"].text, found["ghost"].text) == ("95.6 M", "95.6 M*")


def test_tidy_csv_of_the_grid_has_a_line_for_each_cell_that_was_asked_for():
    tables = [table for table in build_view("grid", MENDED) if table.name == "grid-perplexity_wiki-0.3"]
    lines = list(csv_reader.DictReader(io.StringIO(markup.render_csv(tables))))
    labels = {line["label"]: (line["method"], line["value"], line["shown"]) for line in lines}
    assert len(labels) == len(lines) == 9
    assert labels["shortgpt+ghost:token=last,ghost.ridge=0.1"] == ("shortgpt+ghost", "171.0", "171 ± 19")
    assert labels["flap+ghost"] == ("flap+ghost", "", "unsupported")


def test_unlike_setups_have_tables_of_their_own_with_names_of_their_own():
    other = [changed(record, "cell", "dtype", to="bfloat16") for record in (DENSE, LACO)]
    names = [table.name for table in build_view("main", [DENSE, LACO, *other])]
    assert names == ["main-0.3", "main-0.3-2"]


def test_other_inputs_are_other_setups_but_another_method_file_is_not():
    asked = plain_inputs(revision="x", versions={"torch": "1"})
    one = [
        changed(DENSE, "cell", "inputs", to=asked),
        changed(LACO, "cell", "inputs", to=asked | {"revision": "y"}),
    ]
    assert frame_of_records(one)["kept"].notna().all()
    other = changed(LACO, "cell", "inputs", to=asked | {"weights_sha256": "b"})
    assert frame_of_records([one[0], other])["flags"].tolist()[1] == "no_dense_cell"


def test_other_versions_have_a_footnote():
    newer = changed(LACO, "environment", "versions", to={"torch": "2.14.0", "lm_eval": "0.4.13"})
    assert frame_of_records([DENSE, newer])["flags"].tolist()[1] == "other_versions"
    (table,) = build_view("main", [DENSE, newer])
    (note,) = [note for note in table.notes if note.startswith("other versions: ")]
    assert note.endswith(": laco [torch 2.14.0, not 2.13.0].")
    assert not [note for note in build_view("main", [DENSE, LACO])[0].notes if "versions" in note]
    later = [
        changed(changed(one, "cell", "seed", to=1), "environment", "versions", to=TORCHES[1]) for one in (DENSE, LACO)
    ]
    for one, named in ((LACO, []), (newer, ["laco (seed 0)"])):  # each is beside the dense model of its seed
        found = build_view("main", [DENSE, one, *later])[0].notes
        assert [note.split(": ")[2].partition(" [")[0] for note in found if "versions" in note] == named


def test_memory_is_shown_by_stage_where_the_record_has_it_and_else_as_one_figure_of_all():
    gpu = {"prune": {"allocated_bytes": 3 * 2**20, "reserved_bytes": 9 * 2**30}}
    gpu["checks"] = {"allocated_bytes": 5 * 2**20, "reserved_bytes": 5 * 2**20}
    new = changed(LACO, "measured", "peak_memory", to=gpu)
    cpu = changed(SLICEGPT, "measured", "peak_memory", to={"prune": {"resident_bytes": 7 * 2**20}})
    assert [frame_of_records([new, cpu])[name].tolist() for name in ("prune_memory_bytes", "peak_memory_bytes")] == [
        [3 * 2**20, 7 * 2**20],
        [5 * 2**20, 7 * 2**20],
    ]
    (old,), (both,) = build_view("cost", [DENSE, LACO]), build_view("cost", [DENSE, new, SLICEGPT])
    titles = [[column.name for column in table.columns] for table in (old, both)]
    assert ["prune_memory_bytes" in names for names in titles] == [False, True]
    assert [any("memory to prune" in note for note in table.footnotes) for table in (old, both)] == [False, True]
    assert cells("cost", "prune_memory_bytes", [DENSE, new, SLICEGPT])["slicegpt"].text == "-"
    assert cells("cost", "peak_memory_bytes", [DENSE, LACO])["laco"].value == peak_of_stage(LACO.measured)


def test_what_a_method_looks_at_is_told_only_where_it_is_known():
    found = cells("cost", "gradients", [DENSE, LACO, SLICEGPT], needs={"laco": "calibration", "slicegpt": ""})
    assert [found[name].text for name in ("dense", "laco", "slicegpt")] == ["no", "no", "-"]
    assert cells("cost", "gradients", [LACO], needs={"laco": "calibration, gradients"})["laco"].text == "yes"
    assert cells("cost", "reads", [LACO], needs={"laco": "calibration"})["laco"].text == "sentences=5 tokens=16"
    every = changed(LACO, "cell", "parameters", "tokens", to=None)  # which stands for all there are
    assert cells("cost", "reads", [every], needs={"laco": "calibration"})["laco"].text == "sentences=5"


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UserError, match="no view 'mian'; there are main, per-task"):
        build_view("mian", [DENSE])
    with pytest.raises(UserError, match="no method 'lacoo' to refer to; there are dense, laco"):
        build_view("main", [DENSE, LACO], "lacoo")


# --- decisions


@pytest.mark.parametrize("numbers", [[], [3], [3, 4], [0, 1, 2, 5, 7, 8], list(range(30))])
def test_ranges_say_the_same_numbers(numbers):
    assert read_numbers(write_ranges(numbers)) == numbers
    ends = [part.split("-") for part in write_ranges(numbers, ", ").split(", ") if part]
    assert all(int(after[0]) > int(before[-1]) + 1 for before, after in pairwise(ends))


@pytest.mark.parametrize(
    ("method", "ratio"),
    [
        ("drop-tail", 0.3),
        ("laco", 0.3),
        ("llm-drop", 0.25),
        ("flap", 0.2),
        ("wanda-sp", 0.2),
        ("2ssp", 0.25),
        ("sleb", 0.3),
    ],
)
def test_what_is_left_is_what_the_pruned_model_holds(method, ratio):
    """The shares of each part, weighed by the part's parameters, give the parameters of the pruned model."""
    model = tiny("llama")
    decoder = Decoder(model)
    attention = [sum(m.weight.numel() for m in (*layer.qkv, layer.out)) for layer in decoder.layers]
    mlp = [sum(m.weight.numel() for m in (*layer.up, layer.down)) for layer in decoder.layers]
    ids = torch.randint(3, 128, (4, 24), generator=torch.Generator().manual_seed(0))
    decided = methods.make(method).prune(decoder, Calibration(ids, torch.ones_like(ids, dtype=torch.bool)), ratio)
    record = replace(with_measured(LACO, dense_layers=6), decisions=json.loads(json.dumps(decided)))
    found = remaining_of(record)
    expected = sum(
        size * share
        for sizes, shares in ((attention, found.attention), (mlp, found.mlp))
        for size, share in zip(sizes, shares, strict=True)
    )
    held = 0
    for layer in decoder.layers:
        held += sum(m.weight.numel() for m in (*layer.qkv, layer.out)) if layer.has_attention else 0
        held += sum(m.weight.numel() for m in (*layer.up, layer.down)) if layer.has_mlp else 0
    assert expected == pytest.approx(held)
    assert held < sum(attention) + sum(mlp)


def test_several_draws_are_told_one_by_one():
    records = [DENSE, *(replace(drawn(seed, 50.0, 0.4), decisions={"removed_layers": [seed, 9]}) for seed in (3, 5))]
    table = build_view("decisions", records)[0]
    assert [row.cells[1].text for row in table.rows] == ["-", "3, 9", "5, 9"]
    assert [row.label for row in table.rows] == ["dense", "drop-random (draw 3)", "drop-random (draw 5)"]


@pytest.mark.parametrize("own", [{}, {"seed": 7}])
def test_draws_behind_a_random_method_go_by_the_draw_that_they_go_on_from(own):
    stages = [drawn(seed, 50.0, 0.4).cell.stage for seed in (3, 5)]
    chained = [with_cell(LACO, parameters=own, earlier=[stage]) for stage in stages]
    table = build_view("decisions", [DENSE, *chained])[0]
    assert [row.label for row in table.rows] == [
        "dense",
        "drop-random at 0.1, then laco (draw 3)",
        "drop-random at 0.1, then laco (draw 5)",
    ]


def test_what_a_random_choice_lacks_is_no_mean_but_for_the_speed():
    """One choice alone is timed, which a note says; of all else a mean is over every choice."""
    draws = [drawn(seed, 50.0, 0.4, timed=seed == 0) for seed in range(3)]
    lacking = [with_measured(one, **checked({}, kl, 0.5)) for one, kl in zip(draws, (1.0, 2.0, None), strict=True)]
    ((group,),) = group_records(lacking)
    (row,) = group.rows
    assert (row["kl"], row["kl_low"], row["kl_high"]) == (None, None, None)
    assert row["decode_speed"] == group.each[0][0]["decode_speed"]
    assert row["copying"] == 0.5


# --- tests against a reference


def sampled(folder, right: list[int], nll: list[float], documents: list[str]):
    folder.mkdir(parents=True)
    pd.DataFrame({"doc_hash": documents, "acc_norm": right}).to_parquet(folder / "piqa.parquet")
    pd.DataFrame({"nll": nll, "tokens": [511] * len(nll)}).to_parquet(folder / "perplexity-wiki.parquet")
    return folder


@pytest.fixture
def pair(tmp_path):
    """Two cells with 100 answers to one task, of which 3 were lost and 15 gained, and eight windows."""
    one = changed(LACO, "measured", "tasks", to={"piqa": LACO.measured.task_scores["piqa"]})
    other = changed(one, "cell", "method", to="sleb")
    documents = [f"{number:064x}" for number in range(100)]
    before = [1] * 40 + [0] * 60
    after = [0] * 3 + [1] * 37 + [1] * 15 + [0] * 45
    nll = [1500.0 + 7 * number for number in range(8)]
    worse = [x + d for x, d in zip(nll, [40, 35, 60, 20, 45, 50, 38, 41], strict=True)]
    folders = [sampled(tmp_path / "a", before, nll, documents), sampled(tmp_path / "b", after, worse, documents)]
    return [one, other], folders, documents


def test_a_dagger_says_that_the_paired_tests_reject(pair):
    records, folders, _ = pair
    assert binomtest(3, 18).pvalue < 0.05
    assert ttest_1samp([40, 35, 60, 20, 45, 50, 38, 41], 0).pvalue < 0.05
    (table,) = build_view("main", records, "laco", Samples(folders))
    daggers = {c.name for c, cell in zip(table.columns, table.rows[1].cells, strict=True) if "differs" in cell.marks}
    assert daggers == {"perplexity_wiki", "task_piqa", "average"}
    assert not [cell for cell in table.rows[0].cells if "differs" in cell.marks]
    assert any(note.startswith("† differs: ") and ": laco [" in note for note in table.notes)


def test_a_healed_or_chained_cell_has_a_row_of_its_own_in_the_grid():
    recipe = Recipe().as_run()
    alone, ghost = (changed(LACO, "cell", "method", to=name) for name in ("sleb", "sleb+ghost"))
    healed = [with_cell(one, healing=recipe) for one in (alone, ghost)]
    before = {"method": "laco", "parameters": {}, "ratio": 0.1, "given": ()}
    chained = with_cell(ghost, earlier=[before])
    found = grid([DENSE, alone, *healed, ghost, chained], "grid-parameters-0.3")
    assert list(found) == ["dense", "sleb", "sleb, healed", "laco at 0.1, then sleb"]
    assert [cell.value is not None for cell in found["laco at 0.1, then sleb"].values()] == [False, True]
    (block,) = group_records([DENSE, alone, healed[1], ghost, chained])[0]
    assert [
        (gain.where.row, gain.place, gain.alone) for gain in gains_of_compensations("average", block, Samples())
    ] == [("sleb", 3, 1)]


@pytest.fixture
def alone_and_mended(pair):
    (one, other), folders, _ = pair
    return [changed(one, "cell", "method", to="sleb"), changed(other, "cell", "method", to="sleb+ghost")], folders


def test_the_grid_says_what_a_compensation_changes_in_pairs(alone_and_mended):
    records, folders = alone_and_mended
    found = {table.name: table for table in build_view("grid", records, samples=Samples(folders))}
    nll, answers = ([pd.read_parquet(folder / f"{name}.parquet") for folder in folders] for name in FILES)
    tokens = nll[0]["tokens"].tolist()
    expected = {
        "perplexity_wiki": paired_perplexity(nll[0]["nll"].tolist(), nll[1]["nll"].tolist(), tokens),
        "average": compare_shares([[Pair(*(Sample((), table["acc_norm"].to_numpy()) for table in answers))]])[0],
    }
    for name, difference in expected.items():
        table = found[f"grid-gain-{name}-0.3"]
        ((row,), (column,), (cell,)) = table.rows, table.columns, table.rows[0].cells
        assert (row.label, column.label, cell.of) == ("sleb", "ghost", ("sleb+ghost", "sleb+ghost"))
        assert (cell.value, cell.low, cell.high) == pytest.approx(
            (difference.estimate, difference.low, difference.high)
        )
        assert cell.marks == ("differs",)
        assert difference.p < 0.05
        assert column.name == f"gain_{name}"
    assert found["grid-gain-average-0.3"].rows[0].cells[0].text.startswith("+12.0 [+4.")
    assert found["grid-gain-perplexity_wiki-0.3"].title.startswith(
        "ppl wiki, times that of the method alone ↓, ratio 0.3"
    )
    missing = changed(records[1], "measured", "ratio", to=records[1].measured.ratio - 0.008)
    other = changed(records[1], "cell", "method", to="sleb+scale")
    tables = build_view("grid", [records[0], missing, other], samples=Samples(folders))
    (table,) = (one for one in tables if one.name == "grid-gain-average-0.3")
    assert table.rows[0].cells[0].marks == ("differs", "missed")
    assert [note for note in table.notes if note.startswith("* missed") and ": sleb+ghost [requested" in note]
    alone = changed(records[0], "measured", "ratio", to=records[0].measured.ratio - 0.008)
    twice = build_view("grid", [alone, missing, other], samples=Samples([*folders, folders[1]]))
    (table,) = (one for one in twice if one.name == "grid-gain-average-0.3")
    (note,) = [note for note in table.notes if note.startswith("* missed")]
    assert note.count("sleb [") + note.count("sleb, ") == 1
    (table,) = (one for one in tables if one.name == "grid-gain-average-0.3")
    assert any(note.startswith("untested: ") and note.endswith(": sleb+scale [average].") for note in table.notes)
    assert not [table for table in build_view("grid", records) if "gain" in table.name]
    assert not [t for t in build_view("grid", records, samples=Samples(folders[:1])) if "gain" in t.name]


def test_the_figure_of_compensations_has_the_same_intervals(alone_and_mended):
    records, folders = alone_and_mended
    (table,) = (
        t for t in build_view("grid", records, samples=Samples(folders)) if t.name == "grid-gain-perplexity_wiki-0.3"
    )
    (figure,) = (one for one in figures_of_report(records, Samples(folders)) if one.name == "perplexity-wiki-mended")
    (axis,) = figure.draw().axes
    cell, spans = table.rows[0].cells[0], [list(line.get_xdata()) for line in axis.lines]
    assert [cell.low, cell.high] in spans
    (figure,) = (one for one in figures_of_report(records) if one.name == "perplexity-wiki-mended")
    assert [cell.low, cell.high] not in [list(line.get_xdata()) for line in figure.draw().axes[0].lines]


def test_every_renderer_shows_the_dagger(pair):
    records, folders, _ = pair
    tables = build_view("main", records, "laco", Samples(folders))
    ppl = tables[0].rows[1].cells[2]
    assert "differs" in ppl.marks
    assert f"{ppl.text}†" in terminal.render(tables)
    assert f"{ppl.text}†" in markup.render_markdown(tables).replace("*", "")
    assert f"{ppl.text}†" in re.sub(r"<[^>]*>", "", markup.render_html(tables))
    assert len(re.findall(r"\$\^\{\\dagger\}\$ (?:&|\\\\)", latex.render(tables))) == 3
    lines = list(csv_reader.DictReader(io.StringIO(markup.render_csv(tables))))
    assert {line["measure"] for line in lines if "differs" in line["marks"].split()} == {
        "perplexity_wiki",
        "task_piqa",
        "average",
    }


def test_the_best_is_bold_where_pairs_of_windows_show_it_though_intervals_meet(pair, tmp_path):
    (laco, sleb), folders, documents = pair
    records = [laco, changed(sleb, "measured", "perplexity", "wiki", "perplexity", to=352.3)]
    assert cells("main", "perplexity_wiki", records)["laco"].marks == ()  # by their intervals
    assert cells("main", "perplexity_wiki", records, samples=Samples(folders))["laco"].marks == ("best",)
    assert cells("main", "average", records, samples=Samples(folders))["sleb"].marks == ()
    close = sampled(tmp_path / "c", [0] * 5 + [1] * 35 + [1] * 9 + [0] * 51, [1500.0] * 4 + [1560.0] * 4, documents)
    unsure = cells("main", "perplexity_wiki", records, samples=Samples([folders[0], close]))
    assert {label: cell.marks for label, cell in unsure.items()} == {"laco": (), "sleb": ()}


@pytest.mark.parametrize(("chance", "marks"), [(0.25, ("best",)), (0.58, ())])
def test_an_accuracy_that_may_be_of_guesses_is_not_the_best_nor_what_is_kept_of_it(chance, marks):
    def of(method: str, right: float) -> Record:
        task = {"main": "acc", "metrics": {"acc": {"value": right, "stderr": 0.02}}, "documents": 400, "fewshot": 0}
        task |= {"chance": chance, "version": 1, "available": 400}
        return changed(changed(LACO, "cell", "method", to=method), "measured", "tasks", to={"piqa": task})

    records = [of("dense", 0.9), of("laco", 0.6), of("sleb", 0.3)]
    for name, column in (("per-task", "task_piqa"), ("main", "average"), ("main", "kept")):
        found = cells(name, column, records)
        assert [mark for mark in found["laco"].marks if mark == "best"] == [*marks], column
        assert "best" not in found["sleb"].marks


@pytest.mark.parametrize(("slower_ms", "marks"), [(60.0, ("best",)), (57.5, ())])
def test_a_speed_is_the_best_where_the_intervals_of_two_do_not_meet(slower_ms, marks):
    slower = ok("sleb", 0.3, measured(11 * PER_LAYER, (300.0, 343.0, 391.0), [0.4] * 5, slower_ms), budget=11)
    found = cells("main", "prefill_speed", [DENSE, LACO, slower])
    assert {label: cell.marks for label, cell in found.items()} == {"dense": (), "laco": marks, "sleb": ()}


def test_a_difference_that_may_be_chance_has_no_dagger(pair, tmp_path):
    records, folders, documents = pair
    close = sampled(tmp_path / "c", [0] * 5 + [1] * 35 + [1] * 9 + [0] * 51, [1500.0] * 4 + [1560.0] * 4, documents)
    assert binomtest(5, 14).pvalue > 0.05
    found = cells("main", "task_piqa", records, reference="laco", samples=Samples([folders[0], close]))
    assert found["sleb"].marks == ()


def test_many_methods_are_adjusted_for(pair, tmp_path):
    """p = 0.012 is below 5 % alone, and no more below it as one of five."""
    records, folders, documents = pair
    after = [0] * 2 + [1] * 38 + [1] * 11 + [0] * 49
    p = binomtest(2, 13).pvalue
    assert 0.05 / 5 < p < 0.05
    others = [changed(records[1], "cell", "method", to=f"m{number}") for number in range(5)]
    found = [sampled(tmp_path / f"d{number}", after, [1.0, 2.0], documents) for number in range(5)]
    alone = cells(
        "main", "task_piqa", [records[0], others[0]], reference="laco", samples=Samples([folders[0], found[0]])
    )
    assert "differs" in alone["m0"].marks
    together = cells(
        "main", "task_piqa", [records[0], *others], reference="laco", samples=Samples([folders[0], *found])
    )
    assert not [cell for cell in together.values() if "differs" in cell.marks]


@pytest.mark.parametrize("how", ["no samples", "other documents", "other metric"])
def test_without_pairs_there_is_no_test_and_a_note(pair, tmp_path, how):
    records, folders, documents = pair
    if how == "no samples":
        folders = [folders[0], None]
    elif how == "other documents":
        folders = [folders[0], sampled(tmp_path / "e", [1] * 100, [9.0] * 8, [f"{one}, another" for one in documents])]
    else:
        records = [records[0], changed(records[1], "measured", "tasks", "piqa", "main", to="acc")]
    (table,) = build_view("per-task", records, "laco", Samples(folders))
    assert not [cell for row in table.rows for cell in row.cells if "differs" in cell.marks]
    assert any(re.match(r"untested: .*: sleb \[piqa", note) for note in table.notes)


def test_answers_that_are_no_right_or_wrong_are_tested_and_the_note_says_how(pair):
    records, folders, _ = pair
    for folder in folders:
        table = pd.read_parquet(folder / "piqa.parquet")
        table["acc_norm"] *= 0.5
        table.to_parquet(folder / "piqa.parquet")
    (table,) = build_view("per-task", records, "laco", Samples(folders))
    (note,) = (note for note in table.notes if note.startswith("†"))
    assert "a normal test on documents, every task weighing alike" in note
    assert "McNemar" not in note
    assert "Student" not in note  # which no column of this table needs


def test_samples_that_cannot_be_read_are_named_in_one_line(tmp_path, capsys):
    run = run_folder(tmp_path / "run", [DENSE, LACO, changed(LACO, "cell", "method", to="sleb")])
    for path in (run / "cells").glob("*.json"):
        (run / "samples" / path.stem).mkdir(parents=True)
        (run / "samples" / path.stem / "piqa.parquet").write_text("half of a file")
    assert main(["report", str(run), "--reference", "laco"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.search(r"piqa\.parquet cannot be read: Parquet magic bytes not found", err)


def test_a_reference_that_several_rows_may_be_has_to_be_named_in_full(pair):
    (layers, other), folders, _ = pair
    exact = changed(layers, "cell", "match", to="exact")
    records, samples = [layers, exact, other], Samples([folders[0], folders[0], folders[1]])
    (table,) = build_view("main", records, "laco", samples)
    assert not [cell for row in table.rows for cell in row.cells if "differs" in cell.marks]
    (note,) = (note for note in table.notes if note.startswith("no reference: "))
    assert "--reference takes one of laco (match exact); laco (match layers)" in note
    (table,) = build_view("main", records, "laco (match exact)", samples)
    marked = {row.label for row in table.rows for cell in row.cells if "differs" in cell.marks}
    assert marked == {"sleb (match layers)"}
    assert any(note.startswith("† differs: ") and ": laco (match exact) [" in note for note in table.notes)
    with pytest.raises(UserError, match=re.escape("there are laco, sleb, laco (match exact)")):
        build_view("main", records, "laco (match other)", samples)


@pytest.mark.parametrize("reference", ["flap", "sleb"])  # failed at that ratio, and measured at another one alone
def test_a_reference_without_figures_is_said(reference):
    sleb = changed(changed(LACO, "cell", "method", to="sleb"), "cell", "ratio", to=0.5)
    flap = changed(sleb, "cell", "method", to="flap")
    records = [DENSE, LACO, failed("error", "flap", "no"), sleb, flap]
    note = f"no reference: {legend.NO_REFERENCE.sentence[:-1]}: {reference} [no figures at ratio 0.3]."
    low, high = build_view("main", records, reference)
    assert (note in low.notes, note in high.notes) == (True, False)
    found = {table.name: table for table in build_view("by-ratio", records, reference)}
    assert note in found["by-ratio-average"].notes
    assert note not in found["by-ratio-decode_speed"].notes  # in which nothing is tested


def test_notes_name_cells_as_their_rows():
    short = changed(LACO, "measured", "ratio", to=LACO.measured.ratio - 0.02)
    exact = changed(short, "cell", "match", to="exact")
    for name in ("main", "by-ratio", "cost"):
        table = build_view(name, [DENSE, short, exact])[0]
        starred = [row.label for row in table.rows if any("missed" in cell.marks for cell in row.cells)]
        assert sorted(starred) == ["laco (match exact)", "laco (match layers)"]
        for label in starred:
            (note,) = [note for note in table.notes if note.startswith("* missed: ")]
            assert len(re.findall(rf"{re.escape(label)}(?: at 0\.3)?(?:,| \[)", note)) == 1


def test_a_recipe_is_of_every_method_only_where_there_is_one():
    healed = {loss: changed(LACO, "cell", "healing", to=RECIPE | {"loss": loss}) for loss in ("kl", "next-token")}
    other = changed(healed["kl"], "cell", "method", to="flap")
    for cells_of, count in (([*healed.values(), other], 0), ([healed["kl"], other], 1)):
        (table,) = build_view("main", [DENSE, *cells_of])
        names = [quantity for quantity, _ in table.protocol if quantity.startswith("healed")]
        assert names == (["healed"] if count else ["healed (loss kl)", "healed (loss next-token)"])


def test_a_mean_of_draws_is_no_reference():
    records = [DENSE, drawn(0, 100.0, 0.3), drawn(1, 200.0, 0.3)]
    (table,) = build_view("main", records, "drop-random")
    assert any(note.endswith(": drop-random [a mean of draws].") for note in table.notes)


# --- renderers


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("name", VIEWS)
def test_html_shows_every_text_as_it_is(name):
    records = [DENSE, LACO, changed(LACO, "cell", "method", to=HOSTILE), failed("error", HOSTILE, HOSTILE)]
    records.append(changed(LACO, "cell", "method", to=f"{HOSTILE}+{HOSTILE}"))
    records = [changed(record, "cell", "display_name", to=HOSTILE) for record in records]
    records += [changed(record, "cell", "seed", to=1) for record in records] * (name == "seeds")
    records += [changed(record, "cell", "model", to=HOSTILE) for record in records] * (name == "models")
    more_tokens = [changed(record, "cell", "protocol", "calibration_sequences", to=64) for record in records]
    records += more_tokens * (name == "calibration")
    records += [changed(LACO, "cell", "method", to=f"{HOSTILE}{n}") for n in range(4)] * (name == "signal")
    records = [with_what_a_view_needs(record, name) for record in records]
    samples, reader = MadeSamples(any_figures), Reader()
    reader.feed(
        markup.render_html(build_view(name, records, samples=samples, served=[made_served.record(HOSTILE, HOSTILE)]))
    )
    known = {"table", "caption", "thead", "tbody", "tr", "th", "td", "data", "strong", "u", "ul", "li"}
    assert set(reader.tags) <= known
    assert any(HOSTILE in text for text in reader.text)


def test_tidy_csv_has_every_figure_in_full_precision():
    tables = build_view("by-ratio", RECORDS)
    lines = list(csv_reader.DictReader(io.StringIO(markup.render_csv(tables))))
    assert len(lines) == sum(len(table.rows) * len(table.columns) for table in tables)
    (found,) = (
        line
        for line in lines
        if (line["label"], line["measure"], line["requested_ratio"]) == ("laco", "perplexity_wiki", "0.3")
    )
    assert [float(found[name]) for name in ("value", "low", "high")] == [343.4, 300.0, 391.0]


def test_tidy_csv_of_ratios_says_what_each_is_of_and_what_failed():
    budget = changed(changed(LACO, "cell", "ratio", to=1 - 0.7), "cell", "ratio_of", to="macs")
    records = [DENSE, budget, FIXED, failed("out_of_memory", "flap", "full")]
    lines = list(csv_reader.DictReader(io.StringIO(markup.render_csv(build_view("by-ratio", records)))))
    columns = ("label", "requested_ratio", "ratio_of", "failure")
    found = {tuple(line[name] for name in columns) for line in lines if line["measure"] == "average"}
    assert ("laco", str(1 - 0.7), "macs", "") in found
    assert ("drop:layers=20-24", "", "", "") in found
    assert ("flap", "0.3", "all", "out of memory") in found


def test_colour_is_only_for_the_eyes():
    for name in VIEWS:
        tables = build_view(name, RECORDS)
        plain, coloured = terminal.render(tables), terminal.render(tables, colour=True)
        assert "\x1b" not in plain
        legends = legend_of(tables)
        stripped = [line for line in re.sub(r"\x1b\[\d*m", "", coloured).splitlines() if line not in legends]
        assert [line.rstrip() for line in stripped if line] == [line for line in plain.splitlines() if line]
    assert "\x1b[1m343 ± 46\x1b[0m" in terminal.render(build_view("main", RECORDS), colour=True)


def test_every_method_at_three_ratios_fits_a_terminal(tmp_path):
    made_grid.write(tmp_path)
    merged = load_runs([tmp_path])
    found = build_views(VIEWS, merged.records, "laco", merged.samples)
    text = "\n".join(terminal.render(tables) for tables in found.values())
    assert max(width_of(line) for line in text.splitlines()) <= terminal.LINE
    assert all(f"\n{method} " in text for method in made_grid.METHODS)
    assert "†" in text


def test_long_words_are_wrapped_and_none_is_lost():
    column = Column("layers", "layers", words=True)
    said = ", ".join(str(number) for number in range(0, 200, 2))
    table = Table("t", "decisions", "m", "", (), (column,), (Row("a", "a", 0.1, (TableCell(said, value=said),)),))
    lines = terminal.render([table]).splitlines()
    assert max(map(len, lines)) <= 100
    assert re.findall(r"\d+", " ".join(lines)) == re.findall(r"\d+", said)


# --- the command


def reported(capsys, *arguments: object) -> tuple[str, str]:
    assert main(["report", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    return out, err


def test_report_merges_runs_that_can_be_compared(tmp_path, capsys):
    later = changed(DENSE, "environment", "date", to="2026-02-02T00:00:00+00:00")
    later = changed(later, "measured", "perplexity", "wiki", "perplexity", to=21.5)
    one, other = run_folder(tmp_path / "one", [DENSE, LACO]), run_folder(tmp_path / "other", [later, SLICEGPT])
    out, err = reported(capsys, one, other)
    assert out.count("\ndense ") == 2  # in the two grids of one table
    assert "21.5" in out
    assert "laco" in out
    assert "slicegpt" in out
    assert "1 cell stands in several runs; of each the newest" in err
    assert reported(capsys, other, one) == reported(capsys, other, one)


def test_a_failed_repetition_does_not_hide_a_measured_cell(tmp_path, capsys):
    late = changed(LACO, "environment", "date", to="2027-01-01T00:00:00+00:00")
    late = replace(late, status="error", error="x", measured={})
    out, _ = reported(capsys, run_folder(tmp_path / "a", [DENSE, LACO]), run_folder(tmp_path / "b", [late]))
    assert "343 ± 46" in out


def test_report_names_the_field_that_keeps_runs_apart(tmp_path, capsys):
    other = [changed(record, "cell", "protocol", "documents", to=200) for record in (DENSE, SLICEGPT)]
    one, other = run_folder(tmp_path / "one", [DENSE, LACO]), run_folder(tmp_path / "other", other)
    out, err = reported(capsys, one, other)
    assert err == (
        "other: cells are not compared with those of one and stand in tables of their own: "
        "protocol.documents is 200, not 100.\n"
    )
    assert out.count("ratio 0.3:") == 2
    assert err.strip().removeprefix("other: ") in reported(capsys, one, other, "--format", "markdown")[0].replace(
        "\\", ""
    )


def test_of_another_model_its_tokens_and_weights_are_not_named(tmp_path, capsys):
    inputs = plain_inputs(tokenizer_sha256="1" * 64)
    other = [with_cell(record, model="other-model", inputs=inputs) for record in (DENSE, SLICEGPT)]
    _, err = reported(capsys, run_folder(tmp_path / "one", [DENSE, LACO]), run_folder(tmp_path / "other", other))
    assert re.search(r"tables of their own: model is \S+, not \S+\.\n$", err), err


def test_two_models_of_one_run_need_no_remark(tmp_path, capsys):
    inputs = plain_inputs(tokenizer_sha256="1" * 64)
    other = [with_cell(record, model="other-model", inputs=inputs) for record in (DENSE, SLICEGPT)]
    out, err = reported(capsys, run_folder(tmp_path / "run", [DENSE, LACO, *other]))
    assert err == ""
    assert out.count("ratio 0.3:") == 2


def test_a_text_more_is_named_once(tmp_path, capsys):
    other = [changed(record, "cell", "protocol", "texts", to=["wiki", "c4"]) for record in (DENSE, SLICEGPT)]
    other = [with_cell(record, inputs=plain_inputs(texts={"wiki": "0" * 64, "c4": "1" * 64})) for record in other]
    here = [with_cell(record, inputs=plain_inputs(texts={"wiki": "0" * 64})) for record in (DENSE, LACO)]
    _, err = reported(capsys, run_folder(tmp_path / "one", here), run_folder(tmp_path / "other", other))
    assert err.endswith("stand in tables of their own: protocol.texts is wiki+c4, not wiki.\n")


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "latex", "html"])
def test_report_writes_every_view_in_every_format(tmp_path, capsys, form):
    folder = run_folder(tmp_path / "run", RECORDS)
    out, err = reported(capsys, folder, "--view", "all", "--format", form)
    assert "10-19, 23" in out
    assert err == ""
    assert "\x1b" not in out


def test_a_view_with_nothing_to_show_says_so(tmp_path, capsys):
    folder = run_folder(tmp_path / "run", [DENSE, LACO])
    assert main(["report", str(folder), "--view", "grid"]) == 2
    out, err = capsys.readouterr()
    assert (out, "run one with it, as in --methods shortgpt+ghost" in err) == ("", True)
    assert "flap+ghost" in reported(capsys, run_folder(tmp_path / "mended", MENDED), "--view", "grid")[0]


def test_report_writes_a_folder(tmp_path, capsys):
    folder = run_folder(tmp_path / "run", [changed(record, "measured", "speed", to={}) for record in (DENSE, LACO)])
    out, err = reported(capsys, folder, "--out", tmp_path / "out", "--reference", "laco")
    found = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"report.md", "report.csv", "report.html", "main-0.3.tex", "by-ratio-kept.tex", "decisions-0.3.tex"} <= found
    assert {f"depth.{kind}" for kind in ("svg", "pdf", "png")} <= found
    assert out == ""
    assert err.splitlines()[-1].endswith("and 6 figures")


def test_a_report_stays_in_its_folder_whatever_a_text_is_called(tmp_path, capsys, monkeypatch):
    """Its figures are empty drawings, since only their names are looked at."""
    empty = b'<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt" viewBox="0 0 1 1"/>'
    monkeypatch.setattr("reports.figures.figure.render_figure", lambda _, kinds=FORMATS: dict.fromkeys(kinds, empty))
    texts = ("../up/wiki.txt", "up-wiki.txt", "..")
    records = [changed(one, "cell", "protocol", "texts", to=list(texts)) for one in MENDED if one.status == "ok"]
    records = [with_measured(one, perplexity=dict.fromkeys(texts, one.measured.text_scores["wiki"])) for one in records]
    folder = run_folder(tmp_path / "run", records)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    reported(capsys, folder, "--out", tmp_path / "a" / "out")
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert {path.parent for path in new} == {tmp_path / "a" / "out", tmp_path / "a" / "out" / "figures"}
    for view_of, count in (("by-ratio-perplexity", 3), ("grid-perplexity", 6), ("grid-gain-perplexity", 0)):
        assert len([path for path in new if path.name.startswith(view_of)]) == count  # none has overwritten another
    assert len([path for path in new if re.fullmatch(r"perplexity-.*-by-method.*\.svg", path.name)]) == 3
    assert len([path for path in new if re.fullmatch(r"perplexity-.*-mended.*\.pdf", path.name)]) == 3


@pytest.mark.parametrize("name", ["=HYPERLINK(0)", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_text_of_a_csv_is_a_formula_and_negative_numbers_stay_numbers(name):
    line = [name, "-0.5", -0.5, "-1e-05", "-inf", "-*", "-0.3 ± 0.1", None, "plain =1"]
    head, found = csv_reader.reader(io.StringIO(markup.csv_of_lines([name, *"abcdefgh"], [line])))
    assert head[0] == found[0]
    assert not found[0].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert found[0].removeprefix("'").replace("\\t", "\t").replace("\\r", "\r") == name
    assert found[1:] == ["-0.5", "-0.5", "-1e-05", "-inf", "-*", "'-0.3 ± 0.1", "", "plain =1"]
    hostile = changed(LACO, "cell", "method", to=name)
    report = csv_reader.DictReader(io.StringIO(to_csv([DENSE, hostile])))
    assert [line["method"] for line in report] == ["dense", found[0]]


def test_a_name_of_a_file_is_in_no_folder_and_no_other_one_has_it():
    names = names_of_files(
        ["a b", "a=b", "a-b", "a-b-2", "..", ".", "", "/", "../x", "größe_1.5+", "a\x00b", ".hidden"]
    )
    assert len(set(names)) == 12
    assert names[:4] == ["a-b", "a-b-2", "a-b-3", "a-b-2-2"]
    assert names[9] == "größe_1.5+"
    assert not [name for name in names if name.startswith(".") or set(name) & set("/\\ \x00") or not name]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reference", "nobody"], "no method 'nobody' to refer to; there are laco, dense"),
        (["--standalone"], "--standalone is about LaTeX"),
        (["--out", "x", "--view", "speed"], "--out writes every view and format"),
        (["--view", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_report_refuses_in_one_line(tmp_path, capsys, arguments, said):
    folder = run_folder(tmp_path / "run", [LACO, DENSE])
    assert main(["report", str(folder), *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "is no run folder" in capsys.readouterr()[1]


def test_report_colours_a_terminal_unless_told_not_to(tmp_path, capsys, monkeypatch):
    folder = run_folder(tmp_path / "run", RECORDS)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "\x1b[1m" in reported(capsys, folder)[0]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in reported(capsys, folder)[0]


def test_what_was_asked_is_not_changed_by_a_report():
    before = copy.deepcopy([asdict(record) for record in RECORDS])
    for name in VIEWS:
        build_view(name, RECORDS)
    assert [asdict(record) for record in RECORDS] == before


def test_a_search_that_ended_before_its_end_is_named():
    def searched(done, **parameters):
        found = changed(LACO, "cell", "method", to="evopress")
        found = replace(found, decisions=found.decisions | {"generations": done, "of_generations": 117})
        return build_view("main", [DENSE, changed(found, "cell", "parameters", to=parameters)])[0].notes

    (note,) = [note for note in searched(10, minutes=2) if note.startswith("ended early: ")]
    assert note.endswith(": evopress [10 of 117 generations in 2 min].")
    assert not any("search" in one for one in [*searched(117, minutes=2), *build_view("main", [DENSE, LACO])[0].notes])


def test_a_missing_measure_has_no_table():
    bare = ok("laco", 0.1, {**measured(PER_LAYER, (1, 2, 3), [], 9.0), "perplexity": {}, "tasks": {}, "speed": {}})
    assert [table.name for table in build_view("by-ratio", [bare])] == []
    assert build_view("decisions", [bare]) == []
