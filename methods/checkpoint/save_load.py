"""Saves pruned models as folders, loads them again, and checks such folders. A folder is whole or absent.

    config.json              of the stock class where stock transformers can hold the model, else a PrunedConfig
    model*.safetensors       the weights, in several files above a limit, with an index as transformers writes it
    generation_config.json, tokenizer files, and those of the image processor of a model that reads images
    prunebench.json          the manifest: layout, hashes, counts, structure, where the model is from (see `save`)
    README.md                the card, made from the manifest

A folder with a stock configuration needs transformers alone. Any other folder loads with `load`, or, where this file
has been imported, through the Auto classes. No code in this file pickles or unpickles.

`verify` checks a folder: whether files, shapes, loader and number of parameters are those of its manifest, and whether
the model computes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from methods import model_files
from methods.checkpoint import model_card, weight_files
from methods.checkpoint.pruned_config import PrunedConfig, Uneven, describe, make_empty
from methods.checkpoint.transformers_compat import (
    compute_logits,
    config_of_uniform,
    difference_of_shapes,
    load_quietly,
    pad_layers,
    shapes_of,
    try_out,
)
from methods.errors import CheckpointError, first_line_of
from methods.model.decoder import Decoder, Place, place_of, positions_behind_cache, set_dtype
from methods.model.layer_store import LayerStore
from methods.model.precision import dtype_by_name
from methods.model.sizes import active_parameters, parameters

__all__ = ["CheckpointError", "complete", "is_checkpoint", "load", "read_manifest", "refuse_own_code", "save"]

LAYOUT = 1
MANIFEST = "prunebench.json"
SHARD_BYTES = 5 * 10**9
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOADERS = ("transformers", "prunebench")
PROBE_TOKENS = 24
CPU = torch.device("cpu")


def save(
    model: Decoder,
    folder: Path,
    *,
    tokenizer: Any = None,
    facts: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    pad: bool = False,
    probe: Tensor | None = None,
) -> dict[str, Any]:
    """Write `model` into `folder`, which must be new or empty, and return the manifest.

    facts        entries of the manifest, and so of the card: base, pruning, measured
    dtype        of the weights on disk, but for those that the model's class keeps in float32; by default its own
    shard_bytes  the most that one weight file holds, unless a single tensor is larger
    pad          fill up with zeros to uniform widths, so that stock transformers and other engines can hold the model
    probe        (B, T) token ids on which the loss by `dtype` and `pad` is measured; by default some fixed ones

    The manifest, all plain JSON values:

        layout, versions   of this layout; {package: version}
        loads_with         "transformers" or "prunebench"
        reason             why not transformers alone, or null
        architecture       the class of the base
        dtype, parameters  of the weights; stored, each tied tensor once
        weights            {file: {bytes, sha256}}
        structure          {layers: [what each holds, by the names of methods.checkpoint.pruned_config], residual}
        experts            {layers, count, taken, active_parameters}: how many layers are mixtures, how many experts
                           each holds, how many a token takes, and what it is computed with. Absent without mixtures
        padding            {parameters, logit_difference}: without the zeros; the largest there is. Absent unless padded
        rounding           {dtype, tokens, logit_difference, kl}: of the stored against the given model, the largest
                           difference and nats per token. Absent where the dtype is the model's own
        ...                facts

    Raises CheckpointError, and leaves no file behind, where the folder is taken, the disk refuses, the model runs code
    of its own, is in float64, or has a part that no description fits.
    """
    refuse_own_code(model)
    folder, own = Path(folder), model.embed.weight.dtype
    dtype = require_storable(own if dtype is None else dtype)
    ids = make_probe(model) if probe is None else probe
    with model.at_home(), weight_files.write_folder_whole(folder) as inside:
        expected = compute_logits(model, ids)
        manifest: dict[str, Any] = {"layout": LAYOUT, "versions": _versions()}
        if pad:
            model, manifest["padding"] = _pad(model, ids)
        form = form_of(model, ids)
        set_dtype(form.config, dtype)
        manifest |= {
            "loads_with": "prunebench" if form.reason else "transformers",
            "reason": form.reason,
            "architecture": type(model.model).__name__,
            "dtype": str(dtype).removeprefix("torch."),
            "parameters": parameters(model),
            "structure": form.structure,
            **_experts(model),
            "weights": weight_files.write_weights(inside, form.tensors, dtype_by_name(model.model, dtype), shard_bytes),
        }
        _write_rest(inside, model, form.config, tokenizer)
        if dtype != own:
            rounded = Decoder(load_quietly(form.config, str(inside), place_of(model.model), dtype))
            manifest["rounding"] = _rounding(expected, compute_logits(rounded, ids), manifest["dtype"])
        _write_manifest(inside, dict(facts or {}) | manifest)
    return read_manifest(folder)


def refuse_own_code(model: Decoder) -> None:
    """Raise CheckpointError for a model whose class is not one of transformers, since no code is stored."""
    kind = type(model.model)
    if kind.__module__.partition(".")[0] != "transformers":
        raise CheckpointError(f"{kind.__name__} is code that came with the model, and a saved model holds no code")


def require_storable(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype. Raises CheckpointError for one that no stored model has, such as float64."""
    if dtype not in DTYPES.values():
        name = str(dtype).removeprefix("torch.")
        raise CheckpointError(f"a model is stored in {', '.join(DTYPES)}; got {name}; give one of them as dtype")
    return dtype


