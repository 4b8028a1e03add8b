"""The study of layers that collapse while others are narrowed says what its records say."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import rows_beside
from made_samples import paired_perplexity
from pages import ROOT, text
from rows_beside import ANSWERS, MODELS, places
from tested_run import load_run

from bench.records import run_folder
from bench.records.measured import ANSWER_BPB

PAGE = "docs/studies/laco-puzzle.md"
OURS = "laco-puzzle"
OTHERS = (
    *("laco-ls", "puzzle+refit", "2ssp+refit", "llm-pruner+refit", "flap+refit", "llm-streamline"),
    *("2ssp", "obs", "sleb", "shortgpt"),
)
RATIOS = (0.1, 0.2, 0.3)
UNUSED = ROOT / "docs/studies/unused_windows.jsonl"  # made by docs/studies/unused_windows.py


@cache
def prose() -> str:
    """Return the page with a space where it breaks its lines."""
    return " ".join(text(PAGE).split())


@cache
def run() -> run_folder.Merged:
    return run_folder.load_runs([ROOT / "docs/results/grid"])


def columns() -> list[tuple[str, float]]:
    """Return the models and ratios of the tables: those at which ours was measured."""
    pairs = [(model, ratio) for model in MODELS for ratio in RATIOS]
    return [pair for pair in pairs if OURS in places(run(), *pair)]


def cell(model: str, ratio: float, label: str, name: str) -> str:
    """Write the figure of ours, or how another one differs from it; "-" where it was not measured."""
    at = places(run(), model, ratio)
    if label not in at:
        return "-"
    if label == OURS:
        return rows_beside.words_of_figure(rows_beside.figure(run(), at[OURS], name), name)
    return rows_beside.words_beside(run(), (at[OURS], at[label]), name)


def rows(name: str) -> list[str]:
    """Return the lines of a table of `wiki` or of answers: ours, and how each other method differs from it."""
    heads = [f"{MODELS[model]} {ratio}" for model, ratio in columns()]
    lines = [f"| method | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    for label in ("dense", OURS, *OTHERS):
        lines.append(f"| `{label}` | {' | '.join(cell(*place, label, name) for place in columns())} |")
    return lines


@pytest.mark.parametrize("name", ["wiki", ANSWERS])
def test_the_tables_are_what_the_records_say(name):
    assert len(columns()) >= 4
    assert "\n".join(rows(name)) in text(PAGE)


DRAWS = range(3)
DRAWN = ("laco-ls", "llm-streamline", "flap", "2ssp+refit")  # that were measured by three draws


@cache
def draws() -> run_folder.Merged:
    return run_folder.load_runs([ROOT / f"docs/results/{name}" for name in ("grid", "grid-draws")])


def rows_of_draws(name: str) -> list[str]:
    """Return the lines of a table of draws of SmolLM2 at 0.2: ours, and how each other method differs from it."""
    lines = ["| method | seed 0 | seed 1 | seed 2 | mean |", "| --- | --- | --- | --- | --- |"]
    return lines + rows_beside.rows_by_seed(draws(), ("smollm2-135m", 0.2), (OURS, *DRAWN), name, DRAWS)


@pytest.mark.parametrize("name", ["wiki", ANSWERS])
def test_the_tables_of_draws_are_what_the_records_say(name):
    assert "\n".join(rows_of_draws(name)) in text(PAGE)


def test_what_is_said_of_draws():
    page, bits = prose(), []
    below = dict[str, list[tuple[float, float, float]]]()
    for seed in DRAWS:
        at = places(draws(), "smollm2-135m", 0.2, seed)
        bits.append(rows_beside.figure(draws(), at[OURS], ANSWERS))
        for label in DRAWN:
            assert rows_beside.beside(draws(), (at[OURS], at[label]), ANSWERS)[1] > 0
            below.setdefault(label, []).append(rows_beside.beside(draws(), (at[OURS], at[label]), "wiki"))
    assert [label for label, pairs in below.items() if all(high < 1 for *_, high in pairs)] == ["llm-streamline"]
    ends = [f"{end(estimate for estimate, *_ in below['llm-streamline']):.2f}" for end in (min, max)]
    assert f"by each, with {ends[0]} to {ends[1]} times its own." in page
    assert f"`laco-puzzle` has {min(bits):.3f} to {max(bits):.3f} bits." in page
    assert "at 0.2, `laco-ls` and three others are shown behind it each time." in page
    assert "Four are behind it by each of three draws." in text("README.md")


def beside(label: str, name: str, *of: tuple[str, float]) -> list[tuple[float, float, float]]:
    """Return how a method differs from ours at some models and ratios, with 95 % intervals."""
    pairs = [(places(run(), *place)[OURS], places(run(), *place)[label]) for place in of]
    return [rows_beside.beside(run(), pair, name) for pair in pairs]


SMOL = [("smollm2-135m", ratio) for ratio in RATIOS]


def test_what_is_said_of_its_parts():
    page = prose()
    for label, words in (
        ("laco-ls", "`laco-ls`, which only collapses layers, has {} to {} more bits per byte"),
        ("puzzle+refit", "`puzzle+refit`, which only narrows them, has {} to {}"),
    ):
        figures = beside(label, ANSWERS, *SMOL)
        assert all(low > 0 for _, low, _ in figures)
        ends = (f"{end(estimate for estimate, *_ in figures):.3f}" for end in (min, max))
        assert words.format(*ends) in page
    for ratio in RATIOS:
        assert {"laco-ls", "puzzle+refit"}.isdisjoint(load_run("grid").unshown(ratio, OURS, ANSWER_BPB))


def test_what_is_said_of_perplexity():
    page = prose()
    (few, equal, more) = (beside("laco-ls", "wiki", place)[0] for place in SMOL)
    assert few[1] > 1 and more[1] > 1 and equal[1] < 1 < equal[2]
    assert "At 0.2 `laco-ls` has the same perplexity" in page and f"{equal[0]:.2f}" == "1.00"
    assert f"At 0.3 it has {more[0]:.2f} times that. At 0.1 it has {few[0]:.2f} times." in page
    (narrowed,) = beside("puzzle+refit", "wiki", SMOL[2])
    assert narrowed[1] < 1 < narrowed[2]
    assert "By perplexity `puzzle+refit` is not shown behind at 0.3." in page


def test_what_is_said_of_a_layer_that_is_trained():
    page, label = prose(), "llm-streamline"
    near = [f"{estimate:.2f}" for estimate, *_ in beside(label, "wiki", *SMOL)]
    words = "It has {} times the perplexity at 0.1, and {} at a ratio of a fifth. At 0.3 it has {} times it."
    assert words.format(*near) in page
    (far,) = beside(label, "wiki", ("gemma3-270m", 0.2))
    assert f"On Gemma it has {far[0]:.2f} times it at 0.2." in page


def test_what_is_said_of_the_layers_that_collapse():
    every = (run().records[places(run(), *place)[OURS]].decisions["removed_layers"] for place in SMOL)
    assert [len(removed) for removed in every] == [2, 4, 6]
    assert "Two layers collapse at 0.1, four at 0.2 and six at 0.3." in prose()


def test_what_is_said_of_the_other_models():
    for model in list(MODELS)[1:]:
        other = load_run("grid", model)
        first = other.order(0.2, ANSWER_BPB)[0]
        assert {OURS, "laco-ls"} <= {first, *other.unshown(0.2, first, ANSWER_BPB)}
        assert "laco-ls" in other.unshown(0.2, OURS, ANSWER_BPB) or first == "laco-ls"
    assert "On Gemma and Qwen, at 0.2, it is not told apart from `laco-ls`." in prose()


@cache
def shares() -> list[str]:
    """Return a row for each share of each budget and draw: layers that collapse, and figures beside two thirds."""
    found: dict[tuple[float, int], dict[str, dict[str, Any]]] = {}
    for line in map(json.loads, UNUSED.read_text(encoding="utf-8").splitlines()):
        found.setdefault((line["ratio"], line["seed"]), {})[line["method"]] = line
    lines = []
    for (ratio, seed), its in sorted(found.items()):
        for method, line in its.items():
            words = [f"{ratio}", f"{seed}", method.partition("=")[2] or "0.67", f"{len(line['removed_layers'])}"]
            for name in ("wiki", "c4"):
                words.append(f"{line[name]['perplexity']:.1f}")
                if method != OURS:
                    nll = [np.array(one[name]["nll"]) for one in (its[OURS], line)]
                    pair = paired_perplexity(*nll, np.ones(len(nll[0])))
                    words[-1] += f", {pair.estimate:.2f} [{pair.low:.2f}, {pair.high:.2f}]"
            lines.append(f"| {' | '.join(words)} |")
    return lines


def test_the_table_of_shares_is_what_the_script_wrote():
    assert len(shares()) >= 8
    assert "\n".join(shares()) in text(PAGE)


def test_what_is_said_of_shares():
    at = {line.split(" | ")[2]: line.split(" | ")[4] for line in shares() if line.startswith("| 0.2 | 0 |")}
    third, nothing = (at[share].split(",")[0] for share in ("0.33", "0"))
    assert third == nothing
    assert f"({third} on `wiki` in place of {at['0.67']})" in prose()
