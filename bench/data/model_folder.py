"""Refuses model folders that cannot be loaded, and finds models on the Hugging Face hub and in its cache.

A folder in Hugging Face layout is refused where files are missing, damaged or at odds, before anything is loaded. Of a
model on the hub only the files that loading needs are downloaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bench.data import assets
from methods import model_files
from methods.console import say
from methods.errors import UserError, first_line_of
from methods.model_files import CONFIG, INDEX, WHOLE, find_weight_files, names_of_files, read_table, refuse_unhashed

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def check_folder(name: str, folder: Path, trust_remote_code: bool) -> None:
    """Refuse a folder without configuration, safetensors or tokenizer, or with code of its own that is not allowed.

    Such code is files of its own, and kernels of the hub, which transformers fetches and imports.
    """
    refuse_unhashed(name, folder)
    refuse_incomplete(name, names_of_files(folder))
    config = read_table(folder / CONFIG)
    if "auto_map" in config and not trust_remote_code:
        raise UserError(f"{name} comes with its own code; read it, then allow it with --trust-remote-code")
    if (kernel := _hub_kernel(config)) and not trust_remote_code:
        raise UserError(
            f"{name} computes with code of the hub, {kernel!r}; read it, then allow it with --trust-remote-code"
        )
    _check_weights(name, folder)
    if isinstance(layers := (config.get("text_config") or config).get("num_hidden_layers"), int):
        refuse_layers(folder, layers)  # before transformers counts them
    _check_saved(folder)


def _hub_kernel(config: dict[str, Any]) -> str | None:
    """Return the hub's repository whose code a configuration, or a part of it, asks for; None where there is none."""
    for key, value in config.items():
        if key.strip("_").startswith(("attn_implementation", "experts_implementation")) and "/" in str(value):
            return str(value)
        if isinstance(value, dict) and (repository := _hub_kernel(value)):
            return repository
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

    if missing := [file for file in find_weight_files(folder) if not (folder / file).is_file()]:
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
        weight_files.check_weights(folder, manifest["weights"], hashes=False)
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


DESCRIPTION = ["*.json", "*.model", "*.txt", "*.jinja", "*.py", "README.md"]
WEIGHTS = ["*.safetensors"]
LEFT_OUT = ["consolidated*", "original/*", "onnx/*"]  # the same weights in other layouts


def check_on_hub(name: str, choices: str, trust_remote_code: bool) -> None:
    """Refuse a name that is no model on the hub, without a download; `choices` says what would be one."""
    if not assets.is_hub_reachable():
        near = difflib.get_close_matches(name, assets.MODELS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"{name!r} is not here and not in the hub's cache, and the hub is out of reach; {hint}give {choices}"
        )
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(name, timeout=assets.HUB_TIMEOUT)
    except Exception as error:  # the classes of the HTTP client's errors differ between the hub's versions
        raise UserError(f"the hub does not give {name!r}: {_reason(error)}; otherwise give {choices}") from error
    files = [file.rfilename for file in info.siblings or ()]
    model_files.refuse_unhashed_files(f"{name} on the hub", files)
    refuse_incomplete(f"{name} on the hub", files)
    if "auto_map" in (info.config or {}) and not trust_remote_code:
        raise UserError(f"{name} comes with its own code; read it, then allow it with --trust-remote-code")


def find_in_cache(name: str) -> Path | None:
    """Return the folder of a model that is in the hub's cache with all that loading needs, else None."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = _snapshot(name, DESCRIPTION + WEIGHTS, here_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    files = model_files.names_of_files(folder)
    weights = model_files.find_weight_files(folder)
    is_whole = all((folder / file).is_file() for file in ("config.json", *weights))
    return folder if weights and is_whole and not files.isdisjoint(TOKENIZER_FILES) else None


def download_model(name: str, *, weights: bool) -> Path:
    """Return the folder of a model, with or without weights; download missing files. Raises UserError without it."""
    if folder := find_in_cache(name):
        return folder
    if weights:
        say(f"downloading the weights of {name} from the hub; their hash is part of each result")
    try:
        return _snapshot(name, DESCRIPTION + WEIGHTS * weights, here_only=False)
    except Exception as error:  # the hub, the connection or the disk may fail
        reason = _reason(error).rstrip(".")
        hint = "accept its terms on its page of the hub and set HF_TOKEN, or " if _is_gated(error) else ""
        raise UserError(
            f"{name} cannot be downloaded from the hub: {reason}; {hint}give a folder that holds it"
        ) from error


def published_sha256(name: str) -> dict[str, str] | None:
    """Return the sha256 of each weight file of a model by the hub's word; None where the hub does not publish it."""
    from huggingface_hub import HfApi

    if find_in_cache(name):
        return None
    try:
        files = HfApi().model_info(name, files_metadata=True, timeout=assets.HUB_TIMEOUT).siblings or ()
    except Exception as error:
        raise UserError(f"the hub does not say what files {name} has: {_reason(error)}; try again") from error
    hashes = {file.rfilename: file.lfs.sha256 for file in files if file.lfs}
    names = model_files.find_weight_files(download_model(name, weights=False), hashes)
    return {file: hashes[file] for file in names} if names and hashes.keys() >= set(names) else None


def _is_gated(error: Exception) -> bool:
    from huggingface_hub.errors import GatedRepoError

    return isinstance(error, GatedRepoError)


def _reason(error: Exception) -> str:
    """Return an error as one line: the last one of an answer of the hub, since that is its reason."""
    from huggingface_hub.errors import HfHubHTTPError

    return str(error).strip().splitlines()[-1] if isinstance(error, HfHubHTTPError) else first_line_of(error)


def _snapshot(name: str, patterns: list[str], *, here_only: bool) -> Path:
    """Return the folder of a model. Missing files of these patterns are downloaded unless `here_only`."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=LEFT_OUT, local_files_only=here_only))
