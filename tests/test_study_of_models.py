"""The study of three models says what its records say."""

from __future__ import annotations

import math
import re
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from made_samples import paired_perplexity
from pages import ROOT, text
from rows_beside import SEEDS, by_seed

from bench.records import run_folder
from bench.regression import contrasts
from bench.regression.contrasts import contrast_of_perplexities
from reports.formats import markup
from reports.tables import models as view
from reports.tables.models import ModelRows, SharedRatio, ratios_on_all_models
from reports.tables.rows import ReportData

RUN, PAGE = ROOT / "docs/results/all-models", "docs/studies/models.md"
RATIOS = (0.1, 0.2, 0.3)
WIKI, C4, BPB = "perplexity_wiki", "perplexity_c4", "answer_bpb"
SHOWN = [f"models-{measure}-{ratio}-of-the-decoder" for measure in (WIKI, BPB) for ratio in RATIOS]
SHOWN += [f"models-places-{WIKI}-{ratio}-of-the-decoder" for ratio in RATIOS]
SHOWN += ["models-orders-models", "models-orders-measures"]


@cache
def data() -> ReportData:
    merged = run_folder.load_runs([RUN])
    return ReportData(merged.records, "", merged.samples)


@cache
def ratios() -> dict[float, SharedRatio]:
    return {shared.group.ratio: shared for shared in ratios_on_all_models(data())}


def times(model: ModelRows, method: str, measure: str = WIKI) -> float:
    """Return how many times the dense model's figure a method has."""
    change = model.change(method, measure)
    assert change is not None, (model.name, method, measure)
    return math.exp(change.value)


