"""One cell, in one straight line: load, prune, measure. Whatever happens to it is its outcome.

What is found is told as it comes, so that a cell that fails, or whose process dies, keeps what it had. Perplexities and
tasks are kept on disk one by one (bench.ledger.Pieces) and not measured again after an interruption, as long as the
pruned model is the same to the last bit.
"""

from __future__ import annotations

import errno
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

import methods
from bench import checks, data, environment, export, inputs, isolation, leaks, ledger, models, scoring, speed, tasks
from bench.errors import UserError
from bench.reading import Reading
from bench.record import Unwritable
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

DOING = {
    "load": "while it loaded the model",
    "prune": "while it pruned",
    "save": "while it saved the model and loaded it again",
    "perplexity": "while it measured perplexity",
    "tasks": "while it answered tasks",
    "speed": "while it was timed",
    "checks": "while it ran the checks",
}


@dataclass(frozen=True)
class Materials:
    """What all cells of one protocol and seed look at: the same tokens and documents, and the hashes of both."""

    calibration: Calibration
    texts: dict[str, data.EvaluationText]
    tasks: dict[str, Any]
    documents: dict[str, list[int]]
    dense: checks.Dense | None
    inputs: dict[str, Any]
    scratch: Path
    inherited_seconds: float = 0.0

    def knowing(self, order: tuple[str, ...], seconds: float) -> Materials:
        """The same, with the removals that an earlier cell found, and what finding them took."""
        return replace(self, calibration=replace(self.calibration, order=order), inherited_seconds=seconds)

    @staticmethod
    def of(cell: Cell, scratch: Path, reading: Reading | None = None) -> Materials:
        """`scratch` is a folder for what need not outlive the run; `reading` has what earlier cells have read.

        Raises UserError when a text is shorter than asked, when one that is evaluated is calibrated on under another
        name, or when a task's documents cannot be had.
        """
        p, reading = cell.protocol, reading or Reading(cell, scratch)
        tokenizer, loaded = reading.tokenizer, reading.load(p.tasks, p.task_data, p.fewshot)
        block = data.calibration(tokenizer, p.calibration, p.calibration_sequences, p.calibration_length, cell.seed)
        texts = {text: _held_out(reading, text, p) for text in p.texts}
        leaks.refuse_shared(tokenizer, block.ids, block.source, texts.values(), "calibrated on")
        documents = {name: tasks.draw(task, p.documents, cell.seed) for name, task in loaded.items()}
        first = next(iter(texts.values()), None)
        return Materials(
            replace(block, memory=p.calibration_memory_mib * 2**20),
            texts,
            loaded,
            documents,
            reading.dense(first) if first and p.checks else None,
            inputs.common(cell, tokenizer, calibration=block, texts=texts, loaded_tasks=loaded, documents=documents),
            scratch,
        )


def _held_out(reading: Reading, text: str, p: Protocol) -> data.EvaluationText:
    return reading.text(text, p.window, p.stride, p.windows, whole=data.is_whole(text, p.calibration))


@dataclass
class Outcome:
    """What a cell has come to so far.

    tell   hears all of it before each stage, and at the end
    doing  hears what is about to be done, as "while it ..."
    say    is for the user
    """

    tell: Callable[[dict[str, Any]], object]
    doing: Callable[[str], object]
    say: Callable[[str], object]
    decisions: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        self.doing(DOING[stage])
        self.tell({"decisions": self.decisions, "measured": self.measured})
        start = time.perf_counter()
        yield
        seconds = self.measured.setdefault("seconds", {})
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def attempt(cell: Cell, folder: Path, materials: Materials, outcome: Outcome) -> None:
    """One cell, whatever happens; tells decisions, measured, status and error.

    Raises Unwritable for a full disk, and UserError for a base model that does not load, which is no cell's alone.
    """
    status, error = "ok", None
    try:
        _measure(cell, folder, materials, outcome)
    except Unsupported as reason:
        status, error = "unsupported", str(reason)
    except Exception as reason:
        if isinstance(reason, Unwritable) or (isinstance(reason, UserError) and not outcome.measured):
            raise
        if _is_full_disk(reason):
            message = "the same command goes on once there is room"
            raise Unwritable(f"no room is left on a disk: {isolation.reason(reason)}; {message}") from reason
        if isolation.is_out_of_memory(reason):
            status, error = "out_of_memory", str(reason).partition("\n")[0] or type(reason).__name__
        else:
            status, error = "error", f"{type(reason).__name__}: {reason}\n{traceback.format_exc()}"
    found = {"decisions": outcome.decisions, "measured": outcome.measured}
    outcome.tell(found | {"status": status, "error": error})


def _is_full_disk(error: BaseException) -> bool:
    """By its words too, since the writers of weights put an error of the system into one of their own."""
    kinds = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in kinds or any(os.strerror(kind) in str(error) for kind in kinds)


