"""Run cells: load, prune, measure, write down. One straight line per cell; a cell with a valid record is skipped."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import methods
from bench import checks, data, environment, export, models, scoring, speed, tasks
from bench.errors import UserError
from bench.record import InvalidRecord, Record, load, save
from bench.spec import Cell, Protocol, budget
from methods.anatomy import Decoder
from methods.budget import (
    kv_bytes_per_token,
    macs_per_token,
    parameters,
    parameters_without_embeddings,
    weight_bytes,
)
from methods.pruner import Calibration, Unsupported

FAILED = ("error", "out_of_memory")


@dataclass(frozen=True)
class Materials:
    """What all cells of a run look at: the same tokens and the same documents."""

    calibration: Calibration
    texts: dict[str, data.EvaluationText]
    tasks: dict[str, Any]
    documents: dict[str, list[int]]
    dense: checks.Dense | None
    inherited_seconds: float = 0.0

    def knowing(self, order: tuple[str, ...], seconds: float) -> Materials:
        """The same, with the removals that an earlier cell found, and what finding them took."""
        return replace(self, calibration=replace(self.calibration, order=order), inherited_seconds=seconds)

    @staticmethod
    def of(cell: Cell, tokenizer: Any, scratch: Path) -> Materials:
        """`scratch` is a folder for what need not outlive the run."""
        p = cell.protocol
        loaded = tasks.load(p.tasks, p.task_data, p.fewshot)
        block = data.calibration(tokenizer, p.calibration, p.calibration_sequences, p.calibration_length, cell.seed)
        texts = {text: _held_out(tokenizer, text, p) for text in p.texts}
        first = next(iter(texts.values()), None)
        return Materials(
            replace(block, memory=p.calibration_memory_mib * 2**20),
            texts,
            loaded,
            {name: tasks.draw(task, p.documents, cell.seed) for name, task in loaded.items()},
            checks.Dense(first.ids, scratch / "dense.safetensors") if first and p.checks else None,
        )


def _held_out(tokenizer: Any, text: str, p: Protocol) -> data.EvaluationText:
    whole = data.is_whole(text, p.calibration)
    return data.evaluation(tokenizer, text, p.window, p.stride, p.windows, whole=whole)


@dataclass
class Outcome:
    """What a cell has come to so far; a cell that fails keeps what it had."""

    decisions: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, pd.DataFrame] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = self.measured.setdefault("seconds", {})
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def run(cells: Sequence[Cell], folder: Path, *, retry_failed: bool = False) -> list[Record]:
    """Run every cell that has no record in `folder` yet, and return the records of all, in the cells' order.

    Raises UserError before the first cell when a text is shorter than asked or a task's documents cannot be had.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    paths = [folder / "cells" / f"{cell.key}.json" for cell in cells]
    records = [_finished(path, retry_failed) for path in paths]
    with _scratch(folder) as scratch:
        if None in records:
            tokenizer = models.load_tokenizer(cells[0].model, cells[0].trust_remote_code)
            materials = Materials.of(cells[0], tokenizer, scratch)
        for index, (cell, path) in enumerate(zip(cells, paths, strict=True)):
            where = f"[{index + 1}/{len(cells)}] {cell.label}" + ("" if cell.ratio is None else f" at {cell.ratio:g}")
            if records[index] is None:
                _say(f"{where}: loading the model")
                record = _run_cell(cell, folder, materials.knowing(*removals(cell, _valid(folder))), where)
                save(record, path)
                records[index] = record
            else:
                _say(f"{where}: has a record")
    return [record for record in records if record is not None]


SEARCHED = ("model", "method", "parameters", "seed", "device", "dtype")
SEARCHED_ON = ("calibration", "calibration_sequences", "calibration_length")


