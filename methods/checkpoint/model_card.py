"""Writes the card of a stored model, README.md, from its manifest, and from a picture where there is one.

A value that the manifest lacks has no line. The words are in model_card.md.jinja. The front matter holds the values
once more, as the model index that the hub shows as evaluation results.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.counted import QUANTITIES

if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from jinja2 import Template


PROTOCOL = ("tokens", "windows", "window", "drawn", "stride", "bos")  # of a perplexity
TEXT_METRICS = {  # name on the hub: (name in a record, words for a reader)
    "perplexity": ("perplexity", "perplexity per token"),
    "bits_per_byte": ("bits_per_byte", "bits per byte"),
}
TEMPLATE = Path(__file__).with_suffix(".md.jinja")


def render(manifest: Mapping[str, Any], picture: str = "") -> str:
    """Return the text of README.md for a manifest of methods.checkpoint.save_load.

    picture  a line of Markdown that shows one
    """
    from huggingface_hub import ModelCard, ModelCardData

    base, pruning = manifest.get("base", {}), manifest.get("pruning", {})
    measured, title = manifest.get("measured", {}), title_of(manifest)
    results = results_of_manifest(measured)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pruned", "prunebench", *([pruning["method"]] if "method" in pruning else [])],
        license=base["licence"].lower() if "licence" in base else None,
        base_model=base.get("hub"),
        model_name=title if results else None,
        eval_results=results or None,
    )
    parts = {"manifest": manifest, "base": base, "pruning": pruning, "measured": measured}
    parts |= {"picture": picture, "title": title, "quantities": QUANTITIES}
    parts |= {"windows": words_of_windows, "documents": words_of_documents}
    runs = group_equal_layers(manifest["structure"]["layers"])
    text = _template().render(card_data=data.to_yaml(), runs=runs, **parts)
    return str(ModelCard(text)) + "\n"


@cache
def _template() -> Template:
    """Return the template of a card. It takes 0.05 s to compile."""
    from jinja2 import Template

    return Template(TEMPLATE.read_text(encoding="utf-8"))


def title_of(manifest: Mapping[str, Any]) -> str:
    """Return the name of the base with that of the method, in one line."""
    name, method = manifest.get("base", {}).get("name"), manifest.get("pruning", {}).get("label")
    return " ".join(f"{name or manifest['architecture']}, pruned{f' with {method}' if method else ''}".split())


def results_of_manifest(measured: Mapping[str, Any]) -> list[EvalResult]:
    """Return the measured values of a manifest as evaluation results of the hub, each with the protocol in its name."""
    from huggingface_hub import EvalResult

    results = []
    for text, scored in (measured.get("perplexity") or {}).items():
        where = {"task_type": "text-generation", "task_name": "next tokens of a text", "dataset_type": text}
        how, protocol = words_of_windows(scored), {name: scored[name] for name in PROTOCOL if name in scored}
        for metric, (key, unit) in TEXT_METRICS.items():
            if key in scored:
                values = {"metric_type": metric, "metric_value": scored[key], "metric_args": protocol}
                results.append(EvalResult(dataset_name=text, metric_name=f"{unit}, {how}", **where, **values))
    for task, answered in (measured.get("tasks") or {}).items():
        how = words_of_documents(answered)
        values = {"metric_type": answered["main"], "metric_value": answered["metrics"][answered["main"]]["value"]}
        where = {"task_type": "text-generation", "task_name": task, "dataset_type": task, "dataset_name": task}
        results.append(EvalResult(metric_name=f"{answered['main']}, {how}", **where, **values))
    return results


def words_of_windows(scored: Mapping[str, Any]) -> str:
    """Return in words the windows of text that a perplexity was measured on."""
    count = f"{scored['windows']:,} windows" if "windows" in scored else "windows"
    stride = f", stride {scored['stride']:,}" if "stride" in scored else ""
    where = {True: ", drawn from the text", False: ", one behind the other", None: ""}[scored.get("drawn")]
    return f"{scored['tokens']:,} tokens, {count} of {scored['window']:,}{where}{stride}"


def words_of_documents(answered: Mapping[str, Any]) -> str:
    """Return in words the documents of a task that a metric was measured on, and the examples in front of each."""
    shots = f", {answered['fewshot']}-shot" if "fewshot" in answered else ""
    return f"{answered['documents']:,} of {answered['available']:,} documents{shots}"


def group_equal_layers(layers: list[dict[str, Any]]) -> list[tuple[int, int, dict[str, Any]]]:
    """Return (first, last, facts) for each run of layers with equal facts in a manifest."""
    runs = [list(run) for _, run in groupby(enumerate(layers), key=lambda numbered: numbered[1])]
    return [(run[0][0], run[-1][0], run[0][1]) for run in runs]
