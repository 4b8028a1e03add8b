"""The tables of a study of similarity, made from its JSON (bench.evaluation.layer_similarity.compare_layers)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from statistics import fmean, median
from typing import Any

from bench.records.quantities import quantity_of_column
from bench.records.quantity import format_significant
from reports.tables.table import Column, Row, Table, TableCell, cell_of_text, column_of_words

Study = dict[str, Any]
perplexity = quantity_of_column("perplexity_").format


def title_of_study(study: Study) -> str:
    """Return the title of the study's page."""
    return f"Similarity of the layers of {study['model']}"


def tables_of_neighbours(study: Study) -> list[Table]:
    """Return the tables of parameters and states at neighbouring layers, and the medians over positions of merges."""
    tables = [
        _table(
            study,
            "Parameters",
            "matrix",
            _columns("cosine of neighbours", "lowest", "highest", "cosine of all pairs", "L2 / norm"),
            [Row(role, "", None, _of_matrix(of)) for role, of in study["parameters"].items()],
        ),
        _table(
            study,
            "States",
            "token",
            _columns("cosine of neighbours", "lowest", "across layer", "input to output", "L2 of neighbours"),
            [Row(token, "", None, _of_state(of)) for token, of in study["states"].items()],
        ),
    ]
    if study.get("merges"):
        heads = _columns("cosine", "worst", "best", "perplexity", "best", "worst", "at most doubled")
        rows = [Row(str(of["m"]), "", None, _of_merge(study, of)) for of in study["merges"]]
        tables.append(_table(study, "Merges, median over positions", "layers", [column_of_words("rule"), *heads], rows))
    return tables


def tables_of_positions(study: Study) -> list[Table]:
    """Return a table for each number of merged layers: cosine and perplexity with its interval at every position."""
    tables = []
    for m in dict.fromkeys(of["m"] for of in study.get("merges", [])):
        curves = [of for of in study["merges"] if of["m"] == m]
        heads = _columns(*(f"{of['rule']}: {what}" for of in curves for what in ("cosine", "perplexity")))
        rows = []
        for p, places in enumerate(zip(*(of["positions"] for of in curves), strict=True)):
            rows.append(Row(f"{p}-{p + m - 1}", "", None, tuple(chain(*map(_at, places)))))
        tables.append(_table(study, f"{m} layers become one", "layers", heads, rows))
    return tables


def _table(study: Study, title: str, head: str, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    where = (f"{study['layers']} layers", study["dtype"])
    footnotes = tuple(notes_of_study(study))
    return Table("similarity", "", study["model"], title, where, tuple(columns), tuple(rows), (), footnotes, head)


def _columns(*names: str) -> list[Column]:
    return [Column(name, name) for name in names]


def notes_of_study(study: Study) -> list[str]:
    """Return sentences on how the figures of a study were measured."""
    p, tokens = study["protocol"], study["tokens"]
    notes = [
        "neighbours: layers i and i + 1. L2 / norm: the distance over the geometric mean of the two norms, which is "
        "1.41 for orthogonal matrices of one length.",
        f"states: residual stream in front of each layer and behind the last; {p['sequences']} "
        f"sequences of {p['length']} tokens of {p['text']}, seed {p['seed']}; mean over sequences, and in the row mean "
        "over tokens too.",
    ]
    if not study.get("merges"):
        return notes
    dense = _perplexity(study["dense"]).text + ", one window: no interval" * (study["dense"]["nll_low"] is None)
    return [
        *notes,
        f"merges: perplexity of {p['windows']} windows of {p['window']} tokens of {p['held_out']}, "
        f"{tokens['scored']:,} tokens scored, and cosine of the last normed state to the dense model's on them; "
        f"the dense model has perplexity {dense} (95 %).",
        *(f"{rule}: {meaning}." for rule, meaning in study["rules"].items()),
    ]


def _of_matrix(of: dict[str, Any]) -> tuple[TableCell, ...]:
    count, norms = len(of["norm"]), of["norm"]
    near = [of["cosine"][i][i + 1] for i in range(count - 1)]
    every = [of["cosine"][i][j] for i in range(count) for j in range(i + 1, count)]
    share = [of["l2"][i][i + 1] / math.sqrt(norms[i] * norms[i + 1]) for i in range(count - 1)]
    l2 = fmean(share)
    return (*map(_cosine, (fmean(near), min(near), max(near), fmean(every))), TableCell(f"{l2:.2f}", value=l2))


def _of_state(of: dict[str, Any]) -> tuple[TableCell, ...]:
    places = len(of["cosine"])
    if None in of["cosine"][0] or None in of["l2"][0]:
        return (TableCell(),) * 5  # the states overflow
    near = [of["cosine"][i][i + 1] for i in range(places - 1)]
    l2 = fmean(of["l2"][i][i + 1] for i in range(places - 1))
    lowest = near.index(min(near))
    layer, distance = TableCell(str(lowest), value=lowest), TableCell(format_significant(l2), value=l2)
    return (_cosine(fmean(near)), _cosine(near[lowest]), layer, _cosine(of["cosine"][0][-1]), distance)


def _of_merge(study: Study, of: dict[str, Any]) -> tuple[TableCell, ...]:
    cosines = [at["cosine"] for at in of["positions"] if at["cosine"] is not None]
    nlls = [at["nll"] for at in of["positions"] if at["nll"] is not None]
    cells = [_cosine(pick(cosines) if cosines else None) for pick in (median, min, max)]
    cells += [_perplexity({"nll": pick(nlls) if nlls else None}) for pick in (median, min, max)]
    doubled = sum(nll <= study["dense"]["nll"] + math.log(2) for nll in nlls)
    return (cell_of_text(of["rule"]), *cells, TableCell(f"{doubled} of {len(of['positions'])}", value=doubled))


def _at(at: dict[str, Any]) -> tuple[TableCell, TableCell]:
    """Return the cells of one position."""
    return _cosine(at["cosine"]), _perplexity(at)


def _cosine(value: float | None) -> TableCell:
    return TableCell() if value is None else TableCell(f"{value:z.3f}", value=value)


def _perplexity(at: dict[str, Any]) -> TableCell:
    """Return the cell of a perplexity from nats per token, with its interval if it has one."""
    figure, low, high = (_exp(at.get(name)) for name in ("nll", "nll_low", "nll_high"))
    if figure is None:
        return TableCell()
    spread = "" if low is None or high is None else f" [{_format_figure(low)}, {_format_figure(high)}]"
    return TableCell(_format_figure(figure) + spread, _format_figure(figure), figure, low, high)


def _exp(nll: float | None) -> float | None:
    return None if nll is None else math.inf if nll > 700 else math.exp(nll)  # larger than a float can be


def _format_figure(figure: float) -> str:
    return "> 1e304" if figure == math.inf else perplexity(figure, figure)
