"""The summary of a run in sentences. Each follows from the records; a sentence that is not true is not written.

"Shown" means p < 0.05 after the adjustment for all pairs of cells at that ratio, see bench.regression.contrasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bench.plan.cell import words_of_ratio
from bench.records.comparability import group_by_setup
from bench.records.frame import texts_of_records
from bench.records.measured import ANSWER_BPB
from bench.records.quantities import METRICS, format_bits, format_value, is_finite, metric_of
from bench.records.record import Record, name_of_model
from bench.records.samples import Samples
from bench.regression.contrasts import LEVEL, is_shown_higher, pairs_of
from bench.stats.intervals import kendall
from methods.counted import QUANTITIES
from reports import legend
from reports.figures.quality import title_of_quantity
from reports.groups import TableGroup, group_records, name_with_ratio, names_of_seeds, seeds_of, suffixes_of_draws
from reports.tables.rows import NAMES, TestedRow, contrasts_of_draws

CLIFF = 10  # times the perplexity in one step of the ratio
MANY = 4  # with more rows than this a sentence says how well two orders agree
RANDOM = "drop-random"  # the control, which removes random layers
TESTS = {
    "student": "Student's test over the windows that two models both scored",
    "mcnemar": "McNemar's over the documents both answered",
    "normal": "a normal test over the documents both answered, every task weighing alike",
    "draws": "Student's over the calibration seeds that two models share, beside the windows or documents both saw",
}
ROUGH = "the two intervals as if independent, for want of samples in common, which finds less"


@dataclass(frozen=True)
class Topic:
    """Sentences under one heading."""

    title: str
    sentences: tuple[str, ...]


def summarise_groups(records: Sequence[Record], samples: Samples) -> list[Topic]:
    """Return the topics of all setups. If there are several, titles name the model and its conditions."""
    topics, setups = [], group_by_setup(records)
    for peers, mine in zip(setups.values(), group_records(records), strict=True):
        where = ", ".join((name_of_model(peers[0]), *legend.conditions_of(peers), *mine[0].apart))
        prefix = f"{where}: " if len(setups) > 1 else ""
        topics += [Topic(prefix + topic.title, topic.sentences) for topic in _topics(peers, mine, samples)]
    return topics


def _topics(records: Sequence[Record], groups: Sequence[TableGroup], samples: Samples) -> Iterator[Topic]:
    tested = [contrasts_of_draws(records, block, samples) for block in groups]
    topics: dict[str, Callable[[], Iterator[str]]] = {
        "Perplexity": lambda: _perplexity(tested, texts_of_records(records)),
        "Accuracy": lambda: (sentence for tested_row in tested for sentence in _accuracy(tested_row)),
        "Right answers": lambda: (sentence for tested_row in tested for sentence in _answers(tested_row)),
        "Speed": lambda: (sentence for tested_row in tested for sentence in _speed(tested_row)),
        "With care": lambda: _care(tested, records),
    }
    for title, sentences in topics.items():
        texts = tuple(sentences())
        if texts:
            yield Topic(title, texts)


def _perplexity(tested: Sequence[TestedRow], names: Sequence[str]) -> Iterator[str]:
    for text in names:
        for tested_row in tested:
            yield from _lowest(tested_row, f"perplexity_{text}")
            yield from _ties(tested_row, f"perplexity_{text}", "lower")
        yield from _cliffs(tested, text)
    if names:
        for tested_row in tested:
            yield from _random(tested_row, names[0])


def _lowest(tested: TestedRow, column: str) -> Iterator[str]:
    """Yield which method has the lowest value of a column, which methods it is shown to be below, and which is next."""
    order = tested.order(tested.eligible(), column, "lower")
    if not order:
        return
    first, rest = _leading(tested, order, column)
    dense = "" if tested.dense is None else f" (dense {tested.figure(tested.dense, column)})"
    lead, figure = f"{tested.where()}, {_names_with_verb(tested, first)}", f"{tested.figure(first[0], column)}{dense}"
    if len(order) == 1:
        one_of_it = "" if column == ANSWER_BPB else "a "
        yield f"{lead} {one_of_it}{title_of_quantity(column)} of {figure}; there is nothing to compare it with."
        return
    below = [place for place in rest if all(tested.has_more(place, lowest, column) for lowest in first)]
    comparison = (
        f", {tested.words_of_tests('below', below, rest)}.{_next(tested, [first[0], *rest], column)}" if rest else "."
    )
    yield f"{lead} the lowest {title_of_quantity(column)}: {figure}{comparison}"


def _leading(tested: TestedRow, order: Sequence[int], column: str) -> tuple[list[int], list[int]]:
    """Return the rows that have exactly the value of the first, and the rest."""
    figures = tested.block.rows
    count = sum(figures[place][column] == figures[order[0]][column] for place in order)
    return list(order[:count]), list(order[count:])


def _names_with_verb(tested: TestedRow, places: Sequence[int]) -> str:
    """Return 'laco has', 'laco and flap both have', or 'laco, flap and sleb all have'."""
    *rest, last = map(tested.name, places)
    return f"{', '.join(rest)} and {last} {'all' if rest[1:] else 'both'} have" if rest else f"{last} has"


def _next(tested: TestedRow, order: Sequence[int], column: str) -> str:
    """Return ' laco comes next: 92.8 ± 15.6, 2.5 times as high [2.2, 2.9].'; for bits per byte with a difference."""
    first, second = order[:2]
    a, b = (tested.models(place) for place in (first, second))
    tests, both = tested.tests(column), (a[0], b[0])
    turned = both not in tests
    contrast = tests.get(both[::-1] if turned else both) if len(a) == len(b) == 1 else None
    if column == ANSWER_BPB:
        more = tested.block.rows[second][column] - tested.block.rows[first][column]
        words = f"{format_bits(more)} more"
        if contrast is not None:
            ends = (-contrast.high, -contrast.low) if turned else (contrast.low, contrast.high)
            words += f" [{', '.join(map(format_bits, ends))}]" if all(map(math.isfinite, ends)) else ""
        return f" {tested.name(second)} comes next: {tested.figure(second, column)}, {words}."
    times = tested.block.rows[second][column] / tested.block.rows[first][column]
    words = f"{METRICS['prefill_speed'].format(times, times)} times as high"
    if contrast is not None:
        low, high = contrast.low, contrast.high
        if turned:
            low, high = (1 / end if end else math.inf for end in (high, low))
        words += f" [{', '.join(METRICS['prefill_speed'].format(end, times) for end in (low, high))}]"
    return f" {tested.name(second)} comes next: {tested.figure(second, column)}, {words}."


def _accuracy(tested: TestedRow) -> Iterator[str]:
    """Yield which method keeps the most accuracy, which it is shown to be above, and which are not shown to lose."""
    block = tested.block
    order = tested.order(tested.eligible(), "average", "higher")
    if not order:
        return
    first, rest = _leading(tested, order, "average")
    best = block.rows[first[0]]
    kept = "" if best.get("kept") is None else f", {format_value(best, 'kept')} of the dense model's"
    lead = (
        f"{tested.where()}, {_names_with_verb(tested, first)} the highest average accuracy: "
        f"{tested.figure(first[0], 'average')}{kept}"
    )
    above = [place for place in rest if all(tested.has_more(highest, place, "average") for highest in first)]
    nothing = "; there is nothing to compare it with" * (len(order) == 1)
    yield f"{lead}, {tested.words_of_tests('above', above, rest)}." if rest else f"{lead}{nothing}."
    if tested.dense is not None:
        lost = [place for place in order if tested.has_more(tested.dense, place, "average")]
        whole = [place for place in order if place not in lost]
        if whole:
            yield (
                f"{tested.where()}, no loss of accuracy against the dense model is shown for "
                f"{tested.names(whole)}; that "
                "is not to say that there is none."
            )
    yield from _ties(tested, "average", "higher")
    yield from _disagreement(tested, order)


def _answers(tested: TestedRow) -> Iterator[str]:
    """Yield which method gives right answers the highest probability, and which are not shown to lower it."""
    yield from _lowest(tested, ANSWER_BPB)
    if tested.dense is not None:
        order = tested.order(tested.eligible(), ANSWER_BPB, "lower")
        whole = [place for place in order if not tested.has_more(place, tested.dense, ANSWER_BPB)]
        if whole:
            yield (
                f"{tested.where()}, right answers are not shown to be less likely than the dense model's for "
                f"{tested.names(whole)}; that is not to say that they are not."
            )
    yield from _ties(tested, ANSWER_BPB, "lower")
    yield from _words_of_resolved_pairs(tested)


def _words_of_resolved_pairs(tested: TestedRow) -> Iterator[str]:
    """Yield how many pairs of cells each quality tells apart, and how well the orders of the qualities agree."""
    columns = ["average", ANSWER_BPB, *(f"perplexity_{text}" for text in tested.perplexity)]
    counts = {column: [contrast.p < LEVEL for contrast in tested.tests(column).values()] for column in columns}
    known = {column: is_shown for column, is_shown in counts.items() if len(is_shown) > 1}
    if ANSWER_BPB in known and len(known) > 1:
        words = ", ".join(
            f"{title_of_quantity(column)} {sum(is_shown)} of {len(is_shown)}" for column, is_shown in known.items()
        )
        yield f"{tested.where()}, pairs of cells that are shown to differ: by {words}."
    for column in [f"perplexity_{text}" for text in tested.perplexity][:1]:
        qualities = [ANSWER_BPB, "average"]
        places = [
            p
            for p in tested.eligible()
            if all(is_finite(tested.block.rows[p].get(name)) for name in (column, *qualities))
        ]
        taus = {name: _agreement(tested, column, name, places) for name in qualities if len(places) > MANY}
        agreements = [f"{tau:z.2f} of {title_of_quantity(name)}" for name, tau in taus.items() if not math.isnan(tau)]
        if len(agreements) == len(qualities):
            yield (
                f"{tested.where()}, Kendall's τ with the order by {title_of_quantity(column)} is "
                f"{' and '.join(agreements)}."
            )


def _ties(tested: TestedRow, column: str, better: str) -> Iterator[str]:
    """Yield the pairs of methods whose order depends on the seed."""
    order = tested.order(tested.eligible(), column, better)
    pairs = [
        f"{tested.block.label(a)} and {tested.block.label(b)}"
        for a, b in pairs_of(order)
        if tested.block.order_depends_on_seed(a, b, column)
    ]
    if pairs:
        more = len(pairs) - NAMES
        words = "; ".join(pairs if more <= 1 else [*pairs[:NAMES], f"{more} more pairs"])
        yield (
            f"{tested.where()}, ranks by {title_of_quantity(column)} change with the seed, so that these are ties: "
            f"{words}."
        )


def _disagreement(tested: TestedRow, by_average: Sequence[int]) -> Iterator[str]:
    """Yield a sentence if the method with the highest accuracy is in the worse half by perplexity.

    If several methods have that accuracy, the one with the best perplexity counts.
    """
    column = next(iter(tested.perplexity), None)
    if column is None:
        return
    column = f"perplexity_{column}"
    by_perplexity = [place for place in tested.order(tested.eligible(), column, "lower") if place in by_average]
    count = len(by_perplexity)
    first = next((place for place in by_perplexity if place in _leading(tested, by_average, "average")[0]), None)
    if count < 3 or first is None:
        return
    rank = by_perplexity.index(first) + 1
    tau = _agreement(tested, column, "average", by_perplexity)
    if rank > count / 2 and not math.isnan(tau):
        yield (
            f"{tested.where()}, perplexity and accuracy disagree: {tested.name(first)} has the highest average and "
            f"comes {rank} of {count} by perplexity ({tested.figure(first, column)}); "
            f"Kendall's τ between the two orders is {tau:z.2f}."
        )


def _agreement(tested: TestedRow, column: str, second: str, places: Sequence[int]) -> float:
    """Return Kendall's τ of two orders of rows: by a column in which less is better, and by a second column."""
    sign = 1 if metric_of(second).better == "lower" else -1
    figures = [(tested.block.rows[place][column], sign * tested.block.rows[place][second]) for place in places]
    return kendall([before for before, _ in figures], [after for _, after in figures])


