"""The study of all methods on drawn windows says what its records say."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
from pages import measure, report, tables, text
from tested_run import load_run

from bench.records.measured import ANSWER_BPB

RUN, PAGE = "drawn-windows", "docs/studies/drawn-windows.md"
WIKI, C4 = "perplexity_wiki", "perplexity_c4"
OURS = "laco-puzzle"
RATIOS = (0.1, 0.2, 0.3)


@cache
def said() -> dict[tuple[str, str, str], str]:
    """Return what a report shows of each measure, method and ratio."""
    return {
        (line["measure"], line["label"], line["requested_ratio"].split()[0]): line["shown"].rstrip("†")
        for line in report(RUN, view="by-ratio")
    }


def order(ratio: float, column: str) -> list[str]:
    return load_run(RUN).order(ratio, column)


def unshown(ratio: float, method: str, column: str) -> list[str]:
    return load_run(RUN).unshown(ratio, method, column)


def pairs_shown(ratio: float, column: str) -> tuple[int, int]:
    return load_run(RUN).pairs_shown(ratio, column)


def value(ratio: float, method: str, column: str) -> float:
    return load_run(RUN).value(ratio, method, column)


def test_the_run_is_whole_and_of_one_protocol():
    cells = Counter(
        (one.cell.label, one.cell.ratio) for one in load_run(RUN).merged.records if one.cell.label != "dense"
    )
    assert cells.keys() == {(method, ratio) for method, _ in cells for ratio in RATIOS}
    assert {method for (method, _), draws in cells.items() if draws == 5} == {"drop-random"}
    assert len(load_run(RUN).merged.records) == len(cells) + 3 * 4 + 1
    assert {one.status for one in load_run(RUN).merged.records} == {"ok"}
    for one in load_run(RUN).merged.records:
        assert all(of.drawn and of.windows == 48 for of in one.measured.text_scores.values())
        assert {task.documents for task in one.measured.task_scores.values()} == {100}
        assert ("EPYC" if one.cell.label == "evopress" else "Xeon") in one.environment["cpu"]
        assert one.environment["threads"] == 1


def test_the_tables_are_what_the_records_say():
    found = tables(text(PAGE))
    assert [measure(head) for (head, *_), *_ in found] == [WIKI, C4, ANSWER_BPB, "average"]
    for (head, *ratios), *lines in found:
        assert {method for method, *_ in lines} == {label for name, label, _ in said() if name == measure(head)}
        for method, *shown in lines:
            assert shown == [said()[measure(head), method, ratio] for ratio in ratios], (head, method)
    first = [method for method, *_ in found[0][1:]]
    assert first == ["dense", *order(0.2, WIKI)]
    assert all([method for method, *_ in lines] == first for _, *lines in found)


def listed(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def names(methods: list[str]) -> str:
    return listed([f"`{one}`" for one in methods])


def figures(column: str, method: str, digits: str = ".1f") -> str:
    """Return a method's figures at the three ratios, as sentences list them."""
    each = [value(ratio, method, column) for ratio in RATIOS]
    return listed([f"{one:{digits}}" for one in each])


def pairs(column: str) -> str:
    return listed([str(pairs_shown(ratio, column)[0]) for ratio in RATIOS])


def first_without_a_fit(ratio: float) -> str:
    """Return the method of the lowest perplexity that neither fits by least squares nor trains."""
    fitted = ("laco-puzzle", "laco-ls", "llm-streamline", "llm-streamline:sinks=apart", "obs", "tyr", "svd-llm")
    return next(one for one in order(ratio, WIKI) if one not in fitted and "+" not in one)


def over(method: str, other: str) -> list[float]:
    """Return at each ratio how many times another method's perplexity on Wikipedia a method has."""
    return [value(ratio, method, WIKI) / value(ratio, other, WIKI) for ratio in RATIOS]


@cache
def lost_on_c4(method: str, ratio: float) -> np.ndarray:
    """Return how many nats per token a method loses beside the dense model, for each window."""
    at = {(one.cell.label, one.cell.ratio): n for n, one in enumerate(load_run(RUN).merged.records)}
    pruned, dense = (
        load_run(RUN).merged.samples.of(at[of], "perplexity-c4", "nll") for of in ((method, ratio), ("dense", None))
    )
    assert pruned is not None and dense is not None
    return np.array((pruned.values - dense.values) / [tokens for _, tokens in dense.units])


