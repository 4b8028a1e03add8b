"""Finds models on the Hugging Face hub and in its cache, and downloads of them what is needed."""

from __future__ import annotations

import difflib
from pathlib import Path

from bench.data import assets, model_folder
from bench.system.console import say
from methods import model_files
from methods.errors import UserError, first_line

DESCRIPTION = ["*.json", "*.model", "*.txt", "*.jinja", "*.py", "README.md"]
WEIGHTS = ["*.safetensors"]
LEFT_OUT = ["consolidated*", "original/*", "onnx/*"]  # the same weights in other layouts


def check(name: str, choices: str, trust_remote_code: bool) -> None:
    """Refuse what the hub does not have or is not a model, without downloading it; `choices` says what would be one."""
    if not assets.hub_is_reachable():
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
    model_folder.refuse_incomplete(f"{name} on the hub", files)
    if "auto_map" in (info.config or {}) and not trust_remote_code:
        raise UserError(f"{name} comes with its own code; read it, then allow it with --trust-remote-code")


def cached(name: str) -> Path | None:
    """Return the folder of a model that is in the hub's cache with all that loading needs, else None."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = _snapshot(name, DESCRIPTION + WEIGHTS, here_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    files = model_files.names(folder)
    weights = model_files.weight_files(folder)
    there = all((folder / file).is_file() for file in ("config.json", *weights))
    return folder if weights and there and not files.isdisjoint(model_folder.TOKENIZER_FILES) else None


def folder(name: str, *, weights: bool) -> Path:
    """Return the folder of a model, with or without weights; download what is missing. Raises UserError without it."""
    if found := cached(name):
        return found
    if weights:
        say(f"downloading the weights of {name} from the hub; their hash is part of each result")
    try:
        return _snapshot(name, DESCRIPTION + WEIGHTS * weights, here_only=False)
    except Exception as error:  # of the hub, of the connection or of the disk
        reason = _reason(error).rstrip(".")
        hint = "accept its terms on its page of the hub and set HF_TOKEN, or " if _is_gated(error) else ""
        raise UserError(
            f"{name} cannot be downloaded from the hub: {reason}; {hint}give a folder that holds it"
        ) from error


def announced(name: str) -> dict[str, str] | None:
    """Return the sha256 of each weight file of a model that is not here, as the hub says; None where it does not."""
    from huggingface_hub import HfApi

    if cached(name):
        return None
    try:
        files = HfApi().model_info(name, files_metadata=True, timeout=assets.HUB_TIMEOUT).siblings or ()
    except Exception as error:
        raise UserError(f"the hub does not say what files {name} has: {_reason(error)}; try again") from error
    hashes = {file.rfilename: file.lfs.sha256 for file in files if file.lfs}
    names = model_files.weight_files(folder(name, weights=False), hashes)
    return {file: hashes[file] for file in names} if names and hashes.keys() >= set(names) else None


def _is_gated(error: Exception) -> bool:
    from huggingface_hub.errors import GatedRepoError

    return isinstance(error, GatedRepoError)


def _reason(error: Exception) -> str:
    """Return an error as one line: of an answer of the hub the last one, which is its reason."""
    from huggingface_hub.errors import HfHubHTTPError

    return str(error).strip().splitlines()[-1] if isinstance(error, HfHubHTTPError) else first_line(error)


def _snapshot(name: str, patterns: list[str], *, here_only: bool) -> Path:
    """Return the folder of a model; download what is missing of the files of some patterns unless `here_only`."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=LEFT_OUT, local_files_only=here_only))
