"""Measures one cell in one straight line: load, prune, heal, save, measure. Whatever happens to it is its outcome.

Values are sent as they come, so that a cell that fails, or whose process dies, keeps what it had. Perplexities and
tasks are kept on disk piece by piece, and so is the progress of healing (bench.runs.store.Pieces) and of a greedy
search (bench.runs.searches). None of it is done again after an interruption, as long as the pruned model is the same to
the last bit.

`CellProgress` collects the values of a cell as `Measured`, stage by stage, with seconds and peaks of memory, and sends
them on as a record holds them.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

import methods
from bench.data import pretrained
from bench.evaluation import agreement, checks, quality, scoring, tasks
from bench.evaluation.agreement import Unlike
from bench.evaluation.forwards import Sweeping
from bench.evaluation.scoring import Backend
from bench.healing.processes import train_in_processes
from bench.healing.teacher import DensePredictions, predict
from bench.healing.training import heal
from bench.inference import endpoint, vllm_scorer
from bench.inference.endpoint import Endpoint
from bench.inference.predictor import NoAnswer
from bench.inference.vllm_scorer import VllmModel
from bench.plan.address import ServerAddress, VllmPython
from bench.plan.cell import Cell
from bench.plan.grid import budget_of_cell, quantity_of_cell
from bench.plan.kinds import to_plain, value_from_plain
from bench.plan.protocol import name_of_samples
from bench.records.decided import WhatWent
from bench.records.measured import (
    BudgetMet,
    Checks,
    Healing,
    Measured,
    PeakOfStage,
    PointScore,
    RangeScore,
    TaskMetric,
    TaskScore,
    TextScore,
)
from bench.records.record import load, misfit_of_layout
from bench.records.sample_tables import CONTINUATIONS
from bench.runs import inputs, searches, store
from bench.runs.datasets import Datasets
from bench.runs.saving import complete_card, save_and_reload
from bench.speed import benchmark, timed_cell
from bench.system import failures, interrupt, memory
from bench.system.threads import FreeCores
from methods import decisions
from methods.budget import prune_to_budget
from methods.counted import COUNTED, Budget
from methods.errors import NoRoom, OutOfReach, Unsupported, Unwritable, UserError, WrongDecisions
from methods.model.decoder import Decoder
from methods.model.layer_store import LayerStore
from methods.model.sizes import DenseSizes, dense_sizes_of, sizes_of

OUTCOMES: dict[type[Exception], str] = {
    **{Unsupported: "unsupported", OutOfReach: "out_of_reach", NoRoom: "error", WrongDecisions: "error"},
    **{NoAnswer: "error", Unlike: "error"},
}


def try_cell(cell: Cell, folder: Path, datasets: Datasets, outcome: CellProgress, parents: Path) -> None:
    """Measure a cell and send decisions, measured, status and error, whatever happens.

    folder   where its pieces and its model are written
    parents  the run's folder, which holds the record and the model of the cell's parent

    A cell that leaves the GPU unusable for its process has crashed, and the next one needs another process. Raises
    Unwritable for a full disk, and UserError for a base model that does not load, since that is not one cell's mistake.
    """
    status, error = "ok", None
    try:
        memory.set_gpu(outcome.devices[0])
        _measure(cell, folder, datasets, outcome, parents)
    except tuple(OUTCOMES) as reason:
        place = methods.place_of_prune(cell.method) if isinstance(reason, WrongDecisions) else ""  # raised behind it
        status, error = OUTCOMES[type(reason)], f"{place}{reason}"
    except (KeyboardInterrupt, interrupt.EndedBySignal):
        raise
    except BaseException as reason:  # SystemExit of a plugin too, which would end the run as if it were done
        if isinstance(reason, Unwritable) or (isinstance(reason, UserError) and not _is_loaded(outcome)):
            raise
        if failures.is_full_disk(reason):
            advice = (
                f"{failures.words_of_room([parents, Path(tempfile.gettempdir())])}; the same command goes on with more"
            )
            raise Unwritable(f"no room is left on a disk: {failures.reason_of_error(reason)}; {advice}") from reason
        status = failures.status_of_error(reason)
        if status == "out_of_memory":
            error = str(reason).partition("\n")[0] or type(reason).__name__
        else:
            place = failures.place_in_plugin(reason, methods.plugins_of(cell.method))
            error = f"{place}{type(reason).__name__}: {reason}\n{traceback.format_exc()}"
    outcome.send_values(status=status, error=error)
    gc.collect()  # models refer to themselves
    with suppress(RuntimeError):  # an error may have left the device unusable
        memory.give_back(outcome.devices)  # the next cell's peak would include it


def _is_loaded(outcome: CellProgress) -> bool:
    """Say whether the dense model has been loaded."""
    return outcome.measured.weights_sha256 is not None


def _measure(cell: Cell, folder: Path, datasets: Datasets, outcome: CellProgress, parents: Path) -> None:
    """Load, prune, heal and save the model, then measure what the protocol names. A saved model is loaded for that."""
    taught = _ask_teacher(cell, datasets, outcome)
    model, tokenizer = _load(cell, datasets, outcome)
    decoder, ratio, sizes = _dense(cell, model, datasets, outcome)
    del model
    dense = taught or _predictions(cell, decoder, str(outcome.measured.weights_sha256), datasets, outcome)
    if cell.earlier:
        del decoder
        decoder, ratio = _load_parent(cell, parents, (ratio, sizes), outcome)
    torch.manual_seed(cell.seed)
    amount = quantity_of_cell(cell, decoder) or ratio
    decoder = _prune(cell, decoder, amount, searches.resume_search(datasets, folder, cell.key), outcome)
    count = _count_sizes(cell, decoder, sizes, outcome)
    if cell.healing:
        _heal(cell, (decoder, tokenizer), datasets, outcome, dense=dense, folder=folder)
        del dense
    decoder = _save(cell, (decoder, tokenizer), datasets, folder, outcome)
    outcome.say(f"measuring {count / 1e6:.1f} M parameters")
    pieces = store.pieces_of(folder, cell.key, outcome.measured.pruned_sha256)
    with _open_backend(cell, (decoder.model, tokenizer), datasets, folder, outcome) as backend:
        _perplexity(cell, backend, datasets, outcome, pieces)
        _positions(backend, datasets, outcome, pieces)
        lm = _make_scorer(cell, (decoder.model, tokenizer), backend, outcome) if datasets.tasks else None
        _accuracy(cell, lm, datasets, outcome, pieces)
    if cell.is_timed:
        with outcome.alone(), outcome.stage("speed"):
            threads, alone = datasets.timed_threads, outcome.timed_alone
            speed = timed_cell.time_beside_dense(decoder.model, cell, threads, alone=alone)
            outcome.measured = replace(outcome.measured, speed=speed)
    if cell.protocol.checks:
        with outcome.stage("checks"):
            values, written = _checks(cell, decoder.model, tokenizer, datasets, outcome)
            outcome.measured = replace(outcome.measured, checks=values)
            if written:
                pieces.keep(CONTINUATIONS, values, pd.DataFrame([vars(each) for each in written]))
    if outcome.files and pretrained.sha256_of_weights(cell.model) != outcome.measured.weights_sha256:
        raise RuntimeError("the model's weight files have changed while they were read, so that no figure is of either")
    if outcome.measured.saved and outcome.measured.saved.folder:
        complete_card(outcome.measured, folder / outcome.measured.saved.folder)


def _load(cell: Cell, datasets: Datasets, outcome: CellProgress) -> tuple[nn.Module, Any]:
    """Load the dense model and its tokenizer. Raises RuntimeError if their hashes are not the cell's."""
    with outcome.stage("load"):
        weights = pretrained.sha256_of_weights(cell.model)
        before, recipe = cell.filled_inputs, cell.healing
        now = replace(
            datasets.inputs,
            weights_sha256=weights,
            revision=before.revision,
            healing=inputs.inputs_of_healing(recipe, datasets.healing[recipe]) if recipe else None,
            parent=before.parent,
            scored_by=before.scored_by,  # `_open_engine` asks for it
        )
        if changed := inputs.names_of_differences(before, now):
            raise RuntimeError(f"this has changed since the run began: {', '.join(changed)}")
        dtype = getattr(torch, cell.dtype)
        loaded = pretrained.load(cell.model, outcome.devices, dtype, cell.trust_remote_code, outcome.files)
        outcome.measured = replace(outcome.measured, weights_sha256=weights)
    return loaded


