"""Writes models out of a run: a cell's pruned model in one of bench.export.formats.

run --save-models    every pruned model is saved, loaded again, and measured as it loads
export               a saved model is copied; any other is made again from its record, which must agree
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.data import pretrained, texts
from bench.export.formats import GGUF, HF
from bench.plan.served import AUTO, QUANTISED
from bench.plan.trust import Trust
from bench.records import run_folder
from bench.records.record import Record
from bench.run.reproduce import PrunedModel, prune_again
from bench.run.saving import wanted_dtype
from bench.serving import llama_cpp
from bench.system.console import say
from methods.checkpoint import save_load, weight_files
from methods.checkpoint.stock import Uneven
from methods.checkpoint.transformers_compat import padded
from methods.checkpoint.verify import Check
from methods.errors import UserError, first_line

CARRIED = ("base", "pruning", "measured", "rounding")  # what a copy says as its original does
BEFORE = "the model of the run, before it was stored in this folder"


@dataclass(frozen=True)
class Wish:
    """Says what a model is to be written as.

    to        the new folder, or the new file for GGUF
    format    one of bench.export.formats
    dtype     of the weights, "auto" for the base's, None for that of the saved model, without one for that in which the
              run measured; one of QUANTISED for GGUF
    pad       whether zeros fill all layers up to the same widths
    multiple  of which the channels of each MLP are made a multiple by zeros
    most      bytes of one weight file
    device    to make the model again on
    """

    to: Path
    format: str = HF
    dtype: str | None = None
    pad: bool = False
    multiple: int = 1
    most: int = save_load.SHARD_BYTES
    device: str = "auto"


def find(run: Path, wanted: str) -> Record:
    """Find the record of the one measured cell that is meant (bench.records.run_folder). Raises UserError."""
    key, record = run_folder.cell(run, wanted)
    if record.status != "ok":
        raise UserError(f"{key} has no model: {record.status}, {(record.error or '').partition(chr(10))[0]}")
    return record


def model_of(record: Record, trust: Trust, device: str, dtype: str | None) -> PrunedModel:
    """Return the record's model: the saved one unless that was rounded too far, else made again. Raises UserError."""
    if folder := saved(record, trust, dtype):
        manifest = save_load.read_manifest(folder)
        known: dict[str, Any] = {name: manifest[name] for name in CARRIED if name in manifest}
        tokenizer = pretrained.load_tokenizer(str(folder))
        return PrunedModel(save_load.load(folder), tokenizer, known, None)
    return prune_again(record, device, trust)


def saved(record: Record, trust: Trust, dtype: str | None) -> Path | None:
    """Return the folder of a saved model that holds all that `dtype` does; None for one that was rounded further."""
    kept = record.measured.get("saved", {})
    if (folder := _folder(record, trust)) is None:
        return None
    exact = "rounding" not in kept or kept["dtype"] == "float32"
    return folder if exact or _resolved(dtype, record, trust) in (None, kept["dtype"]) else None


def _folder(record: Record, trust: Trust) -> Path | None:
    """Return the folder of a saved model, or None. Raises UserError for one that is not in the folder of its run."""
    name = record.measured.get("saved", {}).get("folder")
    if name is None or not save_load.is_checkpoint(folder := trust.run / name):
        return None
    trust.refuse_outside(folder)
    return folder


def _resolved(dtype: str | None, record: Record, trust: Trust) -> str | None:
    """Return the dtype by its own name where that of the base's weights is meant."""
    return str(_stored_as(AUTO, record, trust)).removeprefix("torch.") if dtype == AUTO else dtype


def _stored_as(dtype: str, record: Record, trust: Trust) -> torch.dtype:
    """Return the dtype of this name; for "auto" the base is looked at, which the user has to allow."""
    if dtype == AUTO:
        trust.refuse(record.cell)
    return wanted_dtype(dtype, record.cell["model"], record.cell["dtype"])


def _tokenizer(record: Record, trust: Trust, dtype: str | None) -> Any:
    """Load the tokenizer of what `model_of` returns. A saved model has no code of its own."""
    if folder := saved(record, trust, "float32" if dtype in QUANTISED else dtype):
        return pretrained.load_tokenizer(str(folder))
    trust.refuse(record.cell)
    return pretrained.load_tokenizer(record.cell["model"], record.cell.get("trust_remote_code", False))


def copy(source: Path, target: Path, trust: Trust) -> None:
    """Copy a saved model whole, after its hashes have been checked. Raises UserError; no link leads out of the run."""
    for path in source.rglob("*"):
        trust.refuse_outside(path)
    weight_files.check(source, save_load.read_manifest(source)["weights"])
    with weight_files.staged(target) as inside:
        shutil.copytree(source, inside, dirs_exist_ok=True)


