"""What `bench similarity` found: tables for the terminal and Markdown, JSON as it is, heatmaps and curves.

Reads the study's JSON alone (bench.evaluation.layer_similarity.study), so that everything can be drawn again later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from tabulate import tabulate

from methods.files import write_atomically
from reports.metrics import MISSING, metric
from reports.text import markdown_escaped, printable, wrap

Study = dict[str, Any]
Rows = list[list[str]]
FORMATS = ("svg", "png")
ROOM = 110  # columns of a terminal
perplexity = metric("perplexity_").format


def write(folder: Path, study: Study) -> list[str]:
    """similarity.md and the figures; the names of all files of the study."""
    write_atomically(folder / "similarity.md", markdown(study) + "\n")
    drawn = {"parameters": parameter_heatmaps(study), "states": state_heatmaps(study)}
    if study.get("merges"):
        drawn["merges"] = merge_curves(study)
    for name, figure in drawn.items():
        save(figure, folder / name)
    return ["similarity.json", "similarity.md", *(f"{name}.{kind}" for name in drawn for kind in FORMATS)]


def save(figure: Figure, path: Path) -> None:
    """As SVG and as PNG, the same bytes each time."""
    with matplotlib.rc_context({"svg.hashsalt": "prunebench"}):
        for kind in FORMATS:
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(path.with_suffix(f".{kind}"), metadata=metadata, dpi=120)


def as_json(study: Study) -> str:
    return json.dumps(study, indent=1, allow_nan=False)


def terminal(study: Study) -> str:
    """Summaries: neighbours beside all pairs, and of each rule the median over positions."""
    lines = [f"{printable(study['model'])}   {study['layers']} layers, {study['dtype']}"]
    for title, heads, rows in _summaries(study):
        lines += ["", title, tabulate(rows, heads, tablefmt="plain", disable_numparse=True, stralign="right")]
    return "\n".join(
        [*lines, "", *(line for note in notes(study) for line in wrap(printable(note), ROOM, indent="  "))]
    )


def markdown(study: Study) -> str:
    """The summaries, and for each number of merged layers a table with every position."""
    lines = [f"# Similarity of the layers of {markdown_escaped(study['model'])}", ""]
    lines.append(f"{study['layers']} layers, {study['dtype']}.")
    for title, heads, rows in [*_summaries(study), *_positions(study)]:
        lines += ["", f"## {title}", "", tabulate(rows, heads, tablefmt="github", disable_numparse=True)]
    return "\n".join([*lines, "", *(f"- {markdown_escaped(note)}" for note in notes(study))])


def notes(study: Study) -> list[str]:
    """How the figures were made."""
    p, tokens = study["protocol"], study["tokens"]
    found = [
        "neighbours: layers i and i + 1. L2 / norm: the distance over the geometric mean of the two norms, which is "
        "1.41 for orthogonal matrices of one length.",
        f"states: residual stream in front of each layer and behind the last; {p['sequences']} "
        f"sequences of {p['length']} tokens of {p['text']}, seed {p['seed']}; mean over sequences, and in the row mean "
        "over tokens too.",
    ]
    if not study.get("merges"):
        return found
    dense = study["dense"]
    interval = ", one window: no interval"
    if dense["nll_low"] is not None:
        interval = f" [{_perplexity(dense, 'nll_low')}, {_perplexity(dense, 'nll_high')}]"
    return [
        *found,
        f"merges: perplexity of {p['windows']} windows of {p['window']} tokens of {p['held_out']}, "
        f"{tokens['scored']:,} tokens scored, and cosine of the last normed state to the dense model's on them; "
        f"the dense model has perplexity {_perplexity(dense)}{interval} (95 %).",
        *(f"{rule}: {meaning}." for rule, meaning in study["rules"].items()),
    ]


def _summaries(study: Study) -> list[tuple[str, list[str], Rows]]:
    tables = [
        ("Parameters", ["matrix", "cosine of neighbours", "lowest", "highest", "cosine of all pairs", "L2 / norm"])
    ]
    found = [(*tables[0], [[role, *_matrix_row(of)] for role, of in study["parameters"].items()])]
    heads = ["token", "cosine of neighbours", "lowest", "across layer", "input to output", "L2 of neighbours"]
    found.append(("States", heads, [[token, *_state_row(of)] for token, of in study["states"].items()]))
    if study.get("merges"):
        heads = ["layers", "rule", "cosine", "worst", "best", "perplexity", "best", "worst", "at most doubled"]
        found.append(("Merges, median over positions", heads, [_merge_row(study, of) for of in study["merges"]]))
    return found


def _matrix_row(of: dict[str, Any]) -> list[str]:
    count, norms = len(of["norm"]), of["norm"]
    near = [of["cosine"][i][i + 1] for i in range(count - 1)]
    every = [of["cosine"][i][j] for i in range(count) for j in range(i + 1, count)]
    share = [of["l2"][i][i + 1] / math.sqrt(norms[i] * norms[i + 1]) for i in range(count - 1)]
    return [f"{value:z.3f}" for value in (fmean(near), min(near), max(near), fmean(every))] + [f"{fmean(share):.2f}"]


def _state_row(of: dict[str, Any]) -> list[str]:
    places = len(of["cosine"])
    if None in of["cosine"][0] or None in of["l2"][0]:
        return [MISSING] * 5  # the states overflow
    near = [of["cosine"][i][i + 1] for i in range(places - 1)]
    l2 = fmean(of["l2"][i][i + 1] for i in range(places - 1))
    lowest = near.index(min(near))
    figures = [f"{fmean(near):z.3f}", f"{near[lowest]:z.3f}", str(lowest), f"{of['cosine'][0][-1]:z.3f}"]
    return [*figures, f"{l2:.3g}"]


def _merge_row(study: Study, of: dict[str, Any]) -> list[str]:
    cosines = [at["cosine"] for at in of["positions"] if at["cosine"] is not None]
    nlls = [at["nll"] for at in of["positions"] if at["nll"] is not None]
    shown = [f"{f(cosines):z.3f}" if cosines else MISSING for f in (median, min, max)]
    shown += [_perplexity({"nll": f(nlls)}) if nlls else MISSING for f in (median, min, max)]
    doubled = sum(nll <= study["dense"]["nll"] + math.log(2) for nll in nlls)
    return [str(of["m"]), of["rule"], *shown, f"{doubled} of {len(of['positions'])}"]


def _positions(study: Study) -> list[tuple[str, list[str], Rows]]:
    """Cosine and perplexity with its interval at every position, a table for each number of layers."""
    found = []
    for m in dict.fromkeys(of["m"] for of in study.get("merges", [])):
        curves = [of for of in study["merges"] if of["m"] == m]
        heads = ["layers", *(f"{of['rule']}: {what}" for of in curves for what in ("cosine", "perplexity"))]
        rows = [
            [f"{p}-{p + m - 1}", *(text for of in curves for text in _at(of["positions"][p]))]
            for p in range(len(curves[0]["positions"]))
        ]
        found.append((f"{m} layers become one", heads, rows))
    return found


def _at(at: dict[str, Any]) -> tuple[str, str]:
    cosine = MISSING if at["cosine"] is None else f"{at['cosine']:z.3f}"
    if at["nll_low"] is None:
        return cosine, _perplexity(at)
    return cosine, f"{_perplexity(at)} [{_perplexity(at, 'nll_low')}, {_perplexity(at, 'nll_high')}]"


def _perplexity(at: dict[str, Any], name: str = "nll") -> str:
    if at[name] is None or at[name] > 700:  # beyond a float
        return MISSING if at[name] is None else "> 1e304"
    figure = math.exp(at[name])
    return perplexity(figure, figure)


def parameter_heatmaps(study: Study) -> Figure:
    """Cosine of every pair of layers, one panel for each matrix; the diagonal, which is 1, is left white."""
    panels = {role: of["cosine"] for role, of in study["parameters"].items()}
    off = [abs(v) for m in panels.values() for i, row in enumerate(m) for j, v in enumerate(row) if i != j and v]
    end = max(off, default=1.0)
    title = f"{study['model']}: cosine of the matrices of two layers (colours end at ± {end:.2g})"
    return _heatmaps(panels, title, "layer", {"cmap": "RdBu_r", "vmin": -end, "vmax": end}, diagonal=False)


def state_heatmaps(study: Study) -> Figure:
    """Cosine of the states at every pair of depths, one panel for each kind of token."""
    panels = {f"{token} token" if token != "mean" else "mean": of["cosine"] for token, of in study["states"].items()}
    title = f"{study['model']}: cosine of the residual stream in front of two layers, and behind the last"
    return _heatmaps(panels, title, "in front of layer", {"cmap": "viridis", "vmax": 1.0}, diagonal=True)


def _heatmaps(
    panels: dict[str, list[list[float | None]]], title: str, axis: str, colours: dict[str, Any], *, diagonal: bool
) -> Figure:
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.2 * columns + 0.8, 3.1 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for place, (name, matrix) in zip(axes, panels.items(), strict=False):
        values = [
            [math.nan if value is None or (i == j and not diagonal) else value for j, value in enumerate(row)]
            for i, row in enumerate(matrix)
        ]
        image = place.imshow(values, origin="lower", **colours)
        place.set(title=name, xlabel=axis, ylabel=axis)
        figure.colorbar(image, ax=place, shrink=0.8)
    for place in axes[len(panels) :]:
        place.set_axis_off()
    figure.suptitle(printable(title), fontsize=10, parse_math=False)
    return figure


def merge_curves(study: Study) -> Figure:
    """Above, the cosine of the last state; below, the perplexity, with its 95 % interval; a column for each m."""
    sizes = list(dict.fromkeys(of["m"] for of in study["merges"]))
    figure = Figure(figsize=(4.2 * len(sizes) + 0.8, 6.4), layout="constrained")
    axes = figure.subplots(2, len(sizes), squeeze=False, sharex="col", sharey="row")
    for number, of in enumerate(study["merges"]):
        column = sizes.index(of["m"])
        style = {"color": f"C{list(study['rules']).index(of['rule'])}", "label": of["rule"], "marker": ".", "lw": 1}
        style["ls"] = "--" if "control" in study["rules"][of["rule"]] else "-"
        x = [at["position"] for at in of["positions"]]
        axes[0, column].plot(x, _numbers(of, "cosine"), zorder=number + 2, **style)
        axes[1, column].plot(x, [math.exp(min(v, 700)) for v in _numbers(of, "nll")], zorder=number + 2, **style)
        if all(at["nll_low"] is not None for at in of["positions"]):
            low, high = ([math.exp(min(v, 700)) for v in _numbers(of, name)] for name in ("nll_low", "nll_high"))
            axes[1, column].fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    for column, m in enumerate(sizes):
        axes[0, column].set(title=f"{m} layers become one")
        axes[1, column].set(xlabel="first of the merged layers", yscale="log")
        axes[1, column].axhline(math.exp(study["dense"]["nll"]), color="black", lw=1, ls=":", label="dense")
    axes[0, 0].set_ylabel("cosine of the last state to dense")
    axes[1, 0].set_ylabel("perplexity, 95 % interval shaded")
    axes[1, 0].legend(fontsize=8, loc="upper right")
    figure.suptitle(
        printable(f"{study['model']}: what merging does, by rule and position"), fontsize=10, parse_math=False
    )
    return figure


def _numbers(of: dict[str, Any], name: str) -> list[float]:
    values: Sequence[float | None] = [at[name] for at in of["positions"]]
    return [math.nan if value is None else value for value in values]