def _cliffs(tested: Sequence[TestedRow], text: str) -> Iterator[str]:
    """Yield the steps between neighbouring ratios, or from the dense model, that multiply a perplexity by ten."""
    column, lines = f"perplexity_{text}", dict[tuple[str, str], list[tuple[str, dict[str, Any]]]]()
    for tested_row in (tested_row for tested_row in tested if tested_row.block.ratio is not None):
        dense = [] if tested_row.dense is None else [("dense", tested_row.block.rows[tested_row.dense])]
        for place in tested_row.rows:
            point = (words_of_ratio(tested_row.block.ratio, tested_row.block.ratio_of), tested_row.block.rows[place])
            lines.setdefault((tested_row.block.label(place), tested_row.block.ratio_of), [*dense]).append(point)
    steps: dict[tuple[str, str], list[str]] = {}
    for (name, _), line in lines.items():
        for (lower, before), (higher, after) in pairwise(point for point in line if is_finite(point[1].get(column))):
            if after[column] >= CLIFF * before[column]:
                both = " to ".join(format_value(row, column, spread=False) for row in (before, after))
                steps.setdefault((lower, higher), []).append(f"{name} ({both})")
    for (lower, higher), names in steps.items():
        yield f"From {lower} to {higher} the perplexity grows at least tenfold: {', '.join(names)}."