def removals(cell: Cell, records: Sequence[Record]) -> tuple[tuple[str, ...], float]:
    """The longest start of a greedy method's removals that other cells of the folder have found, and its seconds.

    They may differ in the ratio, and in how they are measured; not in what the method is, and what it looks at.
    """

    def search(plain: dict[str, Any]) -> list[Any]:
        return [plain[name] for name in SEARCHED] + [plain["protocol"][name] for name in SEARCHED_ON]

    best: tuple[tuple[str, ...], float] = ((), 0.0)
    for record in records:
        order = record.decisions.get("removal_order", [])[: record.decisions.get("free_removals", 0)]
        if len(order) > len(best[0]) and search(record.cell) == search(asdict(cell)):
            best = tuple(order), record.measured["prune_seconds"]
    return best


def _valid(folder: Path) -> list[Record]:
    """Every record of the folder that can be read and is a result."""
    found = []
    for path in sorted((folder / "cells").glob("*.json")):
        with suppress(InvalidRecord):
            found.append(load(path))
    return [record for record in found if record.status == "ok"]


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder beside the results that is gone at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".run-", dir=folder) as name:
        yield Path(name)


def _finished(path: Path, retry_failed: bool) -> Record | None:
    """The cell's record, if it has a valid one that counts."""
    if not path.exists():
        return None
    try:
        record = load(path)
    except InvalidRecord as error:
        _say(f"{error}; the cell runs again")
        return None
    return None if retry_failed and record.status in FAILED else record


def _run_cell(cell: Cell, folder: Path, materials: Materials, where: str) -> Record:
    """One cell to its record, whatever happens; only a user's mistake and an interruption go up."""
    outcome = Outcome()
    status, error = "ok", None
    device, dtype = torch.device(cell.device), getattr(torch, cell.dtype)
    try:
        with outcome.timed("load"):
            loaded = models.load(cell.model, device, dtype, cell.trust_remote_code)
        _measure(cell, loaded, materials, outcome, where=where, folder=folder)
    except Unsupported as reason:
        status, error = "unsupported", str(reason)
    except (torch.OutOfMemoryError, MemoryError) as reason:
        status, error = "out_of_memory", str(reason).partition("\n")[0] or type(reason).__name__
    except UserError:
        raise
    except Exception as reason:
        status, error = "error", f"{type(reason).__name__}: {reason}\n{traceback.format_exc()}"
    if error:
        _say(f"{where}: {status}: {error.partition(chr(10))[0]}")
    _save_samples(folder / "samples" / cell.key, outcome.samples)
    names = {"display_name": models.display_name(cell.model), "label": cell.label}
    described = environment.describe(device, dtype)
    return Record(asdict(cell) | names, status, described, outcome.decisions, outcome.measured, error)


def _measure(
    cell: Cell, loaded: tuple[Any, Any], materials: Materials, outcome: Outcome, *, where: str, folder: Path
) -> None:
    """Prune, save if asked, then measure everything that the protocol names; a saved model as it loads again."""
    torch.manual_seed(cell.seed)
    model, tokenizer = loaded
    decoder = Decoder(model)
    outcome.measured["weights_sha256"] = models.weights_sha256(cell.model)
    outcome.measured |= {"dense_layers": len(decoder.layers), "dense_parameters": parameters(decoder)}
    outcome.measured["dense_parameters_without_embeddings"] = parameters_without_embeddings(decoder)
    ratio = budget(cell, decoder)
    if cell.ratio is not None:
        outcome.measured["ratio_budget"] = ratio
    if materials.dense:
        with outcome.timed("checks"):
            materials.dense.remember(model)
    if cell.method != "dense":
        _say(f"{where}: pruning")
        environment.reset_peak_memory(decoder.embed.weight.device)
        with outcome.timed("prune"):
            pruner = methods.make(cell.method, cell.parameters)
            outcome.decisions |= pruner.prune(decoder, materials.calibration, ratio)
        outcome.measured["prune_seconds"] = outcome.measured["seconds"]["prune"] + materials.inherited_seconds
    outcome.decisions["calibration"] = {
        "source": materials.calibration.source,
        "seed": materials.calibration.seed,
        "shape": list(materials.calibration.ids.shape),
        "sha256": materials.calibration.sha256,
    }
    outcome.measured |= sizes(decoder, outcome.measured, max(cell.protocol.prefill, default=cell.protocol.window))
    saved = bool(cell.protocol.save_dtype) and cell.method != "dense"
    if saved:
        _say(f"{where}: saving the model and loading it again")
        with outcome.timed("save"):
            decoder = export.save_and_reload(
                cell,
                decoder,
                tokenizer,
                calibration=materials.calibration,
                decisions=outcome.decisions,
                measured=outcome.measured,
                run=folder,
            )
            model = decoder.model
    _say(f"{where}: measuring {outcome.measured['parameters'] / 1e6:.1f} M parameters")
    with outcome.timed("perplexity"):
        outcome.measured["perplexity"] = _perplexity(cell, model, materials, outcome)
    with outcome.timed("tasks"):
        outcome.measured["tasks"] = _accuracy(cell, model, tokenizer, materials, outcome)
    if cell.protocol.speed_rounds:
        with outcome.timed("speed"):
            outcome.measured["speed"] = speed.measure(model, cell)
    outcome.measured["peak_memory_bytes"] = environment.peak_memory_bytes(decoder.embed.weight.device)
    if cell.protocol.checks:
        with outcome.timed("checks"):
            outcome.measured["checks"] = _checks(cell, model, tokenizer, materials)
    if saved:
        export.complete(outcome.measured, folder)


