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

from bench.records import run_folder

PAGE = "docs/studies/laco-puzzle.md"
OURS = "laco-puzzle"
OTHERS = (
    *("laco-ls", "2ssp+refit", "puzzle+refit", "puzzle", "obs", "tyr", "evopress"),
    *("2ssp", "llm-streamline", "svd-llm"),
)
RATIOS = (0.2, 0.3)
NUMBERS = ("none", "one", "two", "three", "four", "five", "six")
UNUSED = ROOT / "docs/studies/unused_windows.jsonl"  # made by docs/studies/unused_windows.py


@cache
def prose() -> str:
    """Return the page with a space where it breaks its lines."""
    return " ".join(text(PAGE).split())


@cache
def run() -> run_folder.Merged:
    return run_folder.load_runs([ROOT / "docs/results" / name for name in ("drawn-windows", "later-methods")])


@cache
def places() -> rows_beside.Places:
    """Return which records are of a model at one of the ratios that most is said of."""
    return {place: at for place, at in rows_beside.places(run()).items() if place[1] in RATIOS}


@cache
def rows() -> list[str]:
    return rows_beside.rows(run(), OURS, ("dense", OURS, *OTHERS))


def compact(which: int) -> list[str]:
    """Return the lines of a table of `wiki`, `c4` or answers: ours, and how each other method differs from it."""
    cells: dict[str, list[str]] = {f"`{label}`": [] for label in ("dense", OURS, *OTHERS)}
    for at in range(0, len(rows()), 2 + len(OTHERS)):  # of one model at one ratio
        of = {line.split(" | ")[2]: line.strip("| ").split(" | ")[3 + which] for line in rows()[at : at + 12]}
        for label, own in cells.items():
            own.append(of[label] if label == f"`{OURS}`" else of[label].partition(", ")[2])
    return [f"| {' | '.join([label, *own])} |" for label, own in cells.items()]


@pytest.mark.parametrize("which", [0, 2])
def test_the_tables_are_what_the_records_say(which):
    assert len(rows()) == 9 * 12
    assert "\n".join(compact(which)) in text(PAGE)


def test_every_cell_is_of_as_many_documents_and_windows_as_is_said():
    for one in run().records:
        assert one.status == "ok"
        assert {task.documents for task in one.measured.task_scores.values()} == {100}
        assert all(of.drawn and of.windows == 48 for of in one.measured.text_scores.values())


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


@cache
def seeds_of_gemma(name: str) -> list[str]:
    labels = (OURS, "2ssp+refit", "laco-ls")
    how = {"model": "gemma3-270m", "seeds": (0, 1, 2)}
    return rows_beside.by_seed(lambda seed: of_seeds() if seed else run(), 0.3, labels, name, **how)


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


def beside_ours(label: str, ratio: str) -> dict[str, list[tuple[float, float, float]]]:
    """Return by model what the table says of a method beside ours at a ratio: of `wiki`, of `c4` and of answers."""
    has = [model for model, *_ in places() if f"| {model} | {ratio} | `{label}`" in "".join(rows())]
    return {model: list(map(interval, beside(model, ratio, label))) for model in has}


def times(figures: list[tuple[float, float, float]]) -> str:
    estimates = [estimate for estimate, _, _ in figures]
    return f"{min(estimates):.2f} to {max(estimates):.2f} times"


def test_what_is_said_of_answers():
    assert len(places()) == 6
    said = [line for line in rows() if line.split(" | ")[1] in ("0.2", "0.3")]
    others = [line for line in said if f"`{OURS}`" not in line]
    every = [interval(line.strip("| ").split(" | ")[5].partition(", ")[2]) for line in others]
    assert len(every) == len(said) - len(places()) > 6 * 7
    assert all(estimate > 0 for estimate, *_ in every)
    page, bits = prose(), {}
    for label in ("2ssp+refit", "laco-ls"):
        bits[label] = {(model, at): its[2] for at in ("0.2", "0.3") for model, its in beside_ours(label, at).items()}
        assert len(bits[label]) == 6
    estimates = [estimate for estimate, low, _ in bits["2ssp+refit"].values() if low > 0]
    assert len(estimates) == 6
    assert f"ahead of `2ssp+refit` there, by {min(estimates):.3f} to {max(estimates):.3f} bits per byte" in page
    shown = {place: estimate for place, (estimate, low, _) in bits["laco-ls"].items() if low > 0}
    assert {model for model, _ in shown} == {"smollm2-135m", "gemma3-270m"} and len(shown) == 4
    assert "but it is not shown ahead of `laco-ls` on Qwen" in page


