"""Keeps what a GGUF file holds as a folder in Hugging Face layout, so that a machine unpacks each file once.

    <cache>/gguf/<sha256>-<transformers>/   configuration, tokenizer, and weights in float32: 4 bytes for each parameter

The file is read by itself: nothing that lies beside it has a part in what is made of it. A folder may be deleted, and
is made again where it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path

from bench.data import kept_folder
from bench.data.assets import cache_folder
from bench.data.file_hashes import remembered_sha256
from methods.console import say
from methods.errors import CheckpointError


def folder(file: Path, *, hashes: bool = False) -> Path:
    """Return the folder of a GGUF file, which is made unless it is there.

    hashes  compares its files by sha256, each once for as long as it does not change

    Raises UserError for a file that is no model, or a cache that takes no files.
    """
    target = location(file)
    if not kept_folder.is_filled(target, hash_of=remembered_sha256 if hashes else None):
        kept_folder.fill(target, f"what {file} holds, in float32,", partial(_convert, file))
    return target


def location(file: Path) -> Path:
    """Return where the folder of a GGUF file lies; another content or version of the reader has another."""
    return place() / f"{remembered_sha256(file)[:32]}-{metadata.version('transformers')}"


def place() -> Path:
    """Return where the folders lie."""
    return cache_folder() / "gguf"


def _convert(file: Path, folder: Path, scratch: Path) -> Mapping[str, str]:
    from bench.data import gguf

    before = remembered_sha256(file)
    say(f"converting {file.name} to float32 safetensors, once")
    alone = scratch / "model.gguf"
    alone.symlink_to(file.resolve())
    try:
        gguf.write(alone, folder)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(alone), str(file))) from error
    if remembered_sha256(file) != before:
        raise CheckpointError(f"{file} has changed while it was read; give it once it is whole")
    return {"gguf_sha256": before, "transformers": metadata.version("transformers")}
