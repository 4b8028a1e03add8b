"""Refuses a folder in Hugging Face layout whose files are missing, damaged or at odds, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from methods.errors import UserError, first_line

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def check(name: str, folder: Path, trust_remote_code: bool) -> None:
    """Refuse a folder without configuration, safetensors or tokenizer, or with code of its own that is not allowed.

    Such code are files of its own, and kernels of the hub, which transformers fetches and imports.
    """
    refuse_incomplete(name, names(folder))
    config = _table(folder / "config.json")
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


def names(folder: Path) -> set[str]:
    """Return the names of what is in a folder."""
    return {file.name for file in folder.iterdir() if file.exists()}


def refuse_incomplete(name: str, files: Collection[str]) -> None:
    """Raise UserError where files of these names are no model: no configuration, safetensors or tokenizer."""
    needs = "a model folder holds config.json, safetensors and the tokenizer's files"
    if "adapter_config.json" in files:
        raise UserError(f"{name} has an adapter beside its weights, which no hash covers; merge it into them, by peft")
    if "config.json" not in files:
        raise UserError(f"{name} has no config.json; {needs}")
    if WHOLE not in files and INDEX not in files:
        raise UserError(f"{name} has no {WHOLE} or {INDEX} (other weight files are not read); {needs}")
    if not any(file in files for file in TOKENIZER_FILES):
        raise UserError(f"{name} has no tokenizer; {needs}")


def weight_files(folder: Path, files: Collection[str] | None = None) -> list[str]:
    """Return from which files transformers loads a model; a folder may hold others with the same weights.

    files  the names of what will be in the folder; by default of what is
    """
    return [WHOLE] if WHOLE in (names(folder) if files is None else files) else named_by_index(folder)


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


def named_by_index(folder: Path) -> list[str]:
    """Return the weight files that the index of a folder names; of one without an index, none."""
    index = folder / INDEX
    if not index.is_file():
        return []
    files = _table(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise UserError(f"{index} has no weight_map that names a file for each weight; copy or download it again")
    return sorted(set(files.values()))


def _table(file: Path) -> dict[str, Any]:
    """Return what a JSON file with one object holds. Raises UserError for any other."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {first_line(error)}; copy or download it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no object of names and values; copy or download it again")
    return found


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
