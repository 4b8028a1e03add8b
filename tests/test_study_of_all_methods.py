"""The study of all methods at 0.2 says what its records say, and the README says the same."""

from __future__ import annotations

import re
from functools import cache

import pytest
from pages import measure, report, tables, text
from rows_beside import MODELS
from tested_run import load_run

from bench.plan import run_spec
from bench.records.measured import ANSWER_BPB

RUN, PAGE = "grid", "docs/studies/all-methods.md"
WIKI, C4 = "perplexity_wiki", "perplexity_c4"
FIRST, LOWEST = "laco-puzzle", "llm-streamline"  # by bits, by perplexity
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
REFITTED = ("flap", "llm-pruner", "2ssp", "minitron-width")


def value(method: str, column: str) -> float:
    return load_run(RUN).value(0.2, method, column)


def names(methods: list[str]) -> str:
    *first, last = [f"`{method}`" for method in methods]
    return f"{', '.join(first)} and {last}" if first else last


def test_each_method_has_one_cell_of_one_protocol():
    records = [record for record in load_run(RUN).merged.records if record.cell.ratio in (None, 0.2)]
    labels = [record.cell.label for record in records]
    assert {label for label in labels if labels.count(label) > 1} == {"drop-random"}
    assert {record.status for record in records} == {"ok"}
    for record in records:
        assert {(of.drawn, of.windows) for of in record.measured.text_scores.values()} == {(True, 24)}
        assert {task.documents for task in record.measured.task_scores.values()} == {100}
        protocol = record.cell.protocol
        assert (protocol.calibration_sequences, protocol.calibration_length, record.cell.dtype) == (64, 256, "float32")


def test_the_table_is_what_the_records_say():
    figures = {
        (line["measure"], line["label"]): line["shown"].rstrip("†")
        for line in report(RUN, view="by-ratio", model="smollm2-135m")
        if line["requested_ratio"].startswith("0.2")
    }
    table, _ = [table for table in tables(text(PAGE)) if table[0][0] == "method"]
    (_, *heads), *lines = table
    assert [measure(head) for head in heads] == [WIKI, C4, ANSWER_BPB, "average"]
    assert [method for method, *_ in lines] == ["dense", *load_run(RUN).order(0.2, WIKI)]
    for method, *cells in lines:
        assert cells == [figures[measure(head), method] for head in heads], method


def sentences() -> list[str]:
    """Return what the page says and the records decide."""
    run = load_run(RUN)
    every = len(run.order(0.2, WIKI))
    assert run.order(0.2, ANSWER_BPB)[:2] == [FIRST, "laco-ls"] and run.unshown(0.2, FIRST, ANSWER_BPB) == []
    assert run.order(0.2, WIKI)[0] == LOWEST
    shown = {column: run.pairs_shown(0.2, column)[0] for column in (WIKI, C4, ANSWER_BPB, "average")}
    pairs = run.pairs_shown(0.2, WIKI)[1]
    assert all(base not in run.unshown(0.2, f"{base}+refit", WIKI) for base in REFITTED)
    times = {base: value(f"{base}+refit", WIKI) / value(base, WIKI) for base in REFITTED}
    random = [
        label
        for label in run.order(0.2, WIKI)
        if label != "drop-random" and "drop-random" in run.unshown(0.2, label, WIKI)
    ]
    return [
        f"By the right answers `{FIRST}` is the first of {every} methods, and each other one is shown behind it.",
        f"By perplexity on Wikipedia `{LOWEST}` is the lowest ({value(LOWEST, WIKI):.1f})",
        f"from which {names(run.unshown(0.2, LOWEST, WIKI))} are not told apart",
        f"takes {100 * (1 - max(times.values())):.0f} to {100 * (1 - min(times.values())):.0f} % off the perplexity of "
        f"{names(list(REFITTED))}",
        f"{names(random)} are not shown to be below each of five draws of random layers",
        f"Of {pairs} pairs of methods bits per byte tell {shown[ANSWER_BPB]} apart, perplexity on Wikipedia "
        f"{shown[WIKI]}, and average accuracy {shown['average'] or 'none'}",
    ]


def test_what_is_said_of_the_other_ratios_is_what_the_records_say():
    run, page = load_run(RUN), text(PAGE)
    every = {ratio: run.order(ratio, ANSWER_BPB) for ratio in (0.1, 0.3)}
    assert {of[0] for of in every.values()} == {FIRST}
    (count,) = {len(of) for of in every.values()}
    assert f"At 0.1 and 0.3 `{FIRST}` has the fewest bits of {count} methods too." in page
    assert f"At 0.1 and 0.3 it is first of {count}." in text("README.md")
    assert {ratio: run.unshown(ratio, FIRST, ANSWER_BPB) for ratio in every} == {0.1: ["angular"], 0.3: []}
    assert "Each other one is shown behind it there, but for `angular` at 0.1." in page
    perplexity = run.value(0.3, LOWEST, WIKI)
    assert f"`{LOWEST}` has the lowest perplexity at 0.2, and one of {perplexity:.0f} at 0.3." in page