def figure(value: float) -> str:
    """Write a factor as the tables do."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ordered(model: ModelRows, measure: str) -> list[str]:
    """Return the methods that have a figure on a model and no budget missed, the best first."""
    at = {method: model.place(method) for method in (model.group.label(n) for n in range(len(model.group.records)))}
    eligible = [method for method, place in at.items() if place in model.tested.eligible() and method != "dense"]
    known = [method for method in eligible if model.change(method, measure)]
    return sorted(known, key=lambda method: times(model, method, measure))


def best_beside(model: ModelRows, measure: str) -> list[str]:
    """Return the cells of a row: laco-ls, the best of all others, and that beside laco-ls with its paired interval."""
    other = next(method for method in ordered(model, measure) if method != "laco-ls")
    mine, at = model.place("laco-ls"), model.place(other)
    assert mine is not None and at is not None
    records = [model.group.records[mine], model.group.records[at]]
    every = data().records
    pair = tuple(next(n for n, one in enumerate(every) if one is record) for record in records)
    if measure == BPB:
        found = contrasts.contrast_of_averages(every, [pair], data().samples, model.tasks[BPB], BPB, bounds=True)[pair]
        apart = f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    else:
        found = contrast_of_perplexities(every, [pair], data().samples, measure.removeprefix("perplexity_"))[pair]
        apart = f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"
    worse = model.tested.has_more(at, mine, measure)
    return [figure(times(model, "laco-ls", measure)), f"`{other}` {figure(times(model, other, measure))}",
            apart + ("" if worse else "°")]  # fmt: skip


def rows_of_laco_ls() -> list[str]:
    """Return the lines of the table of laco-ls beside the best of the others."""
    lines = []
    for measure, said in ((WIKI, "ppl wiki"), (C4, "ppl c4"), (BPB, "answer bpb")):
        for ratio in RATIOS:
            for model in ratios()[ratio].models:
                lines.append(f"| {' | '.join([said, f'{ratio:g}', model.name, *best_beside(model, measure)])} |")
    return lines


def tables() -> dict[str, list[str]]:
    """Return the lines of each table of the view, by its name."""
    found = {}
    for table in view.tables_of_models(data()):
        lines = markup.grid_to_markdown(table).splitlines()
        found.setdefault(table.name, []).extend(line for line in lines if line.startswith("|"))
    return found


def test_the_run_is_whole():
    records = data().records
    assert len(records) == 228
    assert {record.cell.model for record in records} == {"smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b"}
    assert {record.status for record in records} == {"ok", "unsupported"}


@pytest.mark.nightly  # the answers of the study are held to its records each time
@pytest.mark.parametrize("name", SHOWN)
def test_the_tables_are_those_of_the_records(name):
    page, lines = text(PAGE), tables()[name]
    assert len(lines) > 10
    assert all(line in page for line in lines)


def test_the_table_of_laco_ls_is_what_the_records_say():
    page = text(PAGE)
    assert all(line in page for line in rows_of_laco_ls())


@cache
def rows_of_pairs() -> list[str]:
    """Return the lines of the table of how many pairs of methods each measure tells apart."""
    lines = []
    for model in (one.name for one in ratios()[0.2].models):
        for measure, said in ((WIKI, "ppl wiki"), (C4, "ppl c4"), (BPB, "answer bpb"), ("average", "average accuracy")):
            cells = []
            for ratio in RATIOS:
                (rows,) = (one for one in ratios()[ratio].models if one.name == model)
                places = [rows.place(method) for method in ratios()[ratio].methods_on_all_models(measure)]
                pairs = list(combinations([place for place in places if place is not None], 2))
                shown = sum(
                    rows.tested.has_more(a, b, measure) or rows.tested.has_more(b, a, measure) for a, b in pairs
                )
                cells.append(f"{shown} of {len(pairs)}")
            lines.append(f"| {' | '.join([model, said, *cells])} |")
    return lines


def test_the_table_of_pairs_is_what_the_records_say():
    page = text(PAGE)
    assert all(line in page for line in rows_of_pairs())


def lead() -> list[str]:
    """Return the lines of the table of laco-ls at 0.2 and 0.3."""
    return [line for line in rows_of_laco_ls() if "| 0.1 |" not in line]


def low_end(line: str) -> float:
    """Return where the interval in the last column of a line of that table begins."""
    return float(line.rpartition("[")[2].partition(",")[0])


def words(number: int) -> str:
    """Write a number below ten as a word."""
    return ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")[number]


def test_what_is_said_of_laco_ls():
    page = text(PAGE)
    for ratio in RATIOS[1:]:
        for model in ratios()[ratio].models:
            assert all(ordered(model, measure)[0] == "laco-ls" for measure in (WIKI, C4, BPB))
    assert len(lead()) == 18
    assert "18 of 18 comparisons" in page
    shown = [line for line in lead() if "°" not in line]
    assert f"show {len(shown)} of these leads, all of them by answers. By perplexity none is shown" in page
    assert all("answer bpb" in line for line in shown)
    for model in ratios()[0.1].models[1:]:
        assert ordered(model, BPB)[0] != "laco-ls"
    for line in rows_of_laco_ls():
        if "| ppl" in line and "| 0.1 |" in line:
            assert line.endswith("° |")
    assert [line.split(" | ")[1:3] for line in shown] == [
        *(["0.2", "smollm2-135m"], ["0.3", "smollm2-135m"], ["0.3", "gemma3-270m"]),
    ]
    (qwen,) = (line for line in lead() if "bpb | 0.3 | qwen" in line)
    assert low_end(qwen) > 0
    alone = sum(low_end(line) > 1 for line in lead() if "ppl" in line)
    assert f"has an interval above 1 in {words(alone)} of the 12 comparisons at 0.2 and 0.3" in page


def more_windows() -> dict[str, str]:
    """Return what 224 windows of wiki say of 2ssp beside laco-ls on Gemma at 0.2, as the page writes it.

    first, second, rest  times the perplexity on the first 16 windows, the next 40, and those behind them
    more, low, high, p   on all, with the interval and p value of windows in a row
    alow, ahigh, ap      interval and p value of the same windows, taken for independent
    acf                  correlation of the difference from one window to the next
    """
    merged = run_folder.load_runs([ROOT / "docs/results/more-windows"])
    at = {record.cell.method: n for n, record in enumerate(merged.records)}
    pair = (at["laco-ls"], at["2ssp"])
    found = contrast_of_perplexities(merged.records, [pair], merged.samples, "wiki")[pair]
    before, after = (merged.samples.of(n, "perplexity-wiki", "nll") for n in pair)
    assert before is not None and after is not None
    tokens = np.array([scored for _, scored in before.units])
    apart = (after.values - before.values) / tokens
    parts = {"first": apart[:16], "second": apart[16:56], "rest": apart[56:]}
    alone = paired_perplexity(before.values, after.values, tokens)
    rest = apart - apart.mean()
    return {
        **{name: f"{math.exp(one.mean()):.2f}" for name, one in parts.items()},
        **{"more": f"{found.estimate:.2f}", "low": f"{found.low:.2f}", "high": f"{found.high:.2f}"},
        **{"p": f"{found.p:.2f}", "acf": f"{(rest[1:] * rest[:-1]).sum() / (rest**2).sum():.2f}"},
        **{"alow": f"{alone.low:.2f}", "ahigh": f"{alone.high:.2f}", "ap": f"{alone.p:.2f}"},
    }


def test_what_is_said_of_more_windows():
    page, said = text(PAGE), more_windows()
    open_lead = "`2ssp` has {more} times its perplexity on Gemma at 0.2, with an interval of {low} to {high}"
    assert open_lead.format(**said) in page
    rows = (
        "| the first 16 | {first} |",
        "| the next 40 | {second} |",
        "| the 168 behind them | {rest} |",
        "| all 224 | {more} [{low}, {high}] (p {p}) |",
        "| all 224, taken for independent | {more} [{alow}, {ahigh}] (p {ap}) |",
    )
    assert "\n".join(rows).format(**said) in page
    assert "(a correlation of {acf} here)".format(**said) in page
    assert float(said["more"]) < 1 < float(said["high"])


@cache
def rank(ratio: float, model: str, method: str, measure: str = WIKI) -> float:
    shared = ratios()[ratio]
    (rows,) = (one for one in shared.models if one.name.startswith(model))
    return rows.places(shared.methods_on_all_models(measure), measure)[method].rank


@cache
def moved(measure: str) -> list[int]:
    """Return how many methods change places by more than the tests leave open, at each ratio."""
    names = [f"models-places-{measure}-{ratio}-of-the-decoder" for ratio in RATIOS]
    return [sum("†" in line for line in tables()[name]) for name in names]


@pytest.mark.nightly
def test_what_is_said_of_places():
    page = text(PAGE)
    assert [rank(0.2, model, "flap") for model in ("smol", "qwen", "gemma")] == [2, 2, 6]
    assert [rank(0.2, model, "angular") for model in ("smol", "qwen", "gemma")] == [3, 4, 18]
    assert [rank(0.3, model, "angular") for model in ("qwen", "gemma")] == [6, 18]
    for ratio in RATIOS:
        for model in ("smol", "gemma", "qwen"):
            for method in ("laco-published", "drop-tail", "drop-random", "llm-drop"):
                assert rank(ratio, model, method) > 14
    assert [[rank(ratio, model, "obs") for ratio in RATIOS] for model in ("smol", "qwen", "gemma")] == [
        *([15, 10, 3], [7, 6, 4], [4, 4, 4]),
    ]
    assert "holds for {}, {} and {} of 20 methods".format(*moved(WIKI)) in page
    assert "by answers for {}, {} and {}.".format(*moved(BPB)) in page
    assert f"By answers {moved(BPB)[1]} of 20 methods change places" in page
    assert f"leave open there, by perplexity {moved(WIKI)[1]}." in page


def test_what_is_said_of_cliffs():
    page = text(PAGE)

    def of(method: str, ratio: float, *order: str) -> list[str]:
        models = {one.name[:4]: one for one in ratios()[ratio].models}
        return [figure(times(models[name], method)) for name in order]

    every = ("smol", "gemm", "qwen")
    assert "({} times the dense perplexity on SmolLM2, {} on Qwen)".format(*of("laco", 0.1, "smol", "qwen")) in page
    assert "much on Gemma ({})".format(*of("laco", 0.1, "gemm")) in page
    assert [round(float(one)) for one in of("laco", 0.3, *every)] == [132, 63, 82]
    assert "(132, 63 and 82 times)" in page
    assert "has {}, {} and {} there".format(*of("laco-ls", 0.3, *every)) in page
    assert "sixth on Qwen ({}) and 18th on Gemma ({})".format(*of("angular", 0.3, "qwen", "gemm")) in page
    assert "has {} on Qwen, and more than 20,000".format(*of("shortened-llama-taylor", 0.3, "qwen")) in page
    models = {one.name[:4]: one for one in ratios()[0.3].models}
    assert all(times(models[name], "shortened-llama-taylor") > 20_000 for name in ("smol", "gemm"))
    tail = [of("drop-tail", ratio, "gemm", "qwen", "smol") for ratio in (0.2, 0.3)]
    assert f"{tail[0][0]} and {tail[1][0]}, where Qwen has {tail[0][1]} and {tail[1][1]}" in page
    assert f"SmolLM2 {tail[0][2]} and 5.7e7" in page


def taus(name: str, *of: str) -> list[float]:
    """Return the values of Kendall's tau in the lines of a table that hold all of `of`."""
    lines = [line for line in tables()[name] if all(word in line for word in of)]
    return [float(found) for line in lines for found in re.findall(r"(-?\d\.\d\d) \(n", line)]


