"""The tables and sentences of the study of calibration tokens are what its records say."""

from __future__ import annotations

import pytest
from pages import report, tables, text

PAGE = "docs/studies/calibration.md"
TOKENS = (1024, 4096, 16384, 65536)
QUANTITIES = ("perplexity_wiki", "perplexity_c4")


@pytest.fixture(scope="module")
def lines():
    """{(measure, label, tokens): (what is shown, the value)}"""
    every = (line for line in report("calibration", view="calibration") if "tokens=" in line["measure"])
    split = ((*line["measure"].split(", tokens="), line) for line in every)
    return {(name, line["label"], int(tokens)): (line["shown"], line["value"]) for name, tokens, line in split}


def test_every_figure_is_that_of_a_record(lines):
    for name, (head, *rows) in zip(QUANTITIES, tables(text(PAGE)), strict=True):
        assert len(rows) == 9
        assert head[1:] == [f"{tokens:,}" for tokens in TOKENS]
        for label, *cells in rows:
            values = [lines[name, label, tokens][0] for tokens in TOKENS]
            assert [cell.replace("\\", "").rstrip("*") for cell in cells] == [value.rstrip("*") for value in values]


def test_the_answer_is_what_the_tables_say(lines):
    labels = {label for _, label, _ in lines} - {"dense"}

    def fall(label, before, after, name="perplexity_wiki"):
        first, second = (float(lines[name, label, tokens][1]) for tokens in (before, after))
        return round(100 * (1 - second / first))

    page = text(PAGE)
    falls = [fall(label, 4096, 16384) for label in ("obs", "svd-llm", "slicegpt")]
    assert falls[1] == falls[2]
    obs = f"take {falls[0]} % off the perplexity of `obs` on Wikipedia"
    assert f"{obs}, and {falls[1]} % off that of `svd-llm` and `slicegpt`" in page
    said = "**4,096 tokens of calibration are few.** With 16,384, the default, `obs` has a quarter less"
    assert f"{said} perplexity" in text("README.md")
    most = max(fall(label, 16384, 65536) for label in labels)
    assert f"none of eight methods falls by more than {most} % on that text" in page
    assert len(labels) == 8
    later = [fall(label, 16384, 65536, "perplexity_c4") for label in ("svd-llm", "slicegpt")]
    assert "still fall by {} and {} %".format(*later) in page
    for tokens, place in ((4096, 5), (65536, 1)):
        order = sorted(labels, key=lambda label: float(lines["perplexity_wiki", label, tokens][1]))
        assert order.index("obs") == place
    assert len({lines["perplexity_wiki", "llm-pruner", tokens] for tokens in TOKENS[1:]}) == 1
