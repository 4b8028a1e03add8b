"""The study of departures from the authors' code says what its records and the model's shapes say."""

from __future__ import annotations

import json
import re

import pytest
from made_samples import paired_perplexity
from pages import DOCS, tables, text

from bench.records import run_folder

RESULTS = DOCS / "results"
RUNS = ("departures", "departures-seeds")


def page() -> dict[str, list[list[str]]]:
    """Return the rows of each table by its first head, without backticks."""
    return {
        found[0][0]: [[cell.replace("`", "") for cell in row] for row in found]
        for found in tables(text("docs/studies/departures.md"))
    }


def decisions(method: str) -> dict[float, dict]:
    """Return what a method decided, by its ratio."""
    found = run_folder.read_records(RESULTS / "departures").values()
    return {one.cell.ratio: one.decisions for one in found if one.cell.label == method}


def windows() -> dict[tuple[str, float, int], tuple[list[float], list[float]]]:
    """Return the nats and tokens of each window of wiki by label, ratio and seed."""
    found = {}
    for run in RUNS:
        records = run_folder.read_records(RESULTS / run)
        for key, rows in run_folder.samples(RESULTS / run, "perplexity-wiki").groupby("cell"):
            cell = records[key].cell
            found[cell.label, cell.ratio, cell.seed] = (list(rows["nll"]), list(rows["tokens"]))
    return found


def times(found: dict, one: tuple[str, float, int], other: tuple[str, float, int]) -> str:
    """Return how many times the perplexity of `one` the `other` has, with its interval in pairs of windows."""
    if one not in found or other not in found:
        return "-"
    (before, tokens), (after, same) = found[one], found[other]
    assert tokens == same
    ratio = paired_perplexity(before, after, tokens, in_a_row=True)
    return " ".join(f"{figure:.3f}" for figure in (ratio.estimate, ratio.low, ratio.high))


def test_the_quotients_are_those_of_the_windows():
    found = windows()
    (_, _, *ratios), *lines = page()["as the code"]
    for label, over, *shown in lines:
        plain = [re.sub(r"[\[\],]", "", cell) for cell in shown]
        assert plain == [times(found, (over, float(r), 0), (label, float(r), 0)) for r in ratios], label


def test_the_quotients_over_seeds_are_those_of_the_windows():
    found = windows()
    (_, _, _, *seeds), *lines = page()["as the code, over seeds"]
    assert seeds == ["seed 0", "seed 1", "seed 2"]
    for label, over, ratio, *shown in lines:
        plain = [re.sub(r"[\[\],]", "", cell) for cell in shown]
        assert plain == [times(found, (over, float(ratio), n), (label, float(ratio), n)) for n in range(3)], label


def test_the_ends_that_ports_and_code_keep_change_no_choice_on_the_default_model():
    for ratio, found in decisions("shortened-llama").items():
        inner = sorted(range(4, 28), key=found["scores"].__getitem__)
        assert sorted(inner[: len(found["removed_layers"])]) == found["removed_layers"], ratio
    for ratio, found in decisions("angular").items():
        distances = found["distances"]
        assert min(range(len(distances)), key=distances.__getitem__) == found["removed_layers"][0], ratio


def test_the_excluded_front_of_finercut_comes_back_behind_every_removal_here():
    lines = (RESULTS / "departures/records.jsonl").read_text(encoding="utf-8").splitlines()
    orders = [
        one["decisions"]["removal_order"] for one in map(json.loads, lines) if one["cell"]["method"] == "finercut"
    ]
    assert orders
    assert max(map(len, orders)) < int(60 * 0.4) + 1
    assert int(60 * 0.4 / 2) + 1 == 13


LAYERS, HEADS, CHANNELS, HEAD, CHANNEL, WHOLE = 30, 3, 1536, 294_912, 1_728, 134_515_008  # of the default model


def code_cut(share: float) -> tuple[int, int, float]:
    """Return the heads and channels that go from a layer, and the share of the model, if the code rounds both down."""
    heads, channels = int(share * HEADS), int(share * CHANNELS)
    return heads, channels, LAYERS * (heads * HEAD + channels * CHANNEL) / WHOLE


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3])
def test_the_widths_of_wanda_sp_as_the_code_rounds(ratio):
    counts = decisions("wanda-sp")[ratio]["removed_per_layer"]
    share = (counts["channels"] + 0.5) / CHANNELS
    cut = code_cut(share)
    same = (counts["kv_heads"], counts["channels"]) == cut[:2]
    assert same == (ratio != 0.2)
    if not same:
        below, at = code_cut(1 / HEADS - 1e-9), code_cut(1 / HEADS)
        said = [f"{100 * one[2]:.1f} %" for one in (below, at)]
        assert re.search(
            rf"no head and {below[1]} channels \({said[0]}\).*a head and {at[1]} \({said[1]}\)",
            text("docs/studies/departures.md"),
        )


def test_llm_pruner_meets_the_ratios_with_the_codes_own_rounding():
    assert [found["closed_by_channels"] for found in decisions("llm-pruner").values()] == [False] * 3


def test_two_ssp_removes_the_codes_number_of_attentions():
    A, M = 884_736, 2_654_208
    for found in decisions("2ssp").values():
        p = (WHOLE - found["parameters"]) / (LAYERS * (A + M + 1_152))
        assert round(LAYERS * p ** (M / A / 1.5)) == found["attentions"]
