"""The card of a stored model: README.md, made from its manifest and nothing else.

What the manifest does not say is left out: a figure that nobody measured has no line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STOCK = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
```

Nothing but transformers is needed."""
OWN = """\
```python
from methods import checkpoint  # of prunebench

model = checkpoint.load(FOLDER).model
```

Stock transformers cannot hold this model: {reason}. With `import methods.checkpoint` the Auto classes load it too."""


def render(manifest: Mapping[str, Any]) -> str:
    """The text of README.md."""
    base, pruning = manifest.get("base", {}), manifest.get("pruning", {})
    name = base.get("name", manifest["architecture"])
    method = pruning.get("label")
    parts = [
        _front_matter(base, pruning),
        f"# {name}, pruned" + (f" with {method}" if method else ""),
        _table(_origin(base) | _pruning(pruning) | _size(manifest)),
        _earlier("The base had itself been pruned, in this order:", base.get("pruning", [])),
        _earlier("Before that the model had been pruned, in this order:", pruning.get("earlier", [])),
        "## Structure",
        _structure(manifest["structure"]),
        *_figures(manifest.get("measured", {})),
        "## Loading",
        STOCK if manifest["loads_with"] == "transformers" else OWN.format(reason=manifest["reason"]),
        f"Check the folder with `python -m bench verify FOLDER`. Made with {_list(manifest['versions'])}.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(base: Mapping[str, Any], pruning: Mapping[str, Any]) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- pruned", "- prunebench"]
    if "method" in pruning:
        lines.append(f"- {pruning['method']}")
    if "licence" in base:
        lines.append(f"license: {base['licence'].lower()}")
    if "hub" in base:
        lines.append(f"base_model: {base['hub']}")
    return "\n".join([*lines, "---"])


def _origin(base: Mapping[str, Any]) -> dict[str, str]:
    rows = {}
    if "name" in base:
        rows["Base model"] = base["name"]
        rows["Licence of the base"] = base.get("licence", "not stated where the base was loaded from")
    if "weights_sha256" in base:
        rows["Weights of the base"] = f"sha256 `{base['weights_sha256']}`"
    if "parameters" in base:
        rows["Parameters of the base"] = f"{base['parameters']:,}"
    return rows


def _pruning(pruning: Mapping[str, Any]) -> dict[str, str]:
    rows = {}
    if "method" in pruning:
        given = ", ".join(f"`{name}={value}`" for name, value in pruning.get("parameters", {}).items())
        rows["Method"] = f"{pruning['method']} ({given})" if given else pruning["method"]
    if pruning.get("requested") is not None:
        rows["Ratio asked for"] = f"{pruning['requested']:g} of all parameters"
    if "budget" in pruning:
        rows["Ratio to meet"] = f"{pruning['budget']:.4f}, {_match(pruning.get('match'))}"
    if "achieved" in pruning:
        rows["Ratio achieved"] = f"{pruning['achieved']:.4f}"
    if "calibration" in pruning:
        text = pruning["calibration"]
        sequences, tokens = text["shape"]
        rows["Calibration"] = (
            f"{text['source']}, {sequences} sequences of {tokens} tokens, seed {text['seed']}, "
            f"sha256 of the tokens `{text['sha256']}`"
        )
    if "healing" in pruning:
        recipe = pruning["healing"]
        rows["Trained after pruning"] = (
            f"{recipe['kind']}, {recipe['tokens']:,} tokens of {recipe['text']}, loss {recipe['loss']}, learning rate "
            f"up to {recipe['learning_rate']:g}, {recipe['steps']} steps of {recipe['batch']} sequences of "
            f"{recipe['length']} tokens, seed {recipe['seed']}"
        )
    return rows


def _match(match: str | None) -> str:
    return "the request rounded to whole layers" if match == "layers" else "the request itself"


def _size(manifest: Mapping[str, Any]) -> dict[str, str]:
    rows = {"Parameters": f"{manifest['parameters']:,}", "Stored as": manifest["dtype"]}
    if "padding" in manifest:
        padding = manifest["padding"]
        zeros = manifest["parameters"] - padding["parameters"]
        rows["Padding"] = (
            f"{zeros:,} of the parameters are zeros that make all layers equally wide; largest logit difference "
            f"{padding['logit_difference']:.2g}"
        )
    if "rounding" in manifest:
        rounding = manifest["rounding"]
        rows["Cost of rounding"] = (
            f"largest logit difference {rounding['logit_difference']:.2g}, KL {rounding['kl']:.2g} nats per token, "
            f"against the model before rounding, on {rounding['tokens']} tokens"
        )
    return rows


def _earlier(said: str, steps: list[Mapping[str, Any]]) -> str:
    """What had been done before."""
    if not steps:
        return ""
    lines = [f"- {step.get('label', 'pruned')}, ratio {step.get('achieved', 0.0):.4f}" for step in steps]
    return "\n".join([said, "", *lines])


def _structure(structure: Mapping[str, Any]) -> str:
    """One row for each run of equal layers."""
    runs: list[tuple[int, int, Mapping[str, Any]]] = []
    for number, facts in enumerate(structure["layers"]):
        if runs and runs[-1][2] == facts:
            runs[-1] = (runs[-1][0], number, facts)
        else:
            runs.append((number, number, facts))
    lines = ["| layers | query heads | key/value heads | MLP width | without |", "| --- | --- | --- | --- | --- |"]
    for first, last, facts in runs:
        numbers = str(first) if first == last else f"{first} to {last}"
        sizes = (facts["num_attention_heads"], facts["num_key_value_heads"], facts["intermediate_size"])
        lines.append(f"| {numbers} | {' | '.join(map(str, sizes))} | {', '.join(facts.get('skip', [])) or '-'} |")
    if structure["residual"]:
        width, end = structure["residual"]["hidden_size"], structure["residual"]["output_size"]
        lines += ["", f"The residual stream is {width} wide, and {end} behind the last layer."]
    return "\n".join(lines)


def _figures(measured: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| perplexity of {text} | {one['perplexity']:.3f} | {one['tokens']:,} tokens, windows of {one['window']} |"
        for text, one in measured.get("perplexity", {}).items()
    ]
    for task, entry in measured.get("tasks", {}).items():
        figure = entry[entry["main"]]
        error = "" if figure.get("stderr") is None else f" ± {figure['stderr']:.4f}"
        documents = f"{entry['documents']} of {entry['available']} documents"
        rows.append(f"| {task}, {entry['main']} | {figure['value']:.4f}{error} | {documents} |")
    if not rows:
        return []
    how = measured.get("model", "the model in memory")
    return ["## Measured", "\n".join(["| figure | value | on |", "| --- | --- | --- |", *rows]), f"Measured on {how}."]


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows.items())])


def _list(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