def _measure(cell: Cell, folder: Path, materials: Materials, outcome: Outcome) -> None:
    """Load, prune, save if asked, then measure what the protocol names; a saved model as it loads again."""
    device, dtype = torch.device(cell.device), getattr(torch, cell.dtype)
    with outcome.timed("load"):
        weights = models.weights_sha256(cell.model)
        _refuse_changes(cell, materials.inputs | {"weights_sha256": weights})
        model, tokenizer = models.load(cell.model, device, dtype, cell.trust_remote_code)
        outcome.measured["weights_sha256"] = weights
    torch.manual_seed(cell.seed)
    decoder = Decoder(model)
    _prune(cell, decoder, materials, outcome)
    saved = bool(cell.protocol.save_dtype) and cell.method != "dense"
    if saved:
        outcome.say("saving the model and loading it again")
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
    outcome.measured["pruned_sha256"] = inputs.state_sha256(model)
    outcome.say(f"measuring {outcome.measured['parameters'] / 1e6:.1f} M parameters")
    pieces = ledger.pieces(folder, cell.key, outcome.measured)
    _perplexity(cell, model, materials, outcome, pieces)
    _accuracy(cell, (model, tokenizer), materials, outcome, pieces)
    if cell.protocol.speed_rounds:
        with outcome.timed("speed"):
            outcome.measured["speed"] = speed.measure(model, cell)
    outcome.measured["peak_memory_bytes"] = environment.peak_memory_bytes(decoder.embed.weight.device)
    if cell.protocol.checks:
        with outcome.timed("checks"):
            outcome.measured["checks"] = _checks(cell, model, tokenizer, materials)
    if saved:
        export.complete(outcome.measured, folder)


def _refuse_changes(cell: Cell, now: dict[str, Any]) -> None:
    """What the cell was asked about must still be there: its key says so."""
    changed = inputs.differing(cell.inputs, cell.inputs | now)
    if changed:
        raise RuntimeError(f"this has changed since the run began: {', '.join(changed)}")


def _prune(cell: Cell, decoder: Decoder, materials: Materials, outcome: Outcome) -> None:
    """Note the dense model, prune it, and note what is left."""
    outcome.measured |= {"dense_layers": len(decoder.layers), "dense_parameters": parameters(decoder)}
    outcome.measured["dense_parameters_without_embeddings"] = parameters_without_embeddings(decoder)
    ratio = budget(cell, decoder)
    if cell.ratio is not None:
        outcome.measured["ratio_budget"] = ratio
    if materials.dense:
        with outcome.timed("checks"):
            materials.dense.remember(decoder.model)
    if cell.method != "dense":
        outcome.say("pruning")
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


def _perplexity(cell: Cell, model: nn.Module, materials: Materials, outcome: Outcome, pieces: ledger.Pieces) -> None:
    figures = outcome.measured["perplexity"] = {}
    for name, text in materials.texts.items():
        piece = f"perplexity-{Path(name).stem}"
        with outcome.timed("perplexity"):
            found = pieces.recall(piece)
            if found is None:
                found, samples = _windows(cell, model, name, text)
                pieces.keep(piece, found, samples)
            figures[name] = found


def _windows(cell: Cell, model: Any, name: str, text: data.EvaluationText) -> tuple[dict[str, Any], pd.DataFrame]:
    """The figures of bench.record, and of each window: nll, in nats, and tokens that are scored."""
    nll = scoring.window_nll(model, text.ids, text.scored, cell.protocol.batch_tokens).sum(1)
    counts = text.scored.sum(1)
    figures = scoring.perplexity(nll, counts, text.bytes, text.words) | {
        "whole": data.is_whole(name, cell.protocol.calibration),
        "window": cell.protocol.window,
        "stride": cell.protocol.stride,
        "bos": text.bos,
        "sha256": text.sha256,
    }
    return figures, pd.DataFrame({"nll": nll.tolist(), "tokens": counts.tolist()})


def _accuracy(
    cell: Cell, loaded: tuple[Any, Any], materials: Materials, outcome: Outcome, pieces: ledger.Pieces
) -> None:
    """Each task by itself, so that its answers depend on no other task of the run."""
    figures = outcome.measured["tasks"] = {}
    if not materials.tasks:
        return
    if cell.protocol.scorer == "stock":
        lm = scoring.stock(*loaded)
    else:
        # of the dense model alone: what pruning has damaged can magnify rounding beyond any bound
        lm = scoring.Scorer(*loaded, batch_tokens=cell.protocol.batch_tokens, check=cell.method == "dense")
    for name, task in materials.tasks.items():
        with outcome.timed("tasks"):
            found = pieces.recall(name)
            if found is None:
                answered, samples = tasks.evaluate(lm, {name: task}, {name: materials.documents[name]})
                found = answered[name]
                pieces.keep(name, found, samples[name])
            figures[name] = found


def _checks(cell: Cell, model: Any, tokenizer: Any, materials: Materials) -> dict[str, float]:
    """Of the first text; the dense model is not compared with itself."""
    text = next(iter(materials.texts.values()), None)
    dense = None if cell.method == "dense" else materials.dense
    return checks.measure(model, tokenizer, text.ids if text else None, dense)
