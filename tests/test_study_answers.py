"""Studies have one form, and what they answer is what their records say."""

from __future__ import annotations

import math
import re
from functools import cache
from types import ModuleType
from xml.etree import ElementTree

import pytest
from pages import DOCS, ROOT, load_program, report, sentences, tables, text

from bench.records import run_folder
from bench.regression import contrasts
from bench.stats.intervals import kendall

STUDIES = (
    *("calibration", "compensation", "departures", "experts", "healing", "laco-ls", "laco-puzzle", "ratio-curves"),
    *("seeds", "served", "settings", "similarity", "speed", "tasks"),
)
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


@cache
def drawings() -> ModuleType:
    """Return the module that draws the pictures of studies."""
    return load_program("studies/figures.py")


@pytest.mark.parametrize("name", sorted(drawings().FIGURES))
def test_a_picture_is_that_of_the_records(name):
    """By what it says, since another matplotlib draws other bytes; its text is text, and the message stands in it."""
    figure = drawings().FIGURES[name]()
    root = ElementTree.parse(DOCS / "studies" / f"{name}.svg").getroot()
    assert (root.findtext("{*}title"), root.findtext("{*}desc")) == (figure.title, figure.description)
    assert figure.title in ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("name", sorted({*STUDIES} - {"similarity"}))  # which `bench similarity` draws, without records
def test_the_picture_of_a_study_is_drawn_by_the_script_of_studies(name):
    (picture,) = re.findall(r"^!\[[^\]]*\]\((.*)\.svg\)$", text(f"docs/studies/{name}.md"), re.MULTILINE)
    assert picture in drawings().FIGURES


def test_studies_are_short():
    pages = [text(f"docs/studies/{name}.md") for name in STUDIES]
    assert len(pages) == 14
    assert sum(len(page.splitlines()) for page in pages) <= 1000


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
            seeds("ahead", label, f"seeds-methods-{name}-0.2") not in ("10 of 10", "-")
            for label, *_ in tables(text("docs/studies/seeds.md"))[0][1:]
        )
        for name in ("wiki", "c4")
    ]
    assert ties == [7, 6]
    steady = seeds("by_seed_percent", "angular+ghost", "seeds-methods-wiki-0.2")
    assert f"`ghost` moves by {float(steady):.0f} % from seed to seed" in page
    windows = [
        [float(seeds("by_windows_percent", label, f"seeds-methods-{name}-0.2")) for label, *_ in tables(page)[0][1:]]
        for name in ("wiki", "c4")
    ]
    moves = [
        round(float(seeds("difference_percent", "source=windows", f"seeds-{name}-0.2"))) for name in ("wiki", "c4")
    ]
    assert f"by {min(windows[0]):.0f} to {max(windows[0]):.0f} % on `wiki`" in page
    assert f"so that a difference moves by {float(moves[0]):.0f} %" in page
    assert f"it is {min(windows[1]):.0f} to {max(windows[1]):.0f} %, and {float(moves[1]):.0f} %" in page