def _random(tested: TestedRow, text: str) -> Iterator[str]:
    """Yield the methods that are not shown to be better than every draw of random layers, or shown to be worse."""
    control = [place for place in tested.rows if tested.block.records[place].cell["method"] == RANDOM]
    rest = [place for place in tested.rows if place not in control]
    rest = tested.order(rest, f"perplexity_{text}", "lower")
    if not control or not rest:
        return
    drawn = [number for place in control for number in tested.models(place)]
    tests = tested.perplexity[text]
    better = [p for p in rest if is_shown_higher(tests, drawn, tested.models(p), neutral=1)]
    beaten = [p for p in rest if p not in better and is_shown_higher(tests, tested.models(p), drawn, neutral=1)]
    open_ = [p for p in rest if p not in better and p not in beaten]
    draws = f"all {len(drawn)} draws" if len(drawn) > 1 else "the one draw"
    if open_:
        yield (
            f"{tested.where()}, not shown to be better than {draws} of {RANDOM}, by perplexity: {tested.names(open_)}."
        )
    if beaten:
        yield f"{tested.where()}, shown to be worse than {draws} of {RANDOM}: {tested.names(beaten)}."


def _speed(tested: TestedRow) -> Iterator[str]:
    """Yield the fastest method, and those not shown to be faster than the dense model, by intervals of speed-ups."""
    for stage in ("decode", "prefill"):
        column = f"{stage}_speed"
        order = tested.order(tested.eligible(), column, "higher")
        if order:
            first, rows = order[0], tested.block.rows
            near = [p for p in order[1:] if end_of(rows[p], column, "high") >= end_of(rows[first], column, "low")]
            beside = f"; not apart from it, by the intervals: {tested.names(near)}" if near else ""
            below = "" if len(order) == 1 or near else "; the intervals of all others lie below its own"
            yield (
                f"{tested.where()}, {tested.name(first)} is the fastest in {stage}: {tested.figure(first, column)} "
                f"the dense model's speed{beside}{below}."
            )
            slow = [place for place in order if end_of(rows[place], column, "low") <= 1]
            if slow:
                yield f"{tested.where()}, not shown to be faster than dense in {stage}: {tested.names(slow)}."


