"""What `bench inherit` found: two learning curves side by side, as a table, as a figure, as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tabulate import tabulate

from methods.files import write_atomically
from reports.figures.similarity import FORMATS, ROOM, save
from reports.metrics import metric
from reports.text import markdown_escaped, printable, wrap

Found = dict[str, Any]


def write(folder: Path, found: Found) -> list[str]:
    """inherit.md and the figure; the names of all files."""
    write_atomically(folder / "inherit.md", markdown(found) + "\n")
    save(curves(found), folder / "inherit")
    return ["inherit.json", "inherit.md", *(f"inherit.{kind}" for kind in FORMATS)]


def as_json(found: Found) -> str:
    return json.dumps(found, indent=1, allow_nan=False)


def terminal(found: Found) -> str:
    table = tabulate(_rows(found), _heads(found), tablefmt="plain", disable_numparse=True, stralign="right")
    lines = [printable(_title(found)), "", table, ""]
    return "\n".join(lines + [line for note in _notes(found) for line in wrap(printable(note), ROOM, indent="  ")])


def markdown(found: Found) -> str:
    table = tabulate(_rows(found), _heads(found), tablefmt="github", disable_numparse=True)
    lines = [f"# {markdown_escaped(_title(found))}", "", table, ""]
    return "\n".join([*lines, *(f"- {markdown_escaped(note)}" for note in _notes(found))])


def _title(found: Found) -> str:
    return f"{found['model']}, {found['method']} at {found['ratio']:.3f}: pruned beside random"


def _heads(found: Found) -> list[str]:
    return ["tokens", *(f"{name}, nats/token" for name in found["curves"]), "pruned ahead by"]


def _rows(found: Found) -> list[list[str]]:
    rows = []
    for pruned, random in zip(*found["curves"].values(), strict=True):
        ahead = random["heldout_loss"] - pruned["heldout_loss"]
        rows.append([f"{pruned['tokens']:,}", _loss(pruned), _loss(random), f"{ahead:.2f}"])
    return rows


def _loss(point: dict[str, float]) -> str:
    half = (point["heldout_loss_high"] - point["heldout_loss_low"]) / 2
    return f"{point['heldout_loss']:.2f} ± {half:.2f}"


def _notes(found: Found) -> list[str]:
    r, trained = found["recipe"], found["curves"]["pruned"][-1]["tokens"]
    perplexity = metric("perplexity_").format
    ends = {name: math.exp(min(curve[-1]["heldout_loss"], 700)) for name, curve in found["curves"].items()}
    shown = ", ".join(f"{name} {perplexity(value, value)}" for name, value in ends.items())
    return [
        f"both: {found['parameters'] / 1e6:.1f} M parameters, all of them trained on {trained:,} tokens of "
        f"{found['text']} in {r['steps']} steps of up to {r['batch']} x {r['length']} tokens, passes over the text: "
        f"{r['passes']}, learning rate up to {r['learning_rate']:g}, seed {r['seed']}.",
        "nats/token: loss of the next token on 8 held-out sequences of the calibration documents, ± half the 95 % "
        "interval over sequences. Both models are measured on the same ones.",
        f"perplexity there at the end: {shown}.",
    ]


def curves(found: Found) -> Figure:
    """Held-out loss by tokens trained on, with its 95 % interval."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for (name, curve), colour in zip(found["curves"].items(), ("C0", "C1"), strict=True):
        x = [point["tokens"] for point in curve]
        axes.plot(x, [point["heldout_loss"] for point in curve], marker=".", color=colour, label=name)
        low, high = ([point[f"heldout_loss_{end}"] for point in curve] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    axes.set(xlabel="tokens trained on", ylabel="held-out loss, nats per token (95 % interval shaded)")
    axes.legend()
    figure.suptitle(printable(_title(found)), fontsize=10, parse_math=False)
    return figure