def write(record: Record, trust: Trust, wish: Wish) -> str:
    """Write the record's model as wished, and return a line on it. Raises UserError."""
    to = wish.to
    if not to.name:
        raise UserError(f"{to} is the folder in which the command runs, which no model can replace; name a new one")
    if to.is_file() or (to.is_dir() and (wish.format == GGUF or any(to.iterdir()))):
        raise UserError(
            f"{to} exists{' and is not empty' if to.is_dir() and any(to.iterdir()) else ''}; name a new one"
        )
    if wish.dtype in QUANTISED:
        llama_cpp.require(f"{wish.dtype} is written by llama.cpp")
    kept, folder = record.measured.get("saved", {}), _folder(record, trust)
    unchanged = (
        not wish.pad
        and wish.most == save_load.SHARD_BYTES
        and _resolved(wish.dtype, record, trust) in (None, kept.get("dtype"))
    )
    if wish.format == HF and folder and unchanged:
        copy(folder, to, trust)
        return _line(to, save_load.read_manifest(to), record)
    cell, quantised = record.cell, wish.dtype if wish.dtype in QUANTISED else None
    dtype = "float32" if quantised else wish.dtype
    if wish.format == GGUF:
        from bench.export import vocabulary

        words = _tokenizer(record, trust, wish.dtype)
        vocabulary.describe(words, len(words))  # which refuses one that GGUF does not hold, before a model is made
    found = model_of(record, trust, wish.device, dtype)
    kind = _stored_as(dtype or kept.get("dtype", cell["dtype"]), record, trust)
    try:
        if wish.format == HF:
            facts = dict(found.facts)
            if "measured" in facts:
                facts["measured"] = facts["measured"] | {"model": BEFORE}
            options = {"tokenizer": found.tokenizer, "facts": facts, "dtype": kind, "pad": wish.pad}
            manifest = save_load.save(found.model, to, shard_bytes=wish.most, probe=found.probe, **options)
            return _line(to, manifest, record)
        model = padded(found.model, save_load.default_probe(found.model))[0] if wish.pad else found.model
    except Uneven as error:
        raise UserError(str(error)) from error
    if wish.format == GGUF:
        from bench.export import gguf_file

        name = pretrained.display_name(cell["model"])
        form = gguf_file.write(model, found.tokenizer, to, kind, name, multiple=wish.multiple, quantised=quantised).form
    else:
        from bench.export import nemotron_nas

        sizes = {"shard_bytes": wish.most, "multiple": wish.multiple}
        form = nemotron_nas.write(model, found.tokenizer, to, kind, **sizes)
    size = sum(file.stat().st_size for file in ([to] if to.is_file() else to.glob("*.safetensors"))) / 1e6
    zeros = f", {form.zeros:,} zeros where something is gone" if form.zeros else ""
    stored = quantised or str(kind).removeprefix("torch.")
    return f"{to}: {size:.1f} MB, matrices in {stored}{_measured_in(record, stored)}{zeros}"


def _measured_in(record: Record, stored: str) -> str:
    """Return what stands behind the dtype of stored weights where the run computed in another one."""
    return f" (measured in {record.cell['dtype']})" if record.cell["dtype"] != stored else ""


def _line(folder: Path, manifest: Mapping[str, Any], record: Record) -> str:
    size = sum(entry["bytes"] for entry in manifest["weights"].values()) / 1e6
    means = "stock transformers" if manifest["loads_with"] == "transformers" else "prunebench"
    reason = f" ({manifest['reason']})" if manifest["reason"] else ""
    stored = f"{manifest['dtype']}{_measured_in(record, manifest['dtype'])}"
    count = f"{manifest['parameters']:,} parameters, {size:.1f} MB, {stored}"
    return f"{folder}: {count}, loads with {means}{reason}"


def checks(record: Record, trust: Trust, wish: Wish) -> Iterator[Check]:
    """Yield what comes of the GGUF file that was written as wished in llama.cpp, a check each, on text of the record.

    Where the record may not name that text, where it is not here any more, or is too short for a window, all but
    perplexities is compared, which is said.
    """
    from bench.export import engine_check

    protocol = record.cell["protocol"]
    tokenizer = _tokenizer(record, trust, wish.dtype)
    text, windows = [*protocol["texts"], protocol["calibration"]][0], None
    for count in (engine_check.WINDOWS, 1):  # a text may be too short for several
        try:
            trust.refuse_text(text)
            texts.check(text)
            windows = engine_check.windows_of(tokenizer, text, protocol["window"], count)
            break
        except UserError as error:
            missing = first_line(error)
    if windows is None:
        say(f"perplexities are not compared: {missing}")
    yield from engine_check.check(
        wish.to, tokenizer, windows, threads=torch.get_num_threads(), which=engine_check.first_of(text)
    )