def test_what_is_said_of_healing():
    page = text("docs/studies/healing.md")
    lines = report("smollm2-135m-healed", view="by-ratio")
    said = {(one["label"], one["measure"]): one["shown"] for one in lines}
    ppl = [said[label, "perplexity_wiki"].partition(" ")[0] for label in ("laco", "laco, healed", "dense")]
    assert "LoRA takes `laco` at 0.2 from a perplexity of {} to {}. The dense model has {},".format(*ppl) in page
    assert all(f"| {cell} |" in page for (_, name), cell in said.items() if name == "perplexity_wiki")
    records = run_folder.load_runs([ROOT / "docs/results/smollm2-135m-healed"])
    at = {one.cell.label: n for n, one in enumerate(records.records)}
    pair = at["laco"], at["laco, healed"]
    gain = contrasts.contrast_of_perplexities(records.records, [pair], records.samples, "wiki")[pair]
    off = [100 * (1 - value) for value in (gain.estimate, gain.high, gain.low)]
    assert "takes {:.1f} % off the perplexity**, with an interval of {:.1f} to {:.1f}".format(*off) in page
    tasks = list(records.records[pair[0]].measured.task_scores)
    more = contrasts.contrast_of_averages(records.records, [pair], records.samples, tasks, bounds=True)[pair]
    points = [100 * value for value in (more.estimate, more.low, more.high)]
    assert "gains {:.1f} points [{:.1f}, {:+.1f}]".format(*points) in page
    trained = [
        one["shown"].partition(" ")[0]
        for one in report("inherit", view="by-ratio")
        if one["measure"] == "perplexity_wiki" and one["requested_ratio"] == "0.2" and "healed" in one["label"]
    ]
    assert "random weights stays at {1}, where the pruned one reaches {0}.".format(*trained) in page
    ahead = []
    for tokens in (0, 1):
        (row,) = (line for line in tables(page)[1][1:] if line[0] == ("0", "32,768")[tokens])
        pruned, drawn = (float(cell.partition(" ")[0]) for cell in row[3:5])
        ahead.append(f"{drawn - pruned:.2f}")
    assert "starts {} nats per token ahead of random weights, and ends {} ahead".format(*ahead) in page


def test_what_is_said_of_lacos_settings():
    page, cells = text("docs/studies/settings.md"), run_folder.load_runs([ROOT / "docs/results/laco-ablation"]).records
    pruned = [one for one in cells if one.cell.method == "laco"]
    assert len(pruned) == 32
    models = {tuple(one.decisions["removed_layers"]): one for one in pruned}
    assert f"Over {len(models)} different models" in page
    of = {
        key: (one.measured.text_scores["wiki"].perplexity, one.cell.parameters["T"], one.measured.ratio)
        for key, one in models.items()
    }
    taus = [kendall([each[0] for each in of.values()], [each[at] for each in of.values()]) for at in (1, 2)]
    assert f"with a Kendall's τ of {taus[0]:.2f}" in page
    assert f"The τ of perplexity with the share removed is {taus[1]:.2f}" in page
    rear = [ppl for key, (ppl, *_) in of.items() if 28 in key]
    assert f"have at least {min(rear):.0f}" in page
    low = [one.measured.text_scores["wiki"].perplexity for one in pruned if one.cell.parameters["T"] <= 0.75]
    assert f"No cell from 0.55 to 0.75 has a perplexity below {min(low):.0f}" in page
    by_step: dict[tuple[int, float], set[tuple[int, ...]]] = {}
    for one in pruned:
        key = one.cell.parameters["C"], one.cell.parameters["T"]
        by_step.setdefault(key, set()).add(tuple(one.decisions["removed_layers"]))
    assert f"In {sum(len(each) == 1 for each in by_step.values())} of {len(by_step)} pairs both steps" in page
    said = {(one["label"], one["measure"]): one["shown"] for one in report("laco-range", view="ablation")}
    reach = [said[f"H={H}", "perplexity_wiki, ratio=0.2"].partition(" ")[0] for H in (29, 21)]
    assert "a perplexity of {} with its default range, and {} where".format(*reach) in page
    curves = {
        one["requested_ratio"]: one["shown"].partition(" ")[0]
        for one in report("ratio-curves", view="by-ratio", reference="laco-ls")
        if (one["label"], one["measure"]) == ("shortgpt", "perplexity_wiki")
    }
    assert f"`shortgpt` has {curves['0.2']} there" in page
    late = said["H=21", "perplexity_wiki, ratio=0.3"].partition(" ")[0]
    assert f"not shown to differ from `shortgpt` ({late} and {curves['0.3']})" in page