@pytest.mark.nightly
def test_what_is_said_of_orders():
    page = text(PAGE)
    between = taus("models-orders-models", "ppl")
    assert f"is {min(between):.2f} to {max(between):.2f} by perplexity" in page
    for measure in ("ppl wiki", "ppl c4", "bpb"):
        least = taus("models-orders-models", measure, "gemma3-270m, qwen")
        for pair in ("smollm2-135m, gemma", "smollm2-135m, qwen"):
            assert all(a < b for a, b in zip(least, taus("models-orders-models", measure, pair), strict=True))
    texts = taus("models-orders-measures", "ppl wiki, ppl c4")
    assert f"τ is {min(texts):.2f} to {max(texts):.2f}, though" in page
    answers = taus("models-orders-measures", "ppl wiki, bpb")
    assert f"({min(answers):.2f} to {max(answers):.2f} with wiki), least at 0.1" in page
    assert all(row[0] == min(row) for row in (answers[at : at + 3] for at in (0, 3, 6)))
    average = taus("models-orders-measures", "average")
    assert f"agrees with neither** ({min(average):.2f} to {max(average):.2f})" in page
    qwen = next(one for one in ratios()[0.1].models if one.name.startswith("qwen"))
    assert f"has {times(qwen, 'finercut'):.2f} times the perplexity" in page
    assert f"than the dense model ({times(qwen, 'finercut', BPB):.2f})" in page
    pairs = [int(one) for line in rows_of_pairs() if "bpb" in line for one in re.findall(r"(\d+) of 190", line)]
    windows = [int(one) for line in rows_of_pairs() if "ppl wiki" in line for one in re.findall(r"(\d+) of 190", line)]
    assert (
        f"tells\n  {min(pairs)} to {max(pairs)} of 190 pairs, perplexity on these windows of wiki {min(windows)} to "
        f"{max(windows)}."
    ) in page


