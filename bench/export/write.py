"""Writes models and answers out of a run.

run --save-models    every pruned model is saved, loaded again, and measured as it loads
export               a saved model is copied; any other is made again from its record, which must agree

`SHAPES` says which shapes of pruned models each format holds, and what reads it.

The answers of a cell are written as a result file of lm-eval, for programs that read those. The fields are those of
lm-eval 0.4.13 that its own table and common readers use. The additions of this suite have names of their own:
`answer_bpb`, bits per byte of the right answer, is a metric of its task, and a perplexity is that of a task
`prunebench_TEXT`, whose windows are in `config`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.data import pretrained, texts
from bench.data.mixture import texts_of_calibration
from bench.export.card_picture import add_picture
from bench.export.eval_results import write_eval_results
from bench.export.formats import GGUF, HETEROGENEOUS, HF
from bench.inference import llama_cpp
from bench.plan.protocol import AUTO, QUANTISED, name_of_text
from bench.plan.trust import Trust
from bench.records import run_folder
from bench.records.measured import ANSWER_BPB, SavedModel, TaskScore, TextScore
from bench.records.record import Record
from bench.runs.reproduce import PrunedModel, prune_again
from bench.runs.saving import dtype_to_save
from methods.checkpoint import save_load, weight_files
from methods.checkpoint.pruned_config import Uneven
from methods.checkpoint.save_load import Check
from methods.checkpoint.transformers_compat import pad_layers
from methods.console import say
from methods.errors import UserError, first_line_of
from methods.files import write_atomically
from methods.model.decoder import Decoder

CARRIED = ("base", "pruning", "measured", "rounding")  # what a copy says as its original does
BEFORE = "the model of the run, before it was stored in this folder"


@dataclass(frozen=True)
class Wish:
    """Says how a model is to be written.

    to        the new folder, or the new file for GGUF
    format    one of bench.export.formats
    dtype     of the weights; "auto" for the base's; None for that of the saved model, or without a saved model for that
              of the measurement; one of QUANTISED for GGUF
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


def find_cell(run: Path, name: str) -> Record:
    """Return the record of the one measured cell of this name (bench.records.run_folder). Raises UserError."""
    key, record = run_folder.find_cell(run, name)
    if record.status != "ok":
        raise UserError(f"{key} has no model: {record.status}, {(record.error or '').partition(chr(10))[0]}")
    return record


def model_of(record: Record, trust: Trust, device: str, dtype: str | None) -> PrunedModel:
    """Return the record's model: the saved one unless that was rounded too far, else made again. Raises UserError."""
    if folder := find_saved_model(record, trust, dtype):
        manifest = save_load.read_manifest(folder)
        facts: dict[str, Any] = {name: manifest[name] for name in CARRIED if name in manifest}
        tokenizer = pretrained.load_tokenizer(str(folder))
        return PrunedModel(save_load.load(folder), tokenizer, facts, None)
    return prune_again(record, device, trust)


def find_saved_model(record: Record, trust: Trust, dtype: str | None) -> Path | None:
    """Return the folder of a saved model that holds all that `dtype` does; None for one that was rounded further."""
    kept = record.measured.saved or SavedModel()
    if (folder := _folder(record, trust)) is None:
        return None
    exact = kept.rounding is None or kept.dtype == "float32"
    return folder if exact or _resolve_dtype(dtype, record, trust) in (None, kept.dtype) else None


def _folder(record: Record, trust: Trust) -> Path | None:
    """Return the folder of a saved model, or None. Raises UserError for one that is not in the folder of its run."""
    name = (record.measured.saved or SavedModel()).folder
    if name is None or not save_load.is_checkpoint(folder := trust.run / name):
        return None
    trust.refuse_outside(folder)
    return folder


def _resolve_dtype(dtype: str | None, record: Record, trust: Trust) -> str | None:
    """Return the dtype by its own name, also for "auto", that of the base's weights."""
    return str(_dtype_to_store(AUTO, record, trust)).removeprefix("torch.") if dtype == AUTO else dtype


def _dtype_to_store(dtype: str, record: Record, trust: Trust) -> torch.dtype:
    """Return the dtype of this name. For "auto" the base is read, which the user has to allow."""
    if dtype == AUTO:
        trust.refuse(record.cell)
    return dtype_to_save(dtype, record.cell.model, record.cell.dtype)


def _tokenizer(record: Record, trust: Trust, dtype: str | None) -> Any:
    """Return the tokenizer of `model_of`'s model. A saved model has no code of its own."""
    if folder := find_saved_model(record, trust, "float32" if dtype in QUANTISED else dtype):
        return pretrained.load_tokenizer(str(folder))
    trust.refuse(record.cell)
    return pretrained.load_tokenizer(record.cell.model, record.cell.trust_remote_code)


