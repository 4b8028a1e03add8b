"""The tables and sentences of the study of calibration tokens are what its records say."""

from __future__ import annotations

import itertools

import pytest
from pages import report, tables, text

PAGE = "docs/studies/calibration.md"
TOKENS = (1024, 4096, 16384, 65536)
QUANTITIES = ("perplexity_wiki", "perplexity_c4", "prune_seconds")


@pytest.fixture(scope="module")
def lines():
    """{(measure, label, tokens): (what is shown, the value)}"""
    every = (line for line in report("calibration", view="calibration") if "tokens=" in line["measure"])
    split = ((*line["measure"].split(", tokens="), line) for line in every)
    return {(name, line["label"], int(tokens)): (line["shown"], line["value"]) for name, tokens, line in split}


def change(lines, name, label, before, after):
    """How much of a value goes from one number of tokens to another, in whole percent as the page has it."""
    first, second = (float(lines[name, label, tokens][1]) for tokens in (before, after))
    percent = round(100 * (second / first - 1))
    return f"{percent:+d} %".replace("-", "−").replace("+0", "0")


def test_every_figure_is_that_of_a_record(lines):
    falls, falls_c4, *shown = tables(text(PAGE))
    for name, (_, *rows) in zip(QUANTITIES[:2], (falls, falls_c4), strict=True):
        assert len(rows) == 8
        for label, *cells in rows:
            steps = itertools.pairwise(TOKENS)
            assert cells == [change(lines, name, label, *step) for step in steps], (name, label)
    for name, (head, *rows) in zip(QUANTITIES, shown, strict=True):
        assert head[1:] == [f"{tokens:,}" for tokens in TOKENS]
        for label, *cells in rows:
            values = [lines[name, label, tokens][0] for tokens in TOKENS]
            assert [cell.replace("\\", "").rstrip("*") for cell in cells] == [value.rstrip("*") for value in values]


def test_the_answer_is_what_the_tables_say(lines):
    labels = {label for _, label, _ in lines} - {"dense"}

    def fall(label, before, after, name="perplexity_wiki"):
        return -int(change(lines, name, label, before, after).replace("−", "-").rstrip(" %"))

    assert [fall(label, 4096, 16384) for label in ("obs", "svd-llm", "slicegpt")] == [26, 40, 40]
    said = "**4,096 tokens of calibration, as above, are few.** With 16,384, the default, `obs` has a quarter less"
    assert f"{said} perplexity" in text("README.md")
    assert {fall(label, 4096, 16384) for label in ("laco-ls", "flap", "2ssp", "wanda-sp")} == {7, 8}
    assert max(fall(label, 16384, 65536) for label in labels) == 6
    assert [fall(label, 16384, 65536, "perplexity_c4") for label in ("svd-llm", "slicegpt")] == [20, 14]
    for tokens, place in ((4096, 5), (65536, 1)):
        order = sorted(labels, key=lambda label: float(lines["perplexity_wiki", label, tokens][1]))
        assert order.index("obs") == place
    assert len({lines["perplexity_wiki", "llm-pruner", tokens] for tokens in TOKENS[1:]}) == 1
