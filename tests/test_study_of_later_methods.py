"""What the study of three models says of methods that came after its grid is what their records say."""

from __future__ import annotations

from functools import cache

import rows_beside
from pages import ROOT, text

from bench.records import run_folder

PAGE = "docs/studies/models.md"
BASE = "2ssp+refit"


@cache
def run():
    return run_folder.load_runs([ROOT / "docs/results/later-methods"])


@cache
def rows() -> list[str]:
    return rows_beside.rows(run(), BASE)


def test_the_table_is_what_the_records_say():
    assert len(rows()) > 10
    assert "\n".join(rows()) in text(PAGE)
    for one in run().records:
        assert one.status == "ok"
        assert {task["documents"] for task in one.measured["tasks"].values()} == {100}
        assert all(of["drawn"] and of["windows"] == 48 for of in one.measured["perplexity"].values())


def test_what_is_said_of_the_control_of_low_rank():
    last = {}
    for at, its in rows_beside.places(run()).items():
        if "svd-llm" in its:
            by_wiki = [line.split("`")[1] for line in rows() if line.startswith(f"| {at[0]} | {at[1]} |")]
            last[at] = by_wiki[-1]
    assert last == {
        ("smollm2-135m", 0.2): "svd-llm",
        ("smollm2-135m", 0.3): "llm-streamline",
        ("gemma3-270m", 0.2): "svd-llm",
    }


def test_what_is_said_of_a_layer_that_is_trained():
    """In front of the other by each figure on two models, and behind it by so many times elsewhere."""
    by_place = dict[tuple[str, str], list[str]]()
    for line in rows():
        model, ratio, label, *figures = line.strip("| ").split(" | ")
        if label == "`llm-streamline`":
            by_place[model, ratio] = [figure.partition(", ")[2] for figure in figures]
    for model in ("smollm2-135m", "qwen2.5-coder-0.5b"):
        wiki, c4, bits = by_place[model, "0.2"]
        assert wiki.startswith("0.") and c4.startswith("0.") and bits.startswith("-")
    many = [by_place[at][0].split()[0] for at in (("gemma3-270m", "0.2"), ("smollm2-135m", "0.3"))]
    assert (
        f"on Gemma it has {float(many[0]):.1f} times its perplexity, and at 0.3 on SmolLM2 {float(many[1]):.0f}"
        in text(PAGE)
    )