def copy_model(source: Path, target: Path, trust: Trust) -> None:
    """Copy a saved model whole, after its hashes have been checked. Raises UserError. No link leads out of the run."""
    for path in source.rglob("*"):
        trust.refuse_outside(path)
    weight_files.check_weights(source, save_load.read_manifest(source)["weights"])
    with weight_files.write_folder_whole(target) as inside:
        shutil.copytree(source, inside, dirs_exist_ok=True)


def write_model(record: Record, trust: Trust, wish: Wish) -> str:
    """Write the record's model as wished, and return a line on it. Raises UserError."""
    _refuse_target(wish)
    if wish.dtype in QUANTISED:
        llama_cpp.require(f"{wish.dtype} is written by llama.cpp")
    kept, folder = record.measured.saved or SavedModel(), _folder(record, trust)
    same_files = not wish.pad and wish.most == save_load.SHARD_BYTES
    unchanged = same_files and _resolve_dtype(wish.dtype, record, trust) in (None, kept.dtype)
    if wish.format == HF and folder and unchanged:
        copy_model(folder, wish.to, trust)
        return _complete_folder(wish.to, save_load.read_manifest(wish.to), record, trust.run)
    dtype = "float32" if wish.dtype in QUANTISED else wish.dtype
    if wish.format == GGUF:
        from bench.export.gguf_file import describe_tokenizer

        words = _tokenizer(record, trust, wish.dtype)
        describe_tokenizer(words, len(words))  # refuses a tokenizer that GGUF does not hold, before a model is made
    pruned = model_of(record, trust, wish.device, dtype)
    kind = _dtype_to_store(dtype or kept.dtype or record.cell.dtype, record, trust)
    try:
        if wish.format == HF:
            return _complete_folder(wish.to, _write_folder(pruned, kind, wish), record, trust.run)
        model = pad_layers(pruned.model, save_load.make_probe(pruned.model))[0] if wish.pad else pruned.model
    except Uneven as error:
        raise UserError(str(error)) from error
    return _write_for_engine(record, model, pruned.tokenizer, kind, wish)


def _refuse_target(wish: Wish) -> None:
    """Raise UserError where a file or folder is in the way."""
    to = wish.to
    if not to.name:
        raise UserError(f"{to} is the folder in which the command runs, which no model can replace; name a new one")
    is_filled = to.is_dir() and any(to.iterdir())
    if to.is_file() or is_filled or (to.is_dir() and wish.format == GGUF):
        raise UserError(f"{to} exists{' and is not empty' if is_filled else ''}; name a new one")


def _write_folder(pruned: PrunedModel, kind: torch.dtype, wish: Wish) -> Mapping[str, Any]:
    """Write a folder of Hugging Face's layout, and return its manifest."""
    facts = dict(pruned.facts)
    if "measured" in facts:
        facts["measured"] = facts["measured"] | {"model": BEFORE}
    options = {"tokenizer": pruned.tokenizer, "facts": facts, "dtype": kind, "pad": wish.pad}
    return save_load.save(pruned.model, wish.to, shard_bytes=wish.most, probe=pruned.probe, **options)


def _write_for_engine(record: Record, model: Decoder, tokenizer: Any, kind: torch.dtype, wish: Wish) -> str:
    """Write a model in the format of an inference engine, and return a line on it."""
    to, quantised, given = wish.to, wish.dtype if wish.dtype in QUANTISED else None, (model, tokenizer, wish.to, kind)
    if wish.format == GGUF:
        from bench.export import gguf_file

        name = pretrained.name_of_model(record.cell.model)
        added = gguf_file.write_gguf(*given, name, multiple=wish.multiple, quantised=quantised).form.zeros
    elif wish.format == HETEROGENEOUS:
        from bench.export import engine_form

        added = engine_form.write_heterogeneous(*given, shard_bytes=wish.most)
    else:
        from bench.export import engine_form

        added = engine_form.write_nemotron(*given, shard_bytes=wish.most, multiple=wish.multiple).zeros
    files = [to] if to.is_file() else to.glob("*.safetensors")
    size = sum(file.stat().st_size for file in files) / 1e6
    zeros = f", {added:,} zeros where something is gone" if added else ""
    stored = quantised or str(kind).removeprefix("torch.")
    return f"{to}: {size:.1f} MB, matrices in {stored}{_measured_in(record, stored)}{zeros}"


def _measured_in(record: Record, stored: str) -> str:
    """Return a note on the dtype in which the run computed, where the stored weights have another one."""
    return f" (measured in {record.cell.dtype})" if record.cell.dtype != stored else ""


def _complete_folder(folder: Path, manifest: Mapping[str, Any], record: Record, run: Path) -> str:
    """Write the hub's evaluation results and the card's picture into a written folder, and return a line on it."""
    add_picture(folder, manifest, record, run)
    for line in write_eval_results(folder, record, manifest):
        say(line)
    return _line(folder, manifest, record)


