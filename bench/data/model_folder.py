"""Refuses a folder in Hugging Face layout whose files are missing, damaged or at odds, before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from methods.errors import UserError
from methods.model_files import CONFIG, INDEX, WHOLE, names, refuse_unhashed, table, weight_files

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def check(name: str, folder: Path, trust_remote_code: bool) -> None:
    """Refuse a folder without configuration, safetensors or tokenizer, or with code of its own that is not allowed.

    Such code are files of its own, and kernels of the hub, which transformers fetches and imports.
    """
    refuse_unhashed(name, folder)
    refuse_incomplete(name, names(folder))
    config = table(folder / CONFIG)
    if "auto_map" in config and not trust_remote_code:
        raise UserError(f"{name} comes with its own code; read it, then allow it with --trust-remote-code")
    if (kernel := _hub_kernel(config)) and not trust_remote_code:
        raise UserError(
            f"{name} computes with code of the hub, {kernel!r}; read it, then allow it with --trust-remote-code"
        )
    _check_weights(name, folder)
    if isinstance(layers := config.get("num_hidden_layers"), int):
        refuse_layers(folder, layers)  # before transformers counts them
    _check_saved(folder)


def _hub_kernel(config: dict[str, Any]) -> str | None:
    """Return the repository of the hub whose code a configuration, or a part of it, asks for; None where it is none."""
    for key, value in config.items():
        if key.strip("_").startswith(("attn_implementation", "experts_implementation")) and "/" in str(value):
            return str(value)
        if isinstance(value, dict) and (found := _hub_kernel(value)):
            return found
    return None


def refuse_incomplete(name: str, files: Collection[str]) -> None:
    """Raise UserError where files of these names are no model: no configuration, safetensors or tokenizer."""
    needs = "a model folder holds config.json, safetensors and the tokenizer's files"
    if CONFIG not in files:
        raise UserError(f"{name} has no config.json; {needs}")
    if WHOLE not in files and INDEX not in files:
        raise UserError(f"{name} has no {WHOLE} or {INDEX} (other weight files are not read); {needs}")
    if not any(file in files for file in TOKENIZER_FILES):
        raise UserError(f"{name} has no tokenizer; {needs}")


def _check_weights(name: str, folder: Path) -> None:
    """Refuse a folder that lacks a weight file which its index names, or has one that is cut short."""
    from safetensors import SafetensorError, safe_open

    if missing := [file for file in weight_files(folder) if not (folder / file).is_file()]:
        raise UserError(f"{name} has no {missing[0]}, which its index names; copy or download the model again")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "numpy"):
                pass
        except SafetensorError as error:
            raise UserError(f"{file} is cut short or damaged ({error}); copy or download it again") from None


def _check_saved(folder: Path) -> None:
    """Refuse a saved model whose files or configuration are not those of its manifest; hashes are left to loading."""
    from methods.checkpoint import save_load, weight_files

    if save_load.is_checkpoint(folder):
        manifest = save_load.read_manifest(folder)
        weight_files.check(folder, manifest["weights"], hashes=False)
        save_load.check_config(folder, manifest)


def refuse_layers(folder: Path, layers: int) -> None:
    """Raise UserError for no layer, or for more than a folder has weights, which would take for ever to make."""
    from safetensors import safe_open

    stored = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as weights:
            stored += len(weights.keys())
    if layers < 1 or (stored and layers > stored):
        raise UserError(f"{folder / 'config.json'} says {layers} layers, and there are {stored} weights")