def _care(tested: Sequence[TestedRow], records: Sequence[Record]) -> Iterator[str]:
    """Yield the missed budgets, the cells without figures, the seeds, and the tests."""
    for tested_row in tested:
        missed = [place for place in tested_row.rows if "missed_ratio" in str(tested_row.block.rows[place]["flags"])]
        if missed:
            misses = [f"{tested_row.name(place)} removed {_miss(tested_row.block.each[place])}" for place in missed]
            flattered = [place for place in missed if tested_row.block.removes_too_little(place)]
            outside = (
                f" What removed too little is not called best: {tested_row.names(flattered)}." if flattered else ""
            )
            whole = QUANTITIES.get(tested_row.block.ratio_of)
            of = f"the dense model's {whole.removeprefix('the ')}" if whole else "the dense model"
            yield f"{tested_row.where()}, the budget is missed: {', '.join(misses)} of {of}.{outside}"
    failed = [both for both in zip(records, suffixes_of_draws(records), strict=True) if both[0].status != "ok"]
    if failed:
        words = ", ".join(
            f"{name_with_ratio(record, records)}{which} ({legend.words_of_status(record)})" for record, which in failed
        )
        yield f"{len(failed)} {'cell has' if len(failed) == 1 else 'cells have'} no figures: {words}."
    yield from _seeds(records)
    yield from _tests(tested)


def _miss(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return by how much the cells of a row miss their budget: '2.0 % less', or the lowest and highest of several."""
    ends = [choose(row["miss"] for row in rows if is_finite(row.get("miss"))) for choose in (min, max)]
    amounts = dict.fromkeys(f"{abs(100 * end):.1f} % {'more' if end > 0 else 'less'}" for end in ends)
    return "between " * (len(amounts) > 1) + " and ".join(amounts)


def _seeds(records: Sequence[Record]) -> Iterator[str]:
    if not any(record.cell["method"] != "dense" and record.status == "ok" for record in records):
        return
    seeds = seeds_of(records)
    if len(seeds) == 1:
        yield (
            f"Every cell has seed {seeds[0]}: intervals and tests speak for other documents and windows of the same "
            "kind, not for other calibration data; with --seed 0,1,2 they do."
        )
    else:
        yield (
            f"Figures are means over the {names_of_seeds(seeds)}: methods are compared seed by seed, and intervals and "
            "tests speak for other calibration data of the same text too."
        )


def _tests(tested: Sequence[TestedRow]) -> Iterator[str]:
    every = [
        pairs
        for tested_row in tested
        for pairs in (*tested_row.perplexity.values(), tested_row.average, tested_row.answers)
    ]
    contrasts = [contrast for pairs in every for contrast in pairs.values()]
    counts = sorted({len(pairs) for pairs in every if pairs})
    if not counts:
        return
    most = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    used = {c.test for c in contrasts}
    by = ", ".join(words for test, words in TESTS.items() if test in used)
    if "intervals" in used:
        by = f"{by}; else by {ROUGH}" if by else ROUGH
    yield f"Shown means p < {LEVEL} after Holm's adjustment for all {most} pairs of cells at a ratio; tested by {by}."


def end_of(row: Mapping[str, Any], column: str, end: str) -> float:
    """Return the "low" or "high" end of an interval; without an interval the value itself."""
    value = row.get(f"{column}_{end}")
    return float(row[column] if value is None else value)