@cache
def changes(column: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return by model and method what the view of several models prints at 0.2, of methods that each model has."""
    lines = [line for line in report(RUN, view="models") if line["table"] == f"models-{column}-0.2-of-the-decoder"]
    on_all = {line["label"] for line in lines if line["measure"] == "mean" and line["value"]}
    heads = {f"change_{model}": model for model in MODELS}
    return {
        (heads[line["measure"]], line["label"]): line
        for line in lines
        if line["measure"] in heads and line["label"] in on_all
    }


def rows_of_models() -> list[str]:
    """Return the lines of the table of several models: perplexity, then bits; the fewest bits on average come first."""
    methods = list(dict.fromkeys(method for _, method in changes(ANSWER_BPB)))
    lines = []
    for method in methods:
        cells = [changes(column)[model, method]["shown"] for column in (WIKI, ANSWER_BPB) for model in MODELS]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return lines


def agreements(measure: str) -> list[float]:
    """Return Kendall's tau of the orders of each two models at 0.2, by a measure as the view calls it."""
    lines = [line for line in report(RUN, view="models") if line["table"] == "models-orders-models"]
    return [
        float(line["value"])
        for line in lines
        if line["label"] == f"measure={measure}" and line["measure"] == "tau_0.2 of the decoder"
    ]


def test_the_table_of_models_is_what_the_records_say():
    heads = [f"{name}, {words}" for words in ("`wiki`", "bits") for name in MODELS.values()]
    head = [f"| method | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    assert len(rows_of_models()) >= 9
    assert "\n".join([*head, *rows_of_models()]) in text(PAGE)


def times(model: str, method: str) -> str:
    return f"{float(changes(WIKI)[model, method]['value']):.3g}"


def sentences_on_models() -> list[str]:
    """Return what the page says of other models and the records decide."""
    gemma, qwen = (load_run(RUN, model) for model in list(MODELS)[1:])
    first_on_qwen = qwen.order(0.2, ANSWER_BPB)[0]
    assert gemma.order(0.2, ANSWER_BPB)[0] == FIRST and FIRST in qwen.unshown(0.2, first_on_qwen, ANSWER_BPB)
    counts = [NUMBERS[len(run.order(0.2, WIKI))] for run in (gemma, qwen)]
    bits, perplexity = (f"{min(taus):.2f} to {max(taus):.2f}" for taus in map(agreements, ("bpb", "ppl wiki")))
    flap, trained = ([times(model, method) for model in MODELS] for method in ("flap", LOWEST))
    return [
        f"On Gemma `{FIRST}` has the fewest bits of {counts[0]} methods, from which "
        f"{names(gemma.unshown(0.2, FIRST, ANSWER_BPB))} are not told apart.",
        f"On Qwen `{first_on_qwen}` has the fewest of {counts[1]}, from which "
        f"{names(qwen.unshown(0.2, first_on_qwen, ANSWER_BPB))} are not told apart.",
        f"Kendall's τ of two models' orders is {bits} by bits. By perplexity on Wikipedia it is {perplexity}.",
        f"`flap` has {flap[1]} times the dense perplexity there, where it has {flap[0]} on SmolLM2 and {flap[2]} on "
        "Qwen.",
        f"`{LOWEST}` has {trained[1]} times it, where it has {trained[0]} and {trained[2]}.",
    ]


def test_what_was_not_measured_is_named():
    """Of the methods of the spec: each has a row at 0.2, or is said to have none."""
    (row,) = [line for line in text(PAGE).splitlines() if line.startswith("| Left out |")]
    missing = {*run_spec.load_spec("grid", {}).methods} - {"dense", *load_run(RUN).order(0.2, WIKI)}
    assert {label.partition("+")[0] for label in missing} == set(
        re.findall(r"`([\w-]+)`", row.partition("Not measured yet: ")[2])
    )


@pytest.mark.parametrize("sentences_of_records", [sentences, sentences_on_models])
def test_what_is_said_is_what_the_records_say(sentences_of_records):
    page = " ".join(text(PAGE).replace("**", "").split())
    assert [sentence for sentence in sentences_of_records() if sentence not in page] == []


def test_the_readme_has_the_same_figures():
    run, page = load_run(RUN), text("README.md")
    every = len(run.order(0.2, WIKI))
    average, pairs = run.pairs_shown(0.2, "average")
    assert f"It has the fewest `bpb` of {every} methods on SmolLM2, each other shown behind it." in page
    gemma = load_run(RUN, "gemma3-270m")
    qwen = load_run(RUN, "qwen2.5-coder-0.5b")
    on_both = [
        label for label in gemma.unshown(0.2, FIRST, ANSWER_BPB) if label in qwen.unshown(0.2, FIRST, ANSWER_BPB)
    ]
    assert f"On Gemma and Qwen {names(on_both)} is not told apart from it." in page
    assert qwen.order(0.2, ANSWER_BPB)[0] == on_both[0]
    assert float(changes(WIKI)["gemma3-270m", LOWEST]["value"]) > 4  # times the dense model's
    assert "which fails on Gemma" in page
    assert f"By perplexity {names(run.unshown(0.2, LOWEST, WIKI))} are not told apart from `{LOWEST}`" in page
    assert f"Its perplexity is {value('flap', WIKI):.1f} in place of {value(FIRST, WIKI):.1f}." in page
    assert f"`drop-random` has a perplexity of {value('drop-random', WIKI):,.0f} at 0.2." in page
    seconds = [f"{value(method, 'prune_seconds'):,.0f} s" for method in ("flap", FIRST)]
    assert f"On one core of a busy machine it took {seconds[0]} where `{FIRST}` took {seconds[1]}." in page
    assert {one.environment["threads"] for one in run.merged.records if one.cell.label in ("flap", FIRST)} == {1}
    bits = run.pairs_shown(0.2, ANSWER_BPB)[0]
    assert f"At 0.2 it separates {average} of {pairs} pairs. Bits per byte separate {bits} (" in page