def load(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: Place = CPU,
    check_hashes: bool = True,
    store: LayerStore | None = None,
) -> Decoder:
    """Return the model in `folder`, in evaluation mode, in `dtype` or else the dtype it is stored in.

    device  one, or several over which its layers are spread
    store   lets weights lie in files, whatever the device, see bench.data.pretrained.load

    Raises CheckpointError for a folder that differs from its manifest or its configuration.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    weight_files.check_weights(folder, manifest["weights"], hashes=check_hashes)
    config, stored = check_config(folder, manifest), DTYPES[manifest["dtype"]]
    dtype = dtype or stored
    try:
        place, as_it_is = (device, dtype) if store is None else (CPU, stored)
        model = load_quietly(config, str(folder), place, as_it_is, use_safetensors=True)
    except (ValueError, OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder} does not load: {first_line_of(error)}") from error
    decoder = Decoder(model, store)
    if store is not None:
        decoder.cast(dtype)
    return decoder


def complete(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Add `facts`, such as figures of the reloaded model, to the manifest and the card. Returns the new manifest."""
    manifest = read_manifest(folder) | dict(facts)
    _write_manifest(Path(folder), manifest)
    return manifest


def is_checkpoint(folder: Path) -> bool:
    """Say whether `save` wrote the folder."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder. Raises CheckpointError where there is none, or one of another layout."""
    path = Path(folder) / MANIFEST
    if Path(folder).is_dir():
        model_files.refuse_odd_files(Path(folder))
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line_of(error)}") from error
    layout = manifest.get("layout") if isinstance(manifest, dict) else None
    if layout != LAYOUT:
        raise CheckpointError(f"{path} has layout {layout}; this version reads {LAYOUT}")
    missing = {"weights", "dtype", "parameters", "structure", "loads_with"} - set(manifest)
    if missing:
        raise CheckpointError(f"{path} says nothing of {', '.join(sorted(missing))}")
    if manifest["dtype"] not in list(DTYPES):
        raise CheckpointError(f"{path} has a dtype that is none of {', '.join(DTYPES)}; copy the folder again")
    if not weight_files.is_listed(manifest["weights"]):
        raise CheckpointError(f"{path} has no weights of the form {{FILE: {{bytes, sha256}}}}; copy the folder again")
    if manifest["loads_with"] not in list(LOADERS):
        raise CheckpointError(
            f"{path} says of no loader among {', '.join(LOADERS)} that it reads the folder; copy it again"
        )
    if not isinstance(manifest["parameters"], int):
        raise CheckpointError(f"{path} has a number of parameters that is none; copy the folder again")
    return dict(manifest)


