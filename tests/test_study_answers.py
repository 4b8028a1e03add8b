"""Studies have one form, and what they answer is what their records say."""

from __future__ import annotations

import math
import re

import pytest
from pages import ROOT, report, sentences, tables, text

from bench.records import run_folder

STUDIES = ("calibration", "ratio-curves", "seeds")
NUMBER = re.compile(r"(?<![\w.,-])[-+]?\d[\d,.]*(?!\d*[A-Za-z])")


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_a_question_an_answer_a_picture_and_a_method(name):
    """The answer is the paragraph that begins in bold; a picture stands below it."""
    title, question, answer, picture, method, *_ = re.split(r"\n\n+", text(f"docs/studies/{name}.md"))
    assert title.startswith("# ")
    assert len(sentences(question)) <= 2
    assert re.match(r"\*\*[^*]+\*\*", answer)
    assert len(sentences(answer)) <= 5
    assert re.fullmatch(r"!\[[^\]]{30,}\]\([\w./-]+\.svg\)", picture)
    assert method == "## Method"


@pytest.mark.parametrize("name", STUDIES)
def test_a_sentence_of_a_study_has_three_figures_at_most(name):
    crowded = [one for one in sentences(text(f"docs/studies/{name}.md")) if len(NUMBER.findall(one)) > 3]
    assert crowded == []


def test_figures_are_counted_as_a_reader_counts_them():
    assert NUMBER.findall("SmolLM2-135M has 1.06 [1.04, 1.08] at 0.2, -3 % on C4 by Qwen2.5") == [
        *("1.06", "1.04,", "1.08", "0.2,", "-3"),
    ]


def test_what_is_said_of_ratios():
    lines = [one for one in report("ratio-curves", view="by-ratio", reference="laco-ls")]
    said = {(one["label"], one["requested_ratio"]): one for one in lines if one["measure"] == "perplexity_wiki"}
    page = text("docs/studies/ratio-curves.md")
    labels, ratios = ({key[at] for key in said} for at in (0, 1))
    others = labels - {"dense", "laco-ls"}
    ppl = {key: float(one["value"]) for key, one in said.items()}

    def order(ratio):
        return sorted(others, key=lambda label: ppl[label, ratio])

    assert [order(ratio)[0] for ratio in ("0.05", "0.1", "0.15", "0.2")] == ["flap"] * 4
    assert order("0.4").index("flap") == 3
    assert len(ratios) == 8
    assert all(ppl["laco-ls", ratio] < ppl[order(ratio)[0], ratio] for ratio in ratios)

    def behind(ratio):
        return {label for label in others if said[label, ratio]["shown"].endswith("†")}

    assert all((behind(ratio) == others) == (float(ratio) >= 0.15) for ratio in ratios)
    assert all({"flap", "llm-pruner"} <= others - behind(ratio) for ratio in ("0.05", "0.1"))
    assert f"make its perplexity {ppl['laco', '0.2'] / ppl['laco', '0.15']:.0f} times as high" in page
    lowest, dense = ppl["laco-ls", "0.4"], ppl["dense", "0.4"]
    assert f"the lowest of eight perplexities is {lowest:.0f} and the dense model's {dense:.1f}" in page
    late = [ppl["shortgpt", ratio] for ratio in ("0.5", "0.4")]
    assert "`shortgpt` has a perplexity of {:,.0f}, and {:.0f} at the ratio before".format(*late) in page
    assert ppl["laco", "0.5"] < ppl["laco", "0.4"]


def seeds(column, label, table):
    (shown,) = (
        one["shown"]
        for one in report("seeds", view="seeds")
        if (one["table"], one["label"], one["measure"]) == (table, label, column)
    )
    return shown


def test_what_is_said_of_draws():
    page = text("docs/studies/seeds.md")
    apart = [seeds("told_apart_percent", "source=calibration seed", f"seeds-{name}-0.2") for name in ("wiki", "c4")]
    assert "nearer than {} % on Wikipedia, or {} % on C4".format(*apart) in page
    ends = [seeds(end, "flap", "seeds-methods-wiki-0.2").removesuffix(".0") for end in ("lowest", "highest")]
    assert "`flap` has perplexities from {} to {} on Wikipedia".format(*ends) in page
    found: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    removed = set()
    for one in run_folder.read_records(ROOT / "docs/results/seeds").values():
        draw = one.cell.protocol.calibration, one.cell.seed
        for name, scores in one.measured.text_scores.items():
            found.setdefault((one.cell.label, name), {})[draw] = scores.perplexity
        if one.cell.label == "angular":
            removed.add(tuple(one.decisions["removed_layers"]))
    assert len(removed) == 1
    ahead = [
        sum(found["angular+ghost", name][draw] < figure for draw, figure in found["laco-ls", name].items())
        for name in ("wiki", "c4")
    ]
    assert (
        "`angular+ghost` is ahead of `laco-ls` in {} draws of ten on Wikipedia, and in {} on C4".format(*ahead) in page
    )

    def own(label, name):
        """Return how many times the perplexity calibration on Wikipedia has, beside calibration on C4."""
        nats = {source: [] for source in ("wiki", "c4")}
        for (source, _), figure in found[label, name].items():
            nats[source].append(math.log(figure))
        return math.exp(sum(nats["wiki"]) / 5 - sum(nats["c4"]) / 5)

    percents = [round(100 * abs(own("wanda-sp", name) - 1)) for name in ("wiki", "c4")]
    assert "`wanda-sp` has {} % less perplexity on `wiki` and {} % more on `c4`".format(*percents) in page
    percents = [round(100 * abs(own("minitron-width", name) - 1)) for name in ("wiki", "c4")]
    assert "`minitron-width` has {} % less and {} % more".format(*percents) in page
    maps = [round(100 * (1 - own(label, "wiki"))) for label in ("angular+ghost", "angular+replaceme", "shortgpt+ghost")]
    assert f"have {min(maps)} to {max(maps)} % less" in page
    less = [round(100 * (1 - own(label, "wiki"))) for label in {label for label, _ in found} - {"dense"}]
    less = [percent for percent in less if percent > 0]
    assert len(less) == 8
    assert f"eight of the ten methods have {min(less)} to {max(less)} % less perplexity there" in page
    ties = [
        sum(
            seeds("ahead", label, f"seeds-methods-{name}-0.2") != "10 of 10"
            for label, *_ in tables(text("docs/studies/seeds.md"))[at][1:-1]
        )
        for name, at in (("wiki", 0), ("c4", 2))
    ]
    assert ties == [7, 6]
    steady = seeds("by_seed_percent", "angular+ghost", "seeds-methods-wiki-0.2")
    assert f"`ghost` moves by {float(steady):.0f} % from seed to seed" in page
    windows = [
        [float(seeds("by_windows_percent", label, f"seeds-methods-{name}-0.2")) for label, *_ in tables(page)[at][1:]]
        for name, at in (("wiki", 0), ("c4", 2))
    ]
    moves = [
        round(float(seeds("difference_percent", "source=windows", f"seeds-{name}-0.2"))) for name in ("wiki", "c4")
    ]
    assert f"by {min(windows[0]):.0f} to {max(windows[0]):.0f} % on `wiki`" in page
    assert f"so that a difference moves by {float(moves[0]):.0f} %" in page
    assert f"it is {min(windows[1]):.0f} to {max(windows[1]):.0f} %, and {float(moves[1]):.0f} %" in page
