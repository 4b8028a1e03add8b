"""The study of layers that do the work of their neighbours says what its records say."""

from __future__ import annotations

from functools import cache

import pytest
from pages import load_program, measure, report, tables, text
from tested_run import load_run

from bench.records.measured import ANSWER_BPB

PAGE, OURS, TRAINED = "docs/studies/laco-ls.md", "laco-ls", "llm-streamline"
RATIOS = (0.2, 0.3)
COLUMNS = ("perplexity `wiki`", "perplexity `c4`", "KL", "answer bpb", "average", "pruned in")


@cache
def labels() -> tuple[str, ...]:
    """Return the methods that the picture has, which the tables have too."""
    return tuple(load_program("studies/figures.py").LAYERS)


@cache
def shown() -> dict[tuple[str, str, str], str]:
    """Return what the report prints, by measure, method and ratio, with daggers beside ours."""
    lines = report("grid", view="by-ratio", reference=OURS, model="smollm2-135m")
    return {
        (line["measure"], line["label"], line["requested_ratio"]): (
            line["shown"].rstrip("†") if line["measure"] == "prune_seconds" else line["shown"]
        )
        for line in lines
    }


def rows(ratio: float) -> list[str]:
    """Return the lines of the table of a ratio, that of the lowest perplexity on Wikipedia first."""
    order = [label for label in load_run("grid").order(ratio, "perplexity_wiki") if label in labels()]
    lines = [f"| at {ratio} | {' | '.join(COLUMNS)} |", "| --- " * (1 + len(COLUMNS)) + "|"]
    for label in ("dense", *order):
        cells = [shown()[measure(column), label, str(ratio)] for column in COLUMNS]
        lines.append(f"| `{label}` | {' | '.join(cells)} |")
    return lines


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_tables_are_what_the_records_say(ratio):
    assert "\n".join(rows(ratio)) in text(PAGE)
    assert len([table for table in tables(text(PAGE)) if table[0][0].startswith("at ")]) == len(RATIOS)


def test_what_is_said_is_what_the_records_say():
    run, page = load_run("grid"), " ".join(text(PAGE).split())
    unfitted = [label for label in labels() if label not in (OURS, TRAINED)]
    assert len(labels()) == 9
    next_ones = []
    for ratio in RATIOS:
        for column in ("perplexity_wiki", "perplexity_c4", ANSWER_BPB):
            assert {*unfitted}.isdisjoint(run.unshown(ratio, OURS, column)), (ratio, column)
        next_ones.append(next(label for label in run.order(ratio, "perplexity_wiki") if label in unfitted))
    values = [
        run.value(ratio, label, "perplexity_wiki") / run.value(ratio, OURS, "perplexity_wiki")
        for ratio, label in zip(RATIOS, next_ones, strict=True)
    ]
    assert f"`{next_ones[0]}`, the next without a fit at 0.2, has {values[0]:.2f} times its perplexity." in page
    assert f"At 0.3 `{next_ones[1]}` is the next without a fit, with {values[1]:.2f} times its perplexity." in page
    assert run.value(0.3, TRAINED, "perplexity_wiki") > 2 * run.value(0.3, OURS, "perplexity_wiki")
    for ratio in (0.1, *RATIOS):
        places = [label for label in run.order(ratio, "perplexity_wiki") if label in labels()]
        assert OURS in places[:2]  # as the picture says
    apart = [label for label in labels() if shown()["average", label, "0.2"].endswith("†")]
    assert apart == ["laco-published"]
    assert "By accuracy it differs at 0.2 from `laco-published` alone." in page


def test_what_is_said_of_layers_is_what_the_records_say():
    records = load_run("grid").merged.records
    gone = {one.cell.ratio: len(one.decisions["removed_layers"]) for one in records if one.cell.label == OURS}
    assert f"{gone[0.2]} of 30 layers go at 0.2 of the decoder, {gone[0.3]} at 0.3" in text(PAGE)