def check_config(folder: Path, manifest: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the configuration of `folder`. Raises CheckpointError where weights or manifest differ from it."""
    stored = weight_files.shapes_on_disk(folder, manifest["weights"])
    try:
        given = PreTrainedConfig.get_config_dict(folder)[0]
        _refuse_layers((given.get("text_config") or given).get("num_hidden_layers", 1), len(stored))
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _refuse_layers(config.get_text_config().num_hidden_layers, len(stored))
        shell = make_empty(config)
    except Exception as error:  # transformers raises any exception for a description that it does not expect
        reason = first_line_of(error.__cause__ or error)
        raise CheckpointError(f"{folder / 'config.json'} describes no model: {reason}") from error
    problem = difference_of_shapes(stored, shapes_of(shell))
    if problem is not None:
        raise CheckpointError(f"{folder / 'config.json'} and the weights disagree: {problem}")
    if structure_of(Decoder(shell)) != manifest["structure"]:
        raise CheckpointError(f"{folder / 'config.json'} and {MANIFEST} describe different layers")
    return config


def _refuse_layers(layers: int, stored: int) -> None:
    """Raise ValueError for no layers, or for more layers than weights: transformers would build those without end."""
    if not 0 < layers <= stored:
        raise ValueError(f"it has {layers} layers, and there are {stored} weights")


def structure_of(model: Decoder) -> dict[str, Any]:
    """Return what each layer holds, by the names of methods.checkpoint.pruned_config, as plain JSON values."""
    return _structure(describe(model))


def _structure(described: PrunedConfig) -> dict[str, Any]:
    layers = described.to_dict()["per_layer_config"]
    return {"layers": [layers[name] for name in sorted(layers)], "residual": described.residual}


def _experts(model: Decoder) -> dict[str, Any]:
    """Return the manifest's entry on mixtures of experts; empty without mixtures. All of a stored model are equal."""
    mixtures = [layer.experts for layer in model.layers if layer.experts is not None]
    if not mixtures:
        return {}
    of_each = {"layers": len(mixtures), "count": mixtures[0].count, "taken": mixtures[0].experts_per_token}
    return {"experts": of_each | {"active_parameters": active_parameters(model)}}


@dataclass(frozen=True)
class Form:
    """Says how a model is stored: config.json, tensors, structure, and why not in stock form; None where it is."""

    config: PreTrainedConfig
    tensors: dict[str, Tensor]
    structure: dict[str, Any]
    reason: str | None


def form_of(model: Decoder, ids: Tensor) -> Form:
    """Return the stock form where transformers builds the same model from it, else the form of a PrunedConfig.

    Raises CheckpointError where neither form holds the model.
    """
    described = describe(model)
    structure = _structure(described)
    try:
        config = config_of_uniform(model, described)
        return Form(config, try_out(model, config, ids), structure, None)
    except Uneven as error:
        reason = str(error)
    try:
        return Form(described, try_out(model, described, ids), structure, reason)
    except ValueError as error:
        raise CheckpointError(f"this model cannot be stored: {first_line_of(error)}") from error


def make_probe(model: Decoder) -> Tensor:
    """Return some token ids, (1, T), the same for every model of this vocabulary."""
    length = min(PROBE_TOKENS, model.config.max_position_embeddings)
    return (torch.arange(length) * 7 + 3).remainder(model.config.vocab_size)[None]


def _pad(model: Decoder, ids: Tensor) -> tuple[Decoder, dict[str, Any]]:
    try:
        wide, off = pad_layers(model, ids)
    except Uneven as error:
        raise CheckpointError(f"padding does not make this model uniform: {error}") from error
    return wide, {"parameters": parameters(model), "logit_difference": off}


def _rounding(expected: Tensor, rounded: Tensor, dtype: str) -> dict[str, Any]:
    """Return the manifest's entry on rounding to `dtype`: the largest difference of a logit, and the mean KL."""
    if not bool(rounded.isfinite().all()):
        raise CheckpointError(f"in {dtype} the model's logits overflow; store it in another dtype")
    p, q = expected.log_softmax(-1), rounded.log_softmax(-1)
    return {
        "dtype": dtype,
        "tokens": rounded.shape[0] * rounded.shape[1],
        "logit_difference": float((rounded - expected).abs().max()),
        "kl": max(0.0, float((p.exp() * (p - q)).sum(-1).mean())),
    }


def _write_rest(folder: Path, model: Decoder, config: PreTrainedConfig, tokenizer: Any) -> None:
    (folder / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    if model.model.generation_config is not None:
        model.model.generation_config.to_json_file(folder / "generation_config.json")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if tokenizer is not None and model.vision:
        model_files.copy_image_processor(Path(tokenizer.name_or_path), folder)


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest and the card that follows from it, each in one step."""
    texts = {
        MANIFEST: json.dumps(manifest, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
        "README.md": model_card.render(manifest),
    }
    for name, text in texts.items():
        temporary = folder / f".{name}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("prunebench", "torch", "transformers", "safetensors")}


CACHED = 1e-4  # share of the largest logit by which generation with and without a cache may differ, in float32


@dataclass(frozen=True)
class Check:
    """Holds one line of `verify`."""

    name: str
    passed: bool
    outcome: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'FAILED'} {self.name}: {self.outcome}"


def verify(folder: Path) -> Iterator[Check]:
    """Yield the checks of a folder that `save` wrote. They end early where it gives no model.

    Raises CheckpointError for a folder without a readable manifest.
    """
    manifest = read_manifest(folder)
    weights = manifest["weights"]
    yield _check(
        "files",
        lambda: weight_files.check_weights(folder, weights),
        f"{len(weights)} with the sizes and hashes of the manifest",
    )
    shape = _check("shapes", lambda: check_config(folder, manifest), "config.json and the weights agree")
    yield shape
    if not shape.passed:
        return
    yield _check_loading(folder, manifest)
    try:
        model = load(folder, dtype=torch.float32, check_hashes=False)
    except CheckpointError as error:
        yield Check("loading", False, str(error))
        return
    count = parameters(model)
    declared = manifest["parameters"]
    yield Check(
        "parameters",
        count == declared,
        f"{count:,}" if count == declared else f"{count:,}, and the card says {declared:,}",
    )
    yield from _computes(model)


def _check(name: str, look: Any, outcome: str) -> Check:
    try:
        look()
    except CheckpointError as error:
        return Check(name, False, str(error))
    return Check(name, True, outcome)


def _check_loading(folder: Path, manifest: dict[str, Any]) -> Check:
    own = check_config(folder, manifest).model_type == "prunebench"
    kind = "prunebench" if own else "transformers"
    declared = manifest["loads_with"]
    outcome = f"with {kind}" if kind == declared else f"with {kind}, and the card says {declared}"
    return Check("loads", kind == declared, outcome)


@torch.no_grad()
def _computes(model: Decoder) -> Iterator[Check]:
    ids = make_probe(model)
    whole = compute_logits(model, ids)
    finite = bool(whole.isfinite().all())
    yield Check("logits", finite, f"finite on {ids.numel()} tokens" if finite else "not finite")
    if not finite:
        return
    half = ids.shape[1] // 2
    out = model.model(ids[:, :half], use_cache=True)
    steps = [out.logits]
    for position in range(half, ids.shape[1]):
        places = positions_behind_cache(model.model, position, 1)
        out = model.model(ids[:, position : position + 1], cache=out.cache, use_cache=True, **places)
        steps.append(out.logits)
    off = float((torch.cat(steps, 1) - whole).abs().max() / whole.abs().max())
    yield Check("cache", off <= CACHED, f"cached and uncached logits differ by {off:.1g} of the largest")
