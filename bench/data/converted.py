"""Keeps the contents of a GGUF file as a folder in Hugging Face layout, so that a machine unpacks each file once.

    <cache>/gguf/<sha256>-<transformers>/   configuration, tokenizer, and weights in float32: 4 bytes for each parameter

The file is read by itself, and files beside it have no part in the folder. A folder may be deleted, and is made again
where it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path

from bench.data import kept_folder
from bench.data.assets import folder_of_cache
from bench.data.file_hashes import sha256_of_file
from methods.console import say
from methods.errors import CheckpointError


def folder_of_gguf(file: Path, *, hashes: bool = False) -> Path:
    """Return the folder of a GGUF file, which is made unless it exists.

    hashes  compares its files by sha256, each once for as long as it does not change

    Raises UserError for a file that is no model, or a cache that takes no files.
    """
    target = path_of_folder(file)
    if not kept_folder.is_filled(target, hash_of=sha256_of_file if hashes else None):
        kept_folder.fill(target, f"what {file} holds, in float32,", partial(_convert, file))
    return target


def path_of_folder(file: Path) -> Path:
    """Return the path of the folder of a GGUF file. Another content or version of the reader has another path."""
    return place_of_folders() / f"{sha256_of_file(file)[:32]}-{metadata.version('transformers')}"


def place_of_folders() -> Path:
    """Return the folder in which these folders lie."""
    return folder_of_cache() / "gguf"


def _convert(file: Path, folder: Path, scratch: Path) -> Mapping[str, str]:
    from bench.data import conversion

    before = sha256_of_file(file)
    say(f"converting {file.name} to float32 safetensors, once")
    alone = scratch / "model.gguf"
    alone.symlink_to(file.resolve())
    try:
        conversion.write_folder(alone, folder)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(alone), str(file))) from error
    if sha256_of_file(file) != before:
        raise CheckpointError(f"{file} has changed while it was read; give it once it is whole")
    return {"gguf_sha256": before, "transformers": metadata.version("transformers")}
