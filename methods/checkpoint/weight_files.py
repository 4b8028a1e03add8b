"""Writes safetensors into a folder that appears whole or not at all, and checks such files before they are read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from methods import model_files
from methods.errors import CheckpointError, first_line_of
from methods.files import hash_file
from methods.model_files import INDEX


@contextmanager
def write_folder_whole(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into. It becomes `folder` at the end, and goes where an exception is raised.

    Raises CheckpointError when `folder` is taken, and for whatever the disk refuses.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty; name a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            inside = Path(temporary) / folder.name
            inside.mkdir()
            yield inside
            inside.rename(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be written: {first_line_of(error)}") from error


def write_weights(
    folder: Path, tensors: dict[str, Tensor], dtype_of_name: Callable[[str], torch.dtype], most: int
) -> dict[str, dict[str, Any]]:
    """Write the tensors in files of at most `most` bytes, and return {file: {bytes, sha256}}.

    held  gives the dtype of a tensor by its name

    A single file is model.safetensors; several are numbered and have an index, as transformers reads them. A tensor
    larger than `most` has a file of its own. Tensors are cast file by file. Raises what `cast_to` raises.
    """
    shards: list[list[str]] = [[]]
    kinds = {
        name: dtype_of_name(name) if tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()
    }
    sizes = {name: tensor.numel() * kinds[name].itemsize for name, tensor in tensors.items()}
    room = most
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    files = files if len(files) > 1 else ["model.safetensors"]
    for file, names in zip(files, shards, strict=True):
        cast = {name: cast_to(name, tensors[name], kinds[name]).contiguous() for name in names}
        save_file(cast, folder / file, {"format": "pt"})
        (folder / file).chmod(folder.stat().st_mode & 0o666)  # as the other files; its writer lets nobody else read it
    if len(files) > 1:
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return {file: {"bytes": (folder / file).stat().st_size, "sha256": hash_file(folder / file)} for file in files}


def cast_to(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in another dtype. Raises CheckpointError where a finite number overflows there."""
    cast = tensor.to(dtype)
    if cast.is_floating_point() and not cast.isfinite().all() and tensor.isfinite().all():
        kind = str(dtype).removeprefix("torch.")
        raise CheckpointError(f"{name} has numbers that {kind} does not hold; store it in another dtype")
    return cast


def is_listed(weights: Any) -> bool:
    """Say whether the weights of a manifest have the form {file: {bytes, sha256}}, with files of its own folder."""
    return isinstance(weights, dict) and all(_is_listed_file(file, entry) for file, entry in weights.items())


def _is_listed_file(file: Any, entry: Any) -> bool:
    """Say whether an entry of a manifest names a file of its own folder, with its bytes and its sha256."""
    if not isinstance(entry, dict) or not model_files.is_file_name(file):
        return False
    return isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)


def check_weights(folder: Path, weights: dict[str, dict[str, Any]], *, hashes: bool = True) -> None:
    """Raise CheckpointError for a weight file that is missing, truncated, changed, or not in the list.

    The same goes for a folder from which transformers would load files that are not in the list.
    """
    model_files.refuse_unhashed(str(folder), folder)
    if unlisted := set(model_files.find_weight_files(folder)) - weights.keys():
        raise CheckpointError(f"{folder / INDEX} names {min(unlisted)}, and the manifest does not")
    for file, entry in weights.items():
        path = folder / file
        if not path.is_file():
            raise CheckpointError(f"{folder} lacks {file}")
        if path.stat().st_size != entry["bytes"]:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes and should have {entry['bytes']}")
        if hashes and hash_file(path) != entry["sha256"]:
            raise CheckpointError(f"{path} is not the file that was saved: its sha256 differs")
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in weights:
            raise CheckpointError(f"{path} does not belong to the model: the manifest does not name it")


def shapes_on_disk(folder: Path, weights: dict[str, dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every stored tensor by name, from the files' headers. Raises CheckpointError."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weights:
        try:
            with safe_open(folder / file, framework="pt") as shard:
                shapes |= {name: tuple(shard.get_slice(name).get_shape()) for name in shard.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder / file} is no whole safetensors file: {first_line_of(error)}") from error
    return shapes
