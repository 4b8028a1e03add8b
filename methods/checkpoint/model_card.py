"""Writes the card of a stored model, README.md, from its manifest and nothing else.

What the manifest does not say is left out: a figure that nobody measured has no line. The words are in
model_card.md.jinja.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_suffix(".md.jinja")


def render(manifest: Mapping[str, Any]) -> str:
    """Return the text of README.md for a manifest of methods.checkpoint.save_load."""
    from huggingface_hub import ModelCard, ModelCardData

    base, pruning = manifest.get("base", {}), manifest.get("pruning", {})
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pruned", "prunebench", *([pruning["method"]] if "method" in pruning else [])],
        license=base["licence"].lower() if "licence" in base else None,
        base_model=base.get("hub"),
    )
    parts = {"manifest": manifest, "base": base, "pruning": pruning, "measured": manifest.get("measured", {})}
    runs = equal_layers(manifest["structure"]["layers"])
    return str(ModelCard.from_template(data, template_path=str(TEMPLATE), runs=runs, **parts)) + "\n"


def equal_layers(layers: list[dict[str, Any]]) -> list[tuple[int, int, dict[str, Any]]]:
    """Return (first, last, facts) for each run of layers about which a manifest says the same."""
    runs = [list(run) for _, run in groupby(enumerate(layers), key=lambda numbered: numbered[1])]
    return [(run[0][0], run[-1][0], run[0][1]) for run in runs]