def _dense(
    cell: Cell, model: nn.Module, datasets: Datasets, outcome: CellProgress
) -> tuple[Decoder, float, DenseSizes]:
    """Record the dense model's sizes; return it, the ratio of it to remove, and the sizes."""
    decoder = Decoder(model, outcome.files)
    sizes = dense_sizes_of(decoder)
    outcome.measured = replace(outcome.measured, **vars(sizes))
    ratio = budget_of_cell(cell, decoder)
    if cell.ratio is not None and cell.ratio_of in COUNTED:
        outcome.measured = replace(outcome.measured, ratio_budget=ratio)
    if datasets.dense:
        with outcome.stage("checks"):
            datasets.dense.remember(decoder.model, outcome.sweeping)
    return decoder, ratio, sizes


def _load_parent(
    cell: Cell, folder: Path, target: tuple[float, DenseSizes], outcome: CellProgress
) -> tuple[Decoder, float]:
    """Return the model of the cell's parent, and the share of it that makes the ratio `target` of the dense model."""
    key, (ratio, dense) = str(cell.parent_key), target
    record = load(folder / "cells" / f"{key}.json")
    outcome.decisions["earlier"] = [*record.decisions.get("earlier", []), store.stage_of_record(record)]
    before, may_stay = record.measured.parameters or 0, (1 - ratio) * dense.dense_parameters
    if may_stay >= before:
        raise Unsupported(
            f"{record.cell.label} has {before:,} parameters, and {may_stay:,.0f} may stay at {ratio:g} of the dense "
            "model, so that there is nothing to remove"
        )
    with outcome.stage("load"):
        return store.load_model(folder, key, record, outcome.devices, outcome.files), 1 - may_stay / before