def test_what_the_readme_recommends_at_a_fifth_is_what_the_records_say():
    at = {place: label for place, label in places().items() if place[1] == 0.2}
    assert {len({OURS, *OTHERS} & set(labels)) for labels in at.values()} == {1 + len(OTHERS)} == {11}
    for labels in at.values():
        bits = {label: rows_beside.figure(run(), labels[label], "answers") for label in (OURS, *OTHERS)}
        assert min(bits, key=bits.__getitem__) == OURS
    words = f"With a quarter of the calibration it is first of eleven on {NUMBERS[len(at)]} models, by one draw each."
    assert words in text("README.md")


def test_what_is_said_of_a_tenth():
    lines = [line for line in rows() if line.startswith("| smollm2-135m | 0.1 |")]
    ours, *others = lines
    assert f"`{OURS}`" in ours and len(others) == 10
    figures = [[interval(cell.partition(", ")[2]) for cell in line.strip("| ").split(" | ")[3:]] for line in others]
    assert all(wiki[1] > 1 and c4[1] > 1 and bits[1] > 0 for wiki, c4, bits in figures)


@cache
def below_ours_at_a_tenth(model: str) -> list[dict[str, float]]:
    """Return what is shown to be below ours on `wiki`, on `c4` and by answers, by how much."""
    found: list[dict[str, float]] = [{}, {}, {}]
    for line in (line for line in rows() if line.startswith(f"| {model} | 0.1 |") and f"`{OURS}`" not in line):
        for its, cell, none in zip(found, line.strip("| ").split(" | ")[3:], (1, 1, 0), strict=True):
            estimate, _, high = interval(cell.partition(", ")[2])
            if high < none:
                its[line.split("`")[1]] = estimate
    return found


def test_what_is_said_of_a_tenth_on_the_other_models():
    page = prose()
    assert below_ours_at_a_tenth("smollm2-135m") == [{}, {}, {}]
    wiki, c4, answers = below_ours_at_a_tenth("gemma3-270m")
    fewer = ", ".join(f"`{label}` {-bits:.3f}" for label, bits in sorted(answers.items(), key=lambda one: one[1]))
    assert not wiki and f"| Gemma | {fewer} | `puzzle+refit` {c4.pop('puzzle+refit'):.2f} on `c4` |" in page
    assert (len(answers), sum(line.startswith("| gemma3-270m | 0.1 |") for line in rows())) == (5, 11)
    assert not c4
    wiki, c4, answers = below_ours_at_a_tenth("qwen2.5-coder-0.5b")
    assert wiki.keys() == c4.keys() == {"laco-ls"} and len({f"{one['laco-ls']:.2f}" for one in (wiki, c4)}) == 1
    fewer = ", ".join(f"`{label}` {-bits:.3f}" for label, bits in sorted(answers.items(), key=lambda one: one[1]))
    assert answers.keys() == {"llm-streamline", "evopress"}
    assert f"| Qwen | {fewer} | `laco-ls` {wiki['laco-ls']:.2f} on both texts |" in page
    ours = [one for one in run().records if (one.cell.label, one.cell.ratio) == (OURS, 0.1)]
    gone = {one.cell.model: len(one.decisions["removed_layers"]) for one in ours}
    assert gone == dict(zip(rows_beside.MODELS, (2, 1, 1), strict=True))
    assert "**At 0.1 one layer collapses, on SmolLM2 two.**" in page


def test_what_is_said_of_perplexity_at_the_larger_ratio():
    page, layers = prose(), beside_ours("laco-ls", "0.3")
    every = [pair for its in layers.values() for pair in its[:2]]
    assert len(every) == 6 and all(low > 1 for _, low, _ in every)
    assert f"At 0.3 `laco-ls` has {times(every)} its perplexity, shown on three models and both texts" in page
    widths = beside_ours("2ssp+refit", "0.3")
    shown = [pair for its in widths.values() for pair in its[:2] if pair[1] > 1]
    assert len(shown) == 5
    assert f"In five of six comparisons of perplexity `2ssp+refit` is ({times(shown)})" in page
    _, low, high = widths["gemma3-270m"][0]
    assert low < 1 < high
    program = {
        (model, which): its[which] for model, its in beside_ours("puzzle+refit", "0.3").items() for which in (0, 1)
    }
    shown = {place: pair for place, pair in program.items() if pair[1] > 1}
    assert shown.keys() == {("qwen2.5-coder-0.5b", 0), ("qwen2.5-coder-0.5b", 1), ("gemma3-270m", 1)}
    assert not [pair for pair in program.values() if pair[2] < 1] and len(program) == 6
    said = f"In three of six `puzzle+refit` is ({times(list(shown.values()))}), and none is shown the other way"
    assert said in page