def sentences() -> list[str]:
    """Return what the page says and the records decide."""
    ours, wiki = "laco-puzzle", [order(ratio, WIKI) for ratio in RATIOS]
    (every,) = {pairs_shown(ratio, column)[1] for ratio in RATIOS for column in (WIKI, C4, ANSWER_BPB)}
    assert all(order(ratio, ANSWER_BPB)[0] == ours for ratio in RATIOS)
    assert [unshown(ratio, ours, ANSWER_BPB) for ratio in RATIOS] == [[], [], ["laco-ls"]]
    assert [one[0] for one in wiki] == [order(ratio, C4)[0] for ratio in RATIOS] == [ours, "puzzle+refit", ours]
    assert [unshown(ratio, ours, WIKI) for ratio in (0.1, 0.3)] == [[], ["puzzle+refit"]]
    (tenth, _, most), (_, fifth, _) = (
        figures(WIKI, one).replace(" and", ",").split(", ") for one in (ours, wiki[1][0])
    )
    bits, dense = figures(ANSWER_BPB, ours, ".3f"), said()[ANSWER_BPB, "dense", "0.1"].split()[0]
    on_c4 = [names(unshown(ratio, ours, C4)) for ratio in (0.1, 0.3)]
    tyr = over("tyr", "obs")
    blocks, pairs_of_blocks, layers = (over("evopress", one) for one in ("blockpruner", "finercut", "sleb"))
    first = [(ratio, first_without_a_fit(ratio)) for ratio in RATIOS]
    assert ["evopress" in unshown(ratio, "sleb", ANSWER_BPB) for ratio in RATIOS] == [True, True, False]
    for ratio in RATIOS:
        assert not {"blockpruner", "finercut"} & set(unshown(ratio, "evopress", WIKI))
        assert ("sleb" in unshown(ratio, "evopress", WIKI)) == (ratio > 0.1) and "evopress" in unshown(
            ratio, "sleb", WIKI
        )
    plain = [f"`{one}` at {ratio} ({said()[WIKI, one, str(ratio)].split()[0]})" for ratio, one in first]
    wide = lost_on_c4("obs", 0.2)
    times = [value(b, "laco", WIKI) / value(a, "laco", WIKI) for a, b in ((0.1, 0.2), (0.2, 0.3))]
    random = [[one for one in wiki[at] if "drop-random" in unshown(RATIOS[at], one, WIKI)] for at in range(3)]
    return [
        f"`{ours}` has the fewest bits per byte of the right answers at each ratio ({bits}; dense {dense})",
        f"fewer than those of all {len(wiki[0]) - 1} others at 0.1 and 0.2, and of all but `laco-ls` at 0.3",
        f"on Wikipedia at 0.1 ({tenth}), shown below all others, and at 0.3 ({most}), shown below all but",
        f"on `c4` at the same two ratios, not shown to be below {on_c4[0]} at 0.1 and {on_c4[1]} at 0.3",
        f"At 0.2 `puzzle+refit` has the lowest on both ({fifth} on Wikipedia)",
        f"from which {names(unshown(0.2, 'puzzle+refit', WIKI))} are not told apart there",
        f"on Wikipedia it is lowest for {listed(plain)}",
        f"`flap` has {figures(WIKI, 'flap')}",
        f"Of {every} pairs of methods perplexity on Wikipedia is shown to differ in {pairs(WIKI)} at the three ratios",
        f"on `c4` in {pairs(C4)}, bits per byte in {pairs(ANSWER_BPB)}, average accuracy in {pairs('average')}",
        f"what `obs` removes each layer loses, has {min(tyr):.2f} to {max(tyr):.2f} times its perplexity on Wikipedia",
        f"has {min(blocks):.2f} to {max(blocks):.2f} times the perplexity of `blockpruner` and "
        f"{min(pairs_of_blocks):.2f} to {max(pairs_of_blocks):.2f} times that of `finercut`",
        f"{min(layers):.2f} to {max(layers):.2f} times that of `sleb`",
        f"{sum(wide > 4)} of its 48 windows lose more than 4 nats per token by `obs` at 0.2, where the median loses "
        f"{np.median(wide):.2f}",
        f"grows {times[0]:.0f} times, and from 0.2 to 0.3 {times[1]:.0f} times",
        f"at 0.1 {names(random[0])}, at 0.2 {names(random[1])}, at 0.3 {names(random[2])}",
    ]


def test_the_readme_has_the_same_seconds():
    seconds = [round(float(said()["prune_seconds", label, "0.2"].removesuffix(" s"))) for label in ("flap", OURS)]
    words = f"With a quarter of the calibration it takes {seconds[0]} s on SmolLM2 where `{OURS}` takes {seconds[1]} s."
    assert words in text("README.md")


def test_what_is_said_is_what_the_records_say():
    page = " ".join(text(PAGE).split())
    assert [one for one in sentences() if one not in page] == []
