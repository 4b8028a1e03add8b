"""Pushes a written model folder to the Hugging Face hub, with its card. Nothing calls this without `export --push`."""

from __future__ import annotations

import fnmatch
import glob
from pathlib import Path

from methods.checkpoint import save_load
from methods.errors import UserError, first_line

# Files that an earlier push may have left, at the top alone: the same commit deletes those that the folder has not,
# since transformers takes a model.safetensors before an index, and so the weights of another model.
REPLACED = [
    *("model*.safetensors", "model.safetensors.index.json", "generation_config.json", "chat_template.jinja"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
]


class NotPushed(Exception):
    """Says why a model that has been written was not pushed."""


def check(name: str) -> None:
    """Ask the hub whose token this is. Raises UserError where `name` is no name there, or nothing can be pushed."""
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # which it does

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push {name}: {first_line(error)}") from None
    if name.count("/") != 1:
        raise UserError(f"--push takes ORG/NAME, as in me/smollm2-135m-laco; got {name!r}")
    if constants.HF_HUB_OFFLINE:
        raise UserError("--push needs the hub, and HF_HUB_OFFLINE is set; unset it")
    if get_token() is None:
        raise UserError("--push needs a token that may write: run `hf auth login`, or set HF_TOKEN")
    try:
        HfApi().whoami()
    except Exception as error:  # whose class is that of an HTTP client, which differs between the hub's versions
        raise UserError(f"--push cannot use the hub at {constants.ENDPOINT}: {first_line(error)}") from None


def _is_replaced(file: str) -> bool:
    """Say whether a push replaces a file of the repository; a pattern's star alone would reach into folders."""
    return "/" not in file and any(fnmatch.fnmatchcase(file, pattern) for pattern in REPLACED)


def push(folder: Path, name: str, *, public: bool) -> str:
    """Push the folder that methods.checkpoint has written as a commit of the repository `name`; return its address.

    public  whether a new repository can be seen by all; one that exists stays as it is

    Raises NotPushed where the hub refuses or is gone.
    """
    from huggingface_hub import HfApi

    hub, pruning = HfApi(), save_load.read_manifest(folder).get("pruning", {})
    try:
        hub.create_repo(name, private=not public, exist_ok=True)
        said = f"Pruned with {pruning['label']}" if pruning.get("label") else "A pruned model"
        gone = [glob.escape(file) for file in hub.list_repo_files(name) if _is_replaced(file)]
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message=said, delete_patterns=gone)
    except Exception as error:  # see `check`
        kept = f"the folder is whole, and `hf upload {name} {folder}` tries again"
        raise NotPushed(f"{name} was not pushed: {first_line(error)}; {kept}") from None
    return f"{hub.endpoint}/{name}"