def test_what_is_said_of_perplexity_at_the_smaller_ratio():
    page, layers, widths = prose(), beside_ours("laco-ls", "0.2"), beside_ours("2ssp+refit", "0.2")
    every = [pair for its in layers.values() for pair in its[:2]]
    above, below = (sum(low > 1 for _, low, _ in every), sum(high < 1 for *_, high in every))
    assert (above, below) == (2, 0)
    assert f"At 0.2 layers alone are as good by perplexity, since `laco-ls` has {times(every)} its own" in page
    del widths["gemma3-270m"]
    others = [pair for its in widths.values() for pair in its[:2]]
    assert len(others) == 4 and all(low > 1 for _, low, _ in others)
    assert f"`2ssp+refit` has {times(others)} on SmolLM2 and Qwen, shown each time." in page


def test_what_is_said_of_the_program_with_a_refit_at_the_smaller_ratio():
    its = {model: pairs[:2] for model, pairs in beside_ours("puzzle+refit", "0.2").items()}
    every = [pair for pairs in its.values() for pair in pairs]
    assert len(every) == 6 and not [pair for pair in every if pair[1] > 1]
    (below,) = (pair for pair in every if pair[2] < 1)
    assert below == its["gemma3-270m"][0]
    assert f"`puzzle+refit` has {times(every)}, and one pair of six shows it below" in prose()


def test_what_is_said_of_a_layer_that_is_trained_and_of_low_rank():
    page, trained = prose(), beside_ours("llm-streamline", "0.2")
    near = [estimate for model in ("smollm2-135m", "qwen2.5-coder-0.5b") for estimate, *_ in trained[model][:2]]
    assert f"within {max(near):.2f} times of `laco-puzzle` on SmolLM2 and Qwen" in page
    ((far, *_), *_), ((farthest, *_), *_) = trained["gemma3-270m"], beside_ours("llm-streamline", "0.3")["smollm2-135m"]
    assert f"On Gemma it has {far:.1f} times its perplexity on `wiki`" in page
    assert f"and at 0.3 {farthest:.0f} times on SmolLM2" in page
    last = [
        line.split("`")[1]
        for line, after in zip(rows(), [*rows()[1:], "| - | `dense`"], strict=True)
        if "| - |" in after
    ]
    assert len(last) == 9 == last.count("svd-llm") + 1  # at 0.1 too
    assert last[2] == "llm-streamline" and "It is the last, but for `llm-streamline` at 0.3 of SmolLM2" in page


def test_what_is_said_of_a_search_on_the_tokens_that_matrices_are_solved_on():
    page = prose()
    widths = {
        place: rows_beside.figure(run(), at["tyr"], "wiki") / rows_beside.figure(run(), at["obs"], "wiki")
        for place, at in rows_beside.places(run()).items()
        if "tyr" in at
    }
    said = f"has {min(widths.values()):.2f} to {max(widths.values()):.2f} times the perplexity of `obs` on `wiki`"
    assert len(widths) == 9 and said in page
    its = [one for one in run().records if one.cell.label == "tyr"]
    (calibration,) = {one.cell.protocol.calibration_sequences * one.cell.protocol.calibration_length for one in its}
    there, elsewhere = [one.decisions["kl"][-1] for one in its], [one.measured.checks.kl for one in its]
    factors = [other / own for own, other in zip(there, elsewhere, strict=True)]
    assert f"ends at {min(there):.3f} to {max(there):.3f} nats on the tokens that it compares by" in page
    assert f"On other text it is {min(factors):.0f} to {max(factors):.0f} times as much" in page
    assert f"and it reads {calibration:,} here" in page


def test_what_is_said_of_three_draws_on_the_other_model():
    """By wiki, c4 and answers: by how many draws ours is shown in front of another, and the other in front of ours."""
    found, page = dict[tuple[str, str], tuple[int, int]](), prose()
    for name in ("wiki", "c4", "answers"):
        ours, *others = (line.strip("| ").split(" | ") for line in seeds_of_gemma(name))
        for label, *cells, _ in others:
            none = 0 if name == "answers" else 1
            figures = [interval(cell.partition(", ")[2]) for cell in cells]
            shown = sum(low > none for _, low, _ in figures), sum(high < none for *_, high in figures)
            found[name, label.strip("`")] = shown
            behind = [float(cell.split(",")[0]) > float(one) for cell, one in zip(cells, ours[1:4], strict=True)]
            assert all(behind) or (name, label) == ("wiki", "`2ssp+refit`")
    assert found == {
        **{("wiki", "2ssp+refit"): (0, 1), ("wiki", "laco-ls"): (3, 0)},
        **{("c4", "2ssp+refit"): (2, 0), ("c4", "laco-ls"): (3, 0)},
        **{("answers", "2ssp+refit"): (2, 0), ("answers", "laco-ls"): (2, 0)},
    }
    assert "On Gemma they are behind by each of three draws on `c4` and by answers." in page
    assert "On `wiki` of Gemma `2ssp+refit` is shown ahead by one draw of three." in page


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
    assert f"({third} on `wiki` in place of {at['0.67']})" in prose()