def _checks(cell: Cell, model: Any, tokenizer: Any, materials: Materials) -> dict[str, float]:
    """Of the first text; the dense model is not compared with itself."""
    text = next(iter(materials.texts.values()), None)
    dense = None if cell.method == "dense" else materials.dense
    return checks.measure(model, tokenizer, text.ids if text else None, dense)


def sizes(decoder: Decoder, dense: dict[str, Any], context: int) -> dict[str, Any]:
    """Everything that follows from the shapes alone, by the names of bench.record."""
    count, inner = parameters(decoder), parameters_without_embeddings(decoder)
    return {
        "parameters": count,
        "parameters_without_embeddings": inner,
        "ratio": 1 - count / dense["dense_parameters"],
        "ratio_without_embeddings": 1 - inner / dense["dense_parameters_without_embeddings"],
        "layers": len(decoder.layers),
        "weight_bytes": weight_bytes(decoder),
        "kv_bytes_per_token": kv_bytes_per_token(decoder),
        "macs_per_token": macs_per_token(decoder, context),
        "macs_context": context,
    }


def _perplexity(cell: Cell, model: Any, materials: Materials, outcome: Outcome) -> dict[str, Any]:
    figures = {}
    for name, text in materials.texts.items():
        nll = scoring.window_nll(model, text.ids, text.scored, cell.protocol.batch_tokens).sum(1)
        counts = text.scored.sum(1)
        outcome.samples[f"perplexity-{Path(name).stem}"] = pd.DataFrame(
            {"nll": nll.tolist(), "tokens": counts.tolist()}
        )
        figures[name] = scoring.perplexity(nll, counts, text.bytes, text.words) | {
            "whole": data.is_whole(name, cell.protocol.calibration),
            "window": cell.protocol.window,
            "stride": cell.protocol.stride,
            "bos": text.bos,
            "sha256": text.sha256,
        }
    return figures


def _accuracy(cell: Cell, model: Any, tokenizer: Any, materials: Materials, outcome: Outcome) -> dict[str, Any]:
    if not materials.tasks:
        return {}
    if cell.protocol.scorer == "stock":
        lm = scoring.stock(model, tokenizer)
    else:
        lm = scoring.Scorer(model, tokenizer, cell.protocol.batch_tokens)
    figures, samples = tasks.evaluate(lm, materials.tasks, materials.documents)
    outcome.samples |= samples
    return figures


def _save_samples(folder: Path, samples: dict[str, pd.DataFrame]) -> None:
    """One Parquet file per name, each renamed into place when it is whole."""
    for name, table in samples.items():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{name}.parquet"
        table.to_parquet(temporary, index=False)
        temporary.replace(folder / f"{name}.parquet")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
