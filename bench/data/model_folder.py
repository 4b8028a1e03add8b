"""Refuses a folder in Hugging Face layout whose files are missing, damaged or at odds, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from methods.errors import UserError, first_line

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def check(name: str, folder: Path, trust_remote_code: bool) -> None:
    """Refuse a folder without configuration, safetensors or tokenizer, or with code of its own that is not allowed."""
    needs = "a model folder holds config.json, *.safetensors and the tokenizer's files"
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} has no config.json; {needs}")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{name} has no *.safetensors (other weight files are not read); {needs}")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(f"{name} has no tokenizer; {needs}")
    config = _table(folder / "config.json")
    if "auto_map" in config and not trust_remote_code:
        raise UserError(f"{name} comes with its own code; read it, then allow it with --trust-remote-code")
    _check_weights(name, folder)
    if isinstance(layers := config.get("num_hidden_layers"), int):
        refuse_layers(folder, layers)  # before transformers counts them
    _check_saved(folder)


def _check_weights(name: str, folder: Path) -> None:
    """Refuse a folder that lacks a weight file which its index names, or has one that is cut short."""
    from safetensors import SafetensorError, safe_open

    if missing := [file for file in named_by_index(folder) if not (folder / file).is_file()]:
        raise UserError(f"{name} has no {missing[0]}, which its index names; copy or download the model again")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "numpy"):
                pass
        except SafetensorError as error:
            raise UserError(f"{file} is cut short or damaged ({error}); copy or download it again") from None


def named_by_index(folder: Path) -> list[str]:
    """Return the weight files that the index of a folder names; of one without an index, none."""
    index = folder / "model.safetensors.index.json"
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
