"""Lists the files of a model's folder that transformers loads, and refuses those that no hash of a record covers.

A record has the sha256 of weights and configuration. transformers silently loads further files of a folder, which would
change the model under the same hashes: an adapter of PEFT, shards of a distributed checkpoint, and files that
config.json or the index of the weights name.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from methods.errors import CheckpointError, first_line_of

CONFIG = "config.json"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
READ = (".json", ".safetensors")  # suffixes of names that are read as files
OF_IMAGES = (  # say how the inputs of a model that reads images are made; no weight depends on them
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
MOST_BYTES = 2**28  # of a JSON file, as no index of weights has them
NAMES_FILES = {  # keys of config.json by which transformers reads another file in place of the usual one
    "transformers_weights": "the weights",
    "configuration_files": "the configuration",
}


def refuse_unhashed(name: str, folder: Path) -> None:
    """Raise CheckpointError where transformers would load a file that no hash covers.

    name  of the model, for messages
    """
    refuse_odd_files(folder)
    refuse_unhashed_files(name, names_of_files(folder))
    if not (folder / CONFIG).is_file():
        return
    for key in _keys(read_table(folder / CONFIG)):
        if key in NAMES_FILES:
            raise CheckpointError(
                f"{name} names another file for {NAMES_FILES[key]}, as {key} of its {CONFIG}, and no record covers "
                f"that; put it in place of the usual file and remove {key}"
            )


def refuse_odd_files(folder: Path) -> None:
    """Raise CheckpointError where a folder, a pipe or a device stands for a file: reading it might never end."""
    for name in sorted(names_of_files(folder)):
        path = folder / name
        if not path.is_file() and (not path.is_dir() or path.suffix in READ):
            raise CheckpointError(f"{path} is no file; copy or download the model again")


def refuse_unhashed_files(name: str, files: Collection[str]) -> None:
    """Raise CheckpointError where a folder that holds files of these names has weights beside the model's own."""
    if ADAPTER in files:
        raise CheckpointError(
            f"{name} holds an adapter ({ADAPTER}), which would change the model under the hash of its weights alone; "
            "merge it into them (`merge_and_unload` of PEFT, then `save_pretrained`), or remove its files"
        )
    if shards := sorted(filter(SHARD.fullmatch, files)):
        raise CheckpointError(
            f"{name} holds {shards[0]} of a distributed checkpoint, which would be loaded in place of {WHOLE}; save "
            "the model again with `save_pretrained`, or remove the shards"
        )


def names_of_files(folder: Path) -> set[str]:
    """Return the names of the files in a folder. Raises CheckpointError where it cannot be read."""
    try:
        return {file.name for file in folder.iterdir() if file.exists()}
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {first_line_of(error)}; give a folder that can") from None


def find_weight_files(folder: Path, files: Collection[str] | None = None) -> list[str]:
    """Return the files from which transformers loads a model. A folder may hold further copies of its weights.

    files  names of the files that the folder will have; by default of those that it has
    """
    return [WHOLE] if WHOLE in (names_of_files(folder) if files is None else files) else files_in_index(folder)


def files_in_index(folder: Path) -> list[str]:
    """Return the weight files that the index of a folder names; none without an index.

    Raises CheckpointError for an index that is damaged, or that names a file in another folder.
    """
    index = folder / INDEX
    if not index.is_file():
        return []
    files = read_table(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise CheckpointError(f"{index} has no weight_map that names a file for each weight; copy or download it again")
    for file in sorted(set(files.values())):
        if not is_file_name(file):
            raise CheckpointError(
                f"{index} names {file!r}, and may name files of its own folder alone; copy or download the model again"
            )
    return sorted(set(files.values()))


def copy_image_processor(source: Path, target: Path) -> None:
    """Copy what makes the inputs of a model that reads images into another folder; a file that is there stays."""
    for name in OF_IMAGES:
        if (source / name).is_file() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)


def is_file_name(name: str) -> bool:
    """Say whether a string is the name of a file in the folder that names it: no path, on whatever system."""
    plain = name not in ("", ".", "..") and "\0" not in name
    return plain and name == PurePosixPath(name).name == PureWindowsPath(name).name


def read_table(file: Path) -> dict[str, Any]:
    """Return the object of a JSON file. Raises CheckpointError where the file holds none."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {file.stat().st_size:,} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {first_line_of(error)}; copy or download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no object of names and values; copy or download it again")
    return content


def _keys(content: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of an object and of all objects within it."""
    waiting: list[Any] = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