def _line(folder: Path, manifest: Mapping[str, Any], record: Record) -> str:
    size = sum(entry["bytes"] for entry in manifest["weights"].values()) / 1e6
    means = "stock transformers" if manifest["loads_with"] == "transformers" else "prunebench"
    reason = f" ({manifest['reason']})" if manifest["reason"] else ""
    stored = f"{manifest['dtype']}{_measured_in(record, manifest['dtype'])}"
    count = f"{manifest['parameters']:,} parameters, {size:.1f} MB, {stored}"
    return f"{folder}: {count}, loads with {means}{reason}"


def check_engine(record: Record, trust: Trust, wish: Wish) -> Iterator[Check]:
    """Yield a check each of the written GGUF file in llama.cpp, on text of the record.

    Perplexities are not compared, and a check says so, where the record may not name that text, where the text is
    missing, or where it is too short for a window.
    """
    from bench.export import engine_check

    protocol = record.cell.protocol
    tokenizer = _tokenizer(record, trust, wish.dtype)
    text, windows = [*protocol.texts, *texts_of_calibration(protocol.calibration)][0], None
    for count in (engine_check.WINDOWS, 1):  # a text may be too short for several
        try:
            trust.refuse_text(text)
            texts.check_text(text)
            windows = engine_check.windows_of(tokenizer, text, protocol.window, count)
            break
        except UserError as error:
            missing = first_line_of(error)
    if windows is None:
        say(f"perplexities are not compared: {missing}")
    yield from engine_check.check_gguf(
        wish.to, tokenizer, windows, threads=torch.get_num_threads(), which=engine_check.words_of_windows(text)
    )


OF_TEXTS = {
    "perplexity": "token_perplexity",
    "word_perplexity": "word_perplexity",
    "byte_perplexity": "byte_perplexity",
    "bits_per_byte": "bits_per_byte",
}
LOWER = (ANSWER_BPB, *OF_TEXTS.values(), "perplexity")


def write_lm_eval_results(run: Path, cell: str, to: Path) -> str:
    """Write the result file of the one measured cell that `cell` names; return its path. Raises UserError."""
    key, record = run_folder.find_cell(run, cell)
    if record.status != "ok":
        raise UserError(f"{key} has no figures: {record.status}, {(record.error or '').partition(chr(10))[0]}")
    if to.exists():
        raise UserError(f"{to} exists; name a new file")
    write_atomically(to, json.dumps(results_of_record(record), indent=2, ensure_ascii=False) + "\n")
    return str(to)


def results_of_record(record: Record) -> dict[str, Any]:
    """Return the content of the result file as plain JSON values. Raises UserError for a cell without answers."""
    tasks, texts = record.measured.task_scores, record.measured.text_scores
    if not tasks and not texts:
        raise UserError(f"{record.cell.label} was measured on no task and no text")
    metrics_by_name = {name: _metrics(task) for name, task in tasks.items()}
    metrics_by_name |= {f"prunebench_{name_of_text(name)}": _of_text(text) for name, text in texts.items()}
    cell, protocol = record.cell, record.cell.protocol
    return {
        "results": {name: {"alias": name} | metrics for name, metrics in metrics_by_name.items()},
        "group_subtasks": {name: [] for name in metrics_by_name},
        "versions": {name: task.version for name, task in tasks.items()},
        "n-shot": {name: task.fewshot for name, task in tasks.items()},
        "higher_is_better": {name: dict(map(_direction, metrics)) for name, metrics in metrics_by_name.items()},
        "n-samples": {name: {"original": task.available, "effective": task.documents} for name, task in tasks.items()},
        "config": {
            "model": "prunebench",
            "model_args": {
                name: getattr(cell, name) for name in ("model", "method", "parameters", "ratio", "ratio_of")
            },
            "dtype": cell.dtype,
            "device": cell.device,
            "window": protocol.window,
            "stride": protocol.stride,
            **(protocol.chat.options if protocol.chat else {}),
        },
        "model_name": f"{cell.model} {cell.label}",
        "date": record.environment.get("date"),
        "versions_of_packages": record.environment.get("versions", {}),
    }


def _metrics(task: TaskScore) -> dict[str, Any]:
    """Return the metrics of a task as lm-eval names them, METRIC,FILTER and METRIC_stderr,FILTER."""
    value_by_name = {}
    for name, figure in task.every_metric().items():
        metric, _, chosen = name.partition(",")
        value_by_name[f"{metric},{chosen or 'none'}"] = figure.value
        if figure.stderr is not None:
            value_by_name[f"{metric}_stderr,{chosen or 'none'}"] = figure.stderr
    return value_by_name


def _of_text(text: TextScore) -> dict[str, Any]:
    values = {f"{label},none": getattr(text, name) for name, label in OF_TEXTS.items()}
    return {name: value for name, value in values.items() if value is not None}


def _direction(metric: str) -> tuple[str, bool]:
    """Return a metric's name, without its filter, and whether higher is better."""
    name = metric.partition(",")[0].removesuffix("_stderr")
    return name, name not in LOWER