def _prune(
    cell: Cell,
    decoder: Decoder,
    target: float | Budget,
    search: tuple[Datasets, searches.SearchTimes],
    outcome: CellProgress,
) -> Decoder:
    """Return the model without a share of its parameters, or pruned to a budget, and record what is left."""
    datasets, times = search
    block = datasets.calibration
    if cell.method != "dense":
        outcome.say("pruning")
        if not cell.protocol.calibration_memory_mib:
            block = replace(block, memory=memory.bytes_for_states(outcome.devices))
            outcome.measured = replace(outcome.measured, calibration_memory_mib=block.memory // 2**20)
        with outcome.stage("prune"):
            pruner = methods.make(cell.method, cell.parameters)
            try:
                decoder, decided, met = prune_to_budget(target, pruner, decoder, block)
            except OutOfReach as reason:
                raise OutOfReach(f"behind {cell.earlier[-1].method}, {reason}" if cell.earlier else reason) from reason
        _refuse_unreadable(cell.method, decided)
        outcome.decisions |= decided
        earlier = times.inherited_seconds(decided) + (block.sweeps.seconds if block.sweeps else 0.0)
        seconds = outcome.seconds_of("prune") + earlier
        if (kept := datasets.statistics) and kept.peak:  # as if this cell had computed what it read
            outcome.add_peak("prune", kept.peak)
            seconds += kept.seconds
        outcome.measured = replace(
            outcome.measured,
            budget=BudgetMet(**vars(met)) if met else None,
            prune_seconds=seconds,
            search_seconds=times.seconds_until_each(decided) or None,
        )
    drawn = {"source": block.source, "seed": block.seed, "shape": list(block.ids.shape), "sha256": block.sha256}
    outcome.decisions["calibration"] = drawn
    return decoder


def _count_sizes(cell: Cell, decoder: Decoder, dense: DenseSizes, outcome: CellProgress) -> int:
    """Record the sizes that are left, and the shares of the dense model's that went; return the parameters."""
    sizes = sizes_of(decoder, cell.protocol.macs_context)
    ratio = 1 - sizes.parameters / dense.dense_parameters
    inner = 1 - sizes.parameters_without_embeddings / dense.dense_parameters_without_embeddings
    outcome.measured = replace(outcome.measured, ratio=ratio, ratio_without_embeddings=inner, **vars(sizes))
    return sizes.parameters


def _refuse_unreadable(method: str, decided: dict[str, Any]) -> None:
    """Raise WrongDecisions for decisions that no record holds, since one of its keys means something else."""
    if own := sorted(decided.keys() & {"calibration", "earlier"}):
        raise WrongDecisions(f"the decisions of {method} do not hold: {own[0]} is the record's own; {decisions.WHERE}")
    if wrong := misfit_of_layout(json.loads(json.dumps(decided)), WhatWent):
        raise WrongDecisions(f"the decisions of {method} do not hold: {wrong}; {decisions.WHERE}")


def _ask_teacher(cell: Cell, datasets: Datasets, outcome: CellProgress) -> DensePredictions | None:
    """Return what a teacher predicts for the text of healing; None where the dense model itself is the teacher.

    It is given back before the model is loaded, so that both are never in memory.
    """
    if cell.healing is None or cell.healing.teacher is None:
        return None
    name, dtype = cell.healing.teacher, getattr(torch, cell.dtype)
    with outcome.stage("heal"):
        weights = pretrained.sha256_of_weights(name)
        teacher = Decoder(pretrained.load(name, outcome.devices, dtype, cell.trust_remote_code)[0])
    return _predictions(cell, teacher, weights, datasets, outcome)


def _predictions(
    cell: Cell, dense: Decoder, weights_sha256: str, datasets: Datasets, outcome: CellProgress
) -> DensePredictions | None:
    """Return what the dense model or a teacher predicts for the text of healing, where the loss needs that."""
    if cell.healing is None or cell.healing.loss != "kl":
        return None
    text = datasets.healing[cell.healing]
    identity = f"{weights_sha256} {text.sha256} {cell.dtype} {outcome.devices[0].type}"
    with outcome.stage("heal"):
        return predict(dense, text.train, cell.healing, identity)


def _heal(
    cell: Cell,
    loaded: tuple[Decoder, Any],
    datasets: Datasets,
    outcome: CellProgress,
    *,
    dense: DensePredictions | None,
    folder: Path,
) -> None:
    """Train the pruned model in place. Its checkpoint is among the pieces of the cell."""
    assert cell.healing is not None
    recipe, text, decoder = cell.healing, datasets.healing[cell.healing], loaded[0]
    scorers: dict[str, Any] = {"texts": partial(_score_texts, cell, decoder, datasets)}
    if recipe.answers:
        scorers["answers"] = partial(_score_answers, cell, loaded, datasets)
    outcome.say(f"healing by {recipe.kind} on {recipe.sequences * recipe.length * recipe.passes:,} tokens")
    with outcome.stage("heal"):
        start = inputs.sha256_of_state(decoder.model)
        place = store.pieces_of(folder, cell.key, start).healing
        if recipe.processes > 1:
            train_in_processes(decoder, text, recipe, dense, place)  # `heal` goes on from their last checkpoint
        curve = heal(decoder, text, recipe, dense=dense, folder=place, scorers=scorers)
    end = curve[-1]
    trained = Healing(
        recipe=recipe.as_run(),
        text_sha256=text.sha256,
        start_sha256=start,
        seconds=end.seconds,
        tokens=end.tokens,
        tokens_per_second=end.tokens / end.seconds,
        outside_top=dense.outside if dense else None,
        curve=tuple(curve),
    )
    outcome.measured = replace(outcome.measured, healing=trained)


def _score_texts(cell: Cell, decoder: Decoder, datasets: Datasets) -> dict[str, PointScore]:
    """Return how well a model in training predicts each text."""
    scores = {}
    for name, windows in datasets.texts.items():
        own = scoring.OwnModel(decoder.model, cell.protocol.batch_tokens)
        score, _ = quality.score_text(cell.protocol, own, name, windows)
        scores[name] = PointScore(
            perplexity=score.perplexity, perplexity_low=score.perplexity_low, perplexity_high=score.perplexity_high
        )
    return scores


def _score_answers(cell: Cell, loaded: tuple[Decoder, Any], datasets: Datasets) -> dict[str, TaskMetric]:
    """Return the bits per byte of the right answers that a model in training gives, by task; of no other task."""
    decoder, tokenizer = loaded
    lm = quality.make_scorer(cell.protocol, (decoder.model, tokenizer), check=False)
    scores, _ = tasks.evaluate(lm, datasets.tasks, datasets.documents, cell.protocol.chat)
    return {name: score.answer_bpb for name, score in scores.items() if score.answer_bpb}


def _save(cell: Cell, loaded: tuple[Decoder, Any], datasets: Datasets, folder: Path, outcome: CellProgress) -> Decoder:
    """Return the model to measure, and record its hash. Where it is saved, that is the model that loads again."""
    decoder, tokenizer = loaded
    saved = bool(cell.protocol.save_dtype) and cell.method != "dense"
    if saved:
        outcome.say("saving the model and loading it again")
        with outcome.stage("save"):
            decoder, written = save_and_reload(
                cell,
                decoder,
                tokenizer,
                calibration=datasets.calibration,
                decisions=outcome.decisions,
                measured=outcome.measured,
                run=folder,
                place=outcome.devices,
                files=outcome.files,
            )
            outcome.measured = replace(outcome.measured, saved=written)
    outcome.measured = replace(outcome.measured, pruned_sha256=inputs.sha256_of_state(decoder.model))
    if datasets.keep and not saved:
        with outcome.stage("save"):
            store.keep_model(decoder, folder, cell.key)
    return decoder


@contextmanager
def _open_backend(
    cell: Cell, loaded: tuple[Any, Any], datasets: Datasets, folder: Path, outcome: CellProgress
) -> Iterator[Backend]:
    """Give what scores the cell: the model in this process, or an engine once its likelihoods are those of the model.

    Raises NoAnswer and Unlike for an engine that cannot score it, and RuntimeError where it has become another one.
    """
    (model, tokenizer), tokens = loaded, cell.protocol.batch_tokens
    own = scoring.OwnModel(model, tokens, outcome.sweeping)
    if not cell.protocol.is_served:
        yield own
        return
    outcome.say("holding the engine's log-probabilities against these weights")
    with ExitStack() as stack:
        with outcome.stage("agreement"):
            engine = stack.enter_context(_open_engine(cell, tokenizer, folder, outcome))
            collector = agreement.Collector()
            lm = scoring.Scorer(model, tokenizer, tokens, sweeping=outcome.sweeping, backend=collector)
            for name, task in datasets.tasks.items():
                tasks.evaluate(lm, {name: task}, {name: datasets.documents[name][:1]}, cell.protocol.chat)
            text, answers = next(iter(datasets.texts.values()), None), agreement.draw_answers(collector.questions)
            difference = agreement.compare_backends(engine, own, text, answers, cell.dtype)
            outcome.measured = replace(outcome.measured, agreement=difference)
        yield engine


@contextmanager
def _open_engine(cell: Cell, tokenizer: Any, folder: Path, outcome: CellProgress) -> Iterator[Backend]:
    """Give the inference engine that scores the cell. One of this machine ends behind the block."""
    assert outcome.server is not None, "a cell that an engine scores says where it is"
    with ExitStack() as stack:
        engine: Endpoint | VllmModel
        if isinstance(outcome.server, VllmPython):
            saved = outcome.measured.saved
            model = folder / saved.folder if saved and saved.folder else pretrained.find_folder(cell.model)
            opened = vllm_scorer.open_model(outcome.server, model, cell.dtype, torch.get_num_threads())
            engine = stack.enter_context(opened)
        else:
            engine = endpoint.connect(outcome.server, tokenizer)
        if engine.engine != cell.filled_inputs.scored_by:
            raise RuntimeError("this has changed since the run began: scored_by")
        yield engine


def _perplexity(cell: Cell, backend: Backend, datasets: Datasets, outcome: CellProgress, pieces: store.Pieces) -> None:
    scores = dict[str, TextScore]()
    outcome.measured = replace(outcome.measured, perplexity=scores)  # which is filled text by text
    for name, text in datasets.texts.items():
        piece = name_of_samples(name)
        with outcome.stage("perplexity"):
            score = pieces.recall(piece, TextScore)
            if score is None:
                score, samples = quality.score_text(cell.protocol, backend, name, text)
                pieces.keep(piece, score, samples)
            scores[name] = score


def _positions(backend: Backend, datasets: Datasets, outcome: CellProgress, pieces: store.Pieces) -> None:
    """Measure the perplexity of each range of positions, all those of a text by one forward of each of its windows."""
    scores = dict[str, RangeScore]()
    for name, text in datasets.long_texts.items():
        with outcome.stage("perplexity"):
            kept = {each: pieces.recall(name_of_samples(each), RangeScore) for each in quality.list_ranges(name, text)}
            scores |= {each: score for each, score in kept.items() if score is not None}
            outcome.measured = replace(outcome.measured, positions=scores)
            if None not in kept.values():
                continue
            for each, (score, samples) in quality.score_ranges(backend, name, text).items():
                scores[each] = score
                pieces.keep(name_of_samples(each), score, samples)


def _make_scorer(cell: Cell, loaded: tuple[Any, Any], backend: Backend, outcome: CellProgress) -> Any:
    """Return what answers tasks for lm-eval. The dense model alone is tried on a small tree."""
    engine, check = backend if cell.protocol.is_served else None, cell.method == "dense"
    return quality.make_scorer(cell.protocol, loaded, check=check, sweeping=outcome.sweeping, backend=engine)


def _accuracy(cell: Cell, lm: Any, datasets: Datasets, outcome: CellProgress, pieces: store.Pieces) -> None:
    """Answer each task by itself, so that its answers depend on no other task of the run."""
    scores = dict[str, TaskScore]()
    outcome.measured = replace(outcome.measured, tasks=scores)  # which is filled task by task
    for name, task in datasets.tasks.items():
        with outcome.stage("tasks"):
            score = pieces.recall(name, TaskScore)
            if score is None:
                documents, chat = {name: datasets.documents[name]}, cell.protocol.chat
                answered, samples = tasks.evaluate(lm, {name: task}, documents, chat)
                score = answered[name]
                pieces.keep(name, score, samples[name])
            scores[name] = score


def _checks(
    cell: Cell, model: Any, tokenizer: Any, datasets: Datasets, outcome: CellProgress
) -> tuple[Checks, list[checks.Continuation]]:
    """Run the checks, on the first text; the dense model is not compared with itself."""
    if outcome.files:
        outcome.say("no text is generated, since each token would read all weights from their files")
    text = next(iter(datasets.texts.values()), None)
    dense = None if cell.method == "dense" else datasets.dense
    return checks.measure_checks(model, tokenizer, text.ids if text else None, dense, outcome.sweeping)


DOING = {
    "load": "while it loaded the model",
    "prune": "while it pruned",
    "heal": "while it healed",
    "save": "while it saved the model and loaded it again",
    "agreement": "while it held the server against its weights",
    "perplexity": "while it measured perplexity",
    "tasks": "while it answered tasks",
    "speed": "while it was timed",
    "checks": "while it ran the checks",
}


@dataclass
class CellProgress:
    """Collects the values of a cell, and sends them on.

    send     gets all of it before each stage, and at the end, as plain values
    doing    gets what is about to be done, as "while it ..."
    say      is for the user
    alone    is entered while nothing else may work on the machine
    devices  on which the model lies. A stage ends when they have done all their work, so that its seconds and peaks are
             its own
    cores    by which the number of threads goes in each stage but timing; None: it stays
    files    where the model's weights lie instead of the memory, and sweeping how it is scored then; None: in memory
    timed_alone  whether the dense model is not timed, since there is no room for it
    server   that scores in place of this process; None: this process scores
    """

    send: Callable[[dict[str, Any]], object]
    doing: Callable[[str], object]
    say: Callable[[str], object]
    alone: Callable[[], AbstractContextManager[None]]
    devices: Sequence[torch.device] = (torch.device("cpu"),)
    files: LayerStore | None = None
    sweeping: Sweeping | None = None
    timed_alone: bool = False
    server: ServerAddress | VllmPython | None = None
    cores: FreeCores | None = None
    decisions: dict[str, Any] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured)
    peaks: Callable[[], dict[str, Any]] = dict  # of the current stage

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Send the values so far and what is about to be done; count the stage's seconds and its peaks of memory."""
        self.doing(DOING[stage])
        if self.cores is not None and stage != "speed":
            threads = self.cores.count_free_cores()
            torch.set_num_threads(threads)
            fewest = self.measured.threads or {}
            fewest = {**fewest, stage: min(fewest.get(stage, threads), threads)}
            self.measured = replace(self.measured, threads=fewest)
        self.send_values()
        benchmark.wait_for_devices(self.devices)
        with memory.watch_peaks(self.devices) as watched:
            self.peaks = watched.peaks
            start = time.perf_counter()
            yield
            benchmark.wait_for_devices(self.devices)
        spent = self.seconds_of(stage) + time.perf_counter() - start
        self.measured = replace(self.measured, seconds={**(self.measured.seconds or {}), stage: spent})
        self.add_peak(stage, watched.peaks())

    def send_values(self, **end: str | None) -> None:
        """Send all values so far, as a record holds them; `end` has status and error of a cell that has ended."""
        self.send({"decisions": self.decisions, "measured": to_plain(self.measured), **end})

    def seconds_of(self, stage: str) -> float:
        """Return the seconds that a stage has taken so far."""
        return (self.measured.seconds or {}).get(stage, 0.0)

    def add_peak(self, stage: str, peak: Mapping[str, Any]) -> None:
        """Take in a peak of memory of a stage, as bench.system.memory has it. The higher value stays."""
        peaks = self.measured.peak_memory or {}
        higher = memory.merge_peaks(to_plain(peaks[stage]), peak) if stage in peaks else peak
        self.measured = replace(self.measured, peak_memory={**peaks, stage: value_from_plain(PeakOfStage, higher)})
