"""The study of layers that collapse while others are narrowed says what its records say."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import rows_beside
from pages import ROOT, text

from bench.records import run_folder
from bench.stats.clusters import paired_perplexity

PAGE = "docs/studies/laco-puzzle.md"
OURS = "laco-puzzle"
UNUSED = ROOT / "docs/studies/unused_windows.jsonl"  # made by docs/studies/unused_windows.py


@cache
def run() -> run_folder.Merged:
    return run_folder.load_runs([ROOT / "docs/results/laco-puzzle"])


@cache
def rows() -> list[str]:
    return rows_beside.rows(run(), OURS)


def test_the_table_is_what_the_records_say():
    assert "\n".join(rows()) in text(PAGE)
    for one in run().records:
        assert one.status == "ok"
        assert {task["documents"] for task in one.measured["tasks"].values()} == {100}
        assert all(of["drawn"] and of["windows"] == 48 for of in one.measured["perplexity"].values())


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


@cache
def of_seeds() -> run_folder.Merged:
    return run_folder.load_runs([ROOT / "docs/results" / name for name in ("drawn-seeds", "laco-puzzle-seeds")])


@cache
def seeds(name: str) -> list[str]:
    labels = (OURS, "2ssp+refit", "laco-ls")
    return rows_beside.by_seed(lambda seed: of_seeds() if seed else run(), 0.3, labels, name)


@pytest.mark.parametrize("name", ["wiki", "c4"])
def test_the_table_of_seeds_is_what_the_records_say(name):
    assert "\n".join(seeds(name)) in text(PAGE)


def beside(model: str, ratio: str, label: str) -> list[str]:
    """Return what the table says of a method beside ours: of `wiki`, of `c4` and of answers, each with its interval."""
    (line,) = (one for one in rows() if one.startswith(f"| {model} | {ratio} | `{label}`"))
    return [figure.partition(", ")[2] for figure in line.strip("| ").split(" | ")[3:]]


def interval(figure: str) -> tuple[float, float, float]:
    estimate, low, high = figure.replace("[", "").replace("]", "").replace(",", "").split()
    return float(estimate), float(low), float(high)


def test_what_is_said_of_answers():
    every = [line.split("`")[1] for line in rows()]
    assert every.count("laco-ls") == every.count("2ssp+refit") == every.count(OURS) == 4
    more = [interval(line.strip("| ").split(" | ")[5].partition(", ")[2]) for line in rows() if "+" in line[-30:]]
    assert len(more) == len([label for label in every if label not in ("dense", OURS)])
    assert all(low > 0 for _, low, _ in more)
    estimates = [estimate for estimate, _, _ in more]
    assert f"the others have {min(estimates):.3f} to {max(estimates):.3f} bits per byte more" in text(PAGE)


def test_what_is_said_of_perplexity():
    page, smol, gemma = text(PAGE), "smollm2-135m", "gemma3-270m"
    for label in ("laco-ls", "2ssp+refit"):
        assert all(interval(figure)[1] > 1 for figure in beside(smol, "0.3", label)[:2])
    at = [interval(figure) for figure in beside(smol, "0.3", "puzzle+refit")[:2]]
    assert all(low < 1 < estimate < high for estimate, low, high in at)
    ours = next(line for line in rows() if line.startswith(f"| {smol} | 0.3 | `{OURS}`")).split(" | ")
    for name in (PAGE, "README.md"):
        assert ours[3] in text(name) and ours[4] in text(name)
    assert f"{ours[3]} on `wiki` and {ours[4]} on `c4`, on both texts shown below" in page
    four = [interval(figure) for ratio in ("0.2", "0.3") for figure in beside(gemma, ratio, "laco-ls")[:2]]
    assert sum(low > 1 for _, low, _ in four) == 3
    assert f"({min(four)[0]:.2f} to {max(four)[0]:.2f} times as high, of which the pair shows three of four)" in page
    wiki, c4 = ([beside(gemma, ratio, "2ssp+refit")[n].split()[0] for ratio in ("0.2", "0.3")] for n in (0, 1))
    assert len(set(wiki)) == 1 and f"`wiki` says {wiki[0]} times and `c4` {c4[0]} and {c4[1]}." in page
    widths, layers = (beside(smol, "0.2", label)[:2] for label in ("puzzle+refit", "laco-ls"))
    said = [figure.split()[0] for figure in (*widths, *layers)]
    assert f"has {said[0]} and {said[1]} times its own, and `laco-ls` {said[2]} and {said[3]} times" in page
    assert interval(layers[1])[1] > 1 and all(low <= 1 <= high for _, low, high in map(interval, (*widths, layers[0])))


def test_what_is_said_of_four_draws():
    for name in ("wiki", "c4"):
        (_, *others) = seeds(name)
        figures = [cell.partition(", ")[2] for line in others for cell in line.strip("| ").split(" | ")[1:5]]
        assert len(figures) == 8
        assert all(interval(figure)[1] > 1 for figure in figures)


def test_what_is_said_of_shares():
    at = {line.split(" | ")[2]: line.split(" | ")[4] for line in shares() if line.startswith("| 0.2 | 0 |")}
    third, nothing = (at[share].split(",")[0] for share in ("0.33", "0"))
    assert third == nothing
    assert f"({third} on `wiki` in place of {at['0.67']})" in text(PAGE)