# --- 48 drawn windows of one model, by four draws of the calibration text


@cache
def drawn():
    return run_folder.load_runs([ROOT / "docs/results/drawn-windows"])


BY_SEED = ("laco-ls", "llm-streamline", "2ssp+refit")
AT_MORE = ("laco-ls", "2ssp+refit")  # which were measured at 0.3 too


def of_seed(seed: int, ratio: float = 0.2):
    """Return the run that holds the cells of a seed, and which of its records they are, by method."""
    run = drawn() if seed == 0 else run_folder.load_runs([ROOT / "docs/results/drawn-seeds"])
    cells = enumerate(one.cell for one in run.records)
    at = {cell.label: n for n, cell in cells if (cell.ratio, cell.seed) == (ratio, seed)}
    return run, {label: at[label] for label in BY_SEED if label in at}


def seed_rows(name: str, ratio: float = 0.2, labels: tuple[str, ...] = BY_SEED) -> list[str]:
    return by_seed(lambda seed: of_seed(seed, ratio)[0], ratio, labels, name)


@pytest.mark.parametrize("name", ["wiki", "c4"])
def test_the_table_of_four_seeds_is_what_the_records_say(name):
    assert "\n".join(seed_rows(name)) in text("docs/studies/models.md")


@pytest.mark.parametrize("name", ["wiki", "c4"])
def test_the_table_of_four_seeds_at_a_larger_ratio_is_what_the_records_say(name):
    rows = seed_rows(name, 0.3, AT_MORE)
    assert "\n".join(rows) in text(PAGE)
    mine, others = ([cell.partition(",")[0] for cell in line.strip("| ").split(" | ")[1:5]] for line in rows)
    lower = [float(other) < float(one) for one, other in zip(mine, others, strict=True)]
    assert lower == ([True, False, True, True] if name == "wiki" else [False] * 4)
    bounds = [
        tuple(map(float, re.findall(r"[\d.]+", cell.partition("[")[2])[:2])) for cell in rows[1].split(" | ")[1:5]
    ]
    assert sum(low > 1 or high < 1 for low, high in bounds) == 2