def test_what_is_said_of_departures():
    page = text("docs/studies/departures.md")
    by_head = {table[0][0]: table[1:] for table in tables(page)}
    ((*_, first, second, third),) = by_head["as the code, over seeds"]
    times = sorted(float(cell.partition(" ")[0]) for cell in (first, second, third))
    assert f"it has {times[0]:.2f} to {times[-1]:.2f} times the perplexity over three draws" in page
    quotients = {label.replace("`", ""): cells for label, _, *cells in by_head["as the code"]}

    def estimate(label, at):
        return float(quotients[label][at].partition(" ")[0])

    def ends(label, at):
        return [float(end) for end in quotients[label][at].partition("[")[2].strip("]").split(", ")]

    assert all(ends("flap:variance=released", at)[0] < 1 < ends("flap:variance=released", at)[1] for at in range(3))
    assert f"At 0.3 it has {estimate('llm-pruner:gqa=released', 2):.2f} times the perplexity" in page
    assert f"has {estimate('shortgpt:token=last', 1):.1f} times the perplexity at 0.2" in page
    front = "finercut:keep_first=13"
    assert f"has {estimate(front, 2):.1f} times the perplexity at 0.3" in page
    assert ends(front, 0)[1] < 1 < ends(front, 2)[0]
    centred = [f"{100 * (1 - estimate('slicegpt:centre_embeddings=True', at)):.0f}" for at in (0, 2)]
    assert centred == ["4", "4"] and "gives 4 % less at the lowest and the highest ratio" in page
    assert ends("slicegpt:centre_embeddings=True", 1)[0] < 1 < ends("slicegpt:centre_embeddings=True", 1)[1]


def test_what_is_said_of_the_sentences_that_laco_compares():
    page = text("docs/studies/settings.md")
    runs = run_folder.load_runs([ROOT / "docs/results/laco-calibration"]).records
    windows: dict[int, list[tuple[int, ...]]] = {}
    ppl: dict[tuple[int, ...], list[float]] = {}
    for one in (one for one in runs if one.cell.method == "laco"):
        window = tuple(one.decisions["removed_layers"][1:])
        windows.setdefault(one.cell.parameters["sentences"], []).append(window)
        ppl.setdefault(window, []).append(one.measured.text_scores["wiki"].perplexity)
    usual = (22, 23, 24)
    others = {count: sum(window != usual for window in each) for count, each in windows.items()}
    assert {len(each) for each in windows.values()} == {12}
    assert others[10] == 0 and "All 12 draws of ten merge the layers 22 to 24." in page
    assert f"Of as many draws of two sentences {others[2]} merge others, and of five sentences {others[5]}." in page
    low = ppl[20, 21, 22]
    assert len(low) == 4 and "Four draws of few sentences take another window" in page
    assert f"a perplexity of {min(low):.0f} in place of {min(ppl[usual]):.0f}" in page
    (table,) = (table for table in tables(page) if table[0][0].startswith("the main window"))
    shown = {tuple(range(int(row[0][:2]), int(row[0][3:5]) + 1)): row[1:] for row in table[1:]}
    assert {window: len(each) for window, each in ppl.items()} == {
        window: int(cells.partition(":")[0]) for window, (cells, _) in shown.items()
    }
    for window, (_, figures) in shown.items():
        ends = [float(end.replace(",", "")) for end in re.findall(r"[\d,.]+", figures)]
        found = sorted(ppl[window])
        assert [ends[0], ends[-1]] == [pytest.approx(found[0], abs=0.5), pytest.approx(found[-1], abs=0.5)], window


def test_what_is_said_of_the_range_of_laco():
    page = text("docs/studies/settings.md")
    runs = [one for one in run_folder.load_runs([ROOT / "docs/results/laco-range"]).records if one.cell.ratio]
    ppl = {(one.cell.ratio, one.cell.parameters["H"]): one.measured.text_scores["wiki"].perplexity for one in runs}
    steps = [(ppl[ratio, H], ppl[ratio, H + 2]) for ratio in (0.1, 0.2, 0.3) for H in (21, 23, 25, 27)]
    counts = [sum(test) for test in zip(*((a < b, a == b, a > b) for a, b in steps), strict=True)]
    assert counts == [9, 2, 1]
    assert "Of twelve steps of H towards the rear, nine raise the perplexity, two change nothing and one lowers" in page
