"""Figures of `bench similarity`: heatmaps of how alike layers are, and curves of what merging them does.

They are drawn from the study's JSON alone (bench.evaluation.layer_similarity.compare_layers), so that they can be drawn
again.
"""

from __future__ import annotations

import math
from functools import partial
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.records.quantities import quantity_of_column
from reports.figures.curves import write_names
from reports.figures.figure import Figure
from reports.figures.style import BLACK, COLOURS, name_in_font, set_log_ticks
from reports.text import to_printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


Study = dict[str, Any]
Matrix = list[list[float | None]]
COLUMNS = 4  # panels side by side
LARGEST = 700  # nats; the perplexity of a larger loss is not finite


def figures_of_similarity(study: Study) -> list[Figure]:
    """Return the heatmaps of parameters and of states, and the curves of merges if the study merged layers."""
    model = to_printable(study["model"])
    parameters = {role: of["cosine"] for role, of in study["parameters"].items()}
    states = {token if token == "mean" else f"{token} token": of["cosine"] for token, of in study["states"].items()}
    off = [abs(v) for m in parameters.values() for i, row in enumerate(m) for j, v in enumerate(row) if i != j and v]
    end = max(off, default=1.0)
    figures = [
        Figure(
            "parameters",
            f"{model}: cosine of the matrices of two layers (colours end at ± {end:.2g})",
            _words_of_neighbours(parameters),
            partial(_heatmaps, _without_diagonal(parameters), "layer", {"cmap": "RdBu_r", "vmin": -end, "vmax": end}),
        ),
        Figure(
            "states",
            f"{model}: cosine of the residual stream in front of two layers, and behind the last",
            _words_of_neighbours(states),
            partial(_heatmaps, states, "in front of layer", {"cmap": "viridis", "vmax": 1.0}),
        ),
    ]
    if study.get("merges"):
        title = f"{model}: what merging layers does, by rule and position"
        figures.append(Figure("merges", title, _words_of_merges(study), partial(_merge_curves, study)))
    return figures


def _without_diagonal(panels: dict[str, Matrix]) -> dict[str, Matrix]:
    """Return the matrices without the cosine of each layer with itself, which is 1 and would stretch the colours."""
    emptied: dict[str, Matrix] = {}
    for role, matrix in panels.items():
        emptied[role] = [[*row[:i], None, *row[i + 1 :]] for i, row in enumerate(matrix)]
    return emptied


def _words_of_neighbours(panels: dict[str, Matrix]) -> str:
    """Return a sentence on how alike neighbours are in each panel."""
    words = []
    for panel, matrix in panels.items():
        beside = [matrix[i][i + 1] for i in range(len(matrix) - 1)]
        near = [value for value in beside if value is not None]
        words += [f"{panel} {fmean(near):z.3f} ({min(near):z.3f} to {max(near):z.3f})"] if near else []
    return f"Mean cosine of neighbours, with the lowest and the highest: {', '.join(words) or 'none is known'}."


def _words_of_merges(study: Study) -> str:
    """Return a sentence with the median perplexity over the positions, for each number of layers and rule."""
    dense, words = _perplexity(study["dense"]["nll"]), []
    for of in study["merges"]:
        nlls = [at["nll"] for at in of["positions"] if at["nll"] is not None]
        perplexity = quantity_of_column("perplexity_").show(_perplexity(median(nlls))) if nlls else "none"
        words.append(f"{of['m']} layers by {of['rule']} {perplexity}")
    return (
        f"Median perplexity over positions: {', '.join(words)}; dense {quantity_of_column('perplexity_').show(dense)}."
    )


def _heatmaps(panels: dict[str, Matrix], axis: str, colours: dict[str, Any]) -> Drawing:
    """Draw a panel for each matrix of cosines, layers by layers."""
    from matplotlib.figure import Figure as Drawing

    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    drawing = Drawing(figsize=(3.2 * columns + 0.8, 3.1 * rows + 0.5), layout="constrained")
    places = drawing.subplots(rows, columns, squeeze=False).flatten().tolist()
    for place, (panel, matrix) in zip(places, panels.items(), strict=False):
        values = np.array(matrix, dtype=float)  # None is nan
        image = place.imshow(values, origin="lower", **colours)
        place.set(title=name_in_font(panel), xlabel=axis, ylabel=axis)
        place.grid(visible=False)
        drawing.colorbar(image, ax=place, shrink=0.8)
    for place in places[len(panels) :]:
        place.set_axis_off()
    return drawing


def _merge_curves(study: Study) -> Drawing:
    """Draw the cosine of the last state above the perplexity with its 95 % interval, a column for each count."""
    from matplotlib.figure import Figure as Drawing

    sizes = list(dict.fromkeys(of["m"] for of in study["merges"]))
    drawing = Drawing(figsize=(4.2 * len(sizes) + 1.6, 6.4), layout="constrained")
    axes = drawing.subplots(2, len(sizes), squeeze=False, sharex="col", sharey="row")
    rules, plotted = list(study["rules"]), [_perplexity(study["dense"]["nll"])]
    for of in study["merges"]:
        above, below = axes[:, sizes.index(of["m"])]
        control = "control" in study["rules"][of["rule"]]
        look = {"color": COLOURS[rules.index(of["rule"]) % len(COLOURS)], "linestyle": "--" if control else "-"}
        x = [at["position"] for at in of["positions"]]
        cosines = [math.nan if at["cosine"] is None else at["cosine"] for at in of["positions"]]
        perplexities = [_perplexity(at["nll"]) for at in of["positions"]]
        low = [_perplexity(at["nll_low"]) for at in of["positions"]]
        high = [_perplexity(at["nll_high"]) for at in of["positions"]]
        above.plot(x, cosines, label=of["rule"], marker=".", **look)
        below.plot(x, perplexities, label=of["rule"], marker=".", **look)
        below.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
        plotted += [value for value in perplexities if math.isfinite(value)]
    for (above, below), m in zip(axes.T, sizes, strict=True):
        above.set_title(f"{m} layers become one")
        below.set(xlabel="first of the merged layers", yscale="log")
        below.xaxis.get_major_locator().set_params(integer=True)
        set_log_ticks(below.yaxis, plotted, 12)
        below.axhline(plotted[0], color=BLACK, linewidth=1, linestyle=":", label="dense")
    axes[0, 0].set_ylabel("cosine of the last state to dense")
    axes[1, 0].set_ylabel("perplexity, 95 % interval shaded")
    write_names(axes[1].tolist())
    return drawing


def _perplexity(nll: float | None) -> float:
    """Return the perplexity of a loss in nats per token; NaN without a loss."""
    return math.nan if nll is None else math.exp(min(nll, LARGEST))