def test_the_calibration_text_of_each_seed_is_another_one_and_the_windows_are_the_same():
    runs = [of_seed(seed) for seed in SEEDS]
    records = [run.records[at["laco-ls"]] for run, at in runs]
    assert len({one.cell.inputs.calibration_sha256 for one in records}) == 4
    assert {tuple(one.decisions["removed_layers"]) for one in records} == {tuple(range(13, 19))}
    assert all(one.measured.text_scores["wiki"].windows == 48 for one in records)


def test_what_is_said_of_four_seeds():
    pairs = dict[str, list[str]]()
    for name in ("wiki", "c4"):
        base, *others = (line.strip("| ").split(" | ")[1:5] for line in seed_rows(name))
        for label, cells in zip(BY_SEED[1:], others, strict=True):
            assert all(float(a) < float(b.partition(",")[0]) for a, b in zip(base, cells, strict=True))
            pairs.setdefault(label, []).extend(cell.partition("[")[2].partition(",")[0] for cell in cells)
    assert [float(low) > 1 for low in pairs["llm-streamline"]] == [True] * 8
    assert [float(low) > 1 for low in pairs["2ssp+refit"]] == [True, True, False, True] * 2


# --- how laco-ls finds its windows

STEPS = "laco-ls:divisions=0,finalists=1"


def search_rows() -> list[str]:
    """Return for each ratio and seed what the search by steps alone and the default take, and what each leaves."""
    run = run_folder.load_runs([ROOT / "docs/results/drawn-windows", ROOT / "docs/results/drawn-seeds"])
    at = {(one.cell.label, one.cell.ratio, one.cell.seed): n for n, one in enumerate(run.records)}
    lines = []
    for ratio, seed in sorted((ratio, seed) for label, ratio, seed in at if label == STEPS):
        both, words = (at[STEPS, ratio, seed], at["laco-ls", ratio, seed]), []
        for number in both:
            one = run.records[number]
            figures = (one.measured.text_scores[name].perplexity for name in ("wiki", "c4"))
            taken = (
                one.decisions["removal_order"][-1].removeprefix("finally ").removeprefix("layers ").replace("+", ", ")
            )
            words += [taken, ", ".join(f"{each:.1f}" for each in figures)]
        for name in ("wiki", "c4"):
            (pair,) = contrast_of_perplexities(run.records, [both], run.samples, name).values()
            words.append(f"{pair.estimate:.2f} [{pair.low:.2f}, {pair.high:.2f}]")
        lines.append(f"| {ratio} | {seed} | {' | '.join(words)} |")
    return lines


def test_the_table_of_searches_is_what_the_records_say():
    rows = search_rows()
    assert len(rows) > 1
    assert "\n".join(rows) in text("docs/studies/laco-ls.md")
