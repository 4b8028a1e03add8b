"""Checks the scorer, perplexity and the timing.

The scorer is compared with lm-eval's own, document by document, and perplexity with plain forwards. The doctor's model
answers made-up documents of a real task. Where the default model and the tasks are in the cache, it answers real
documents as well; nothing is fetched.

A model timed against its copy by the protocol of bench.speed must come out as fast as itself. Where decode steps can be
captured, a captured step must also give the logits of one that is launched anew.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.data import assets, pretrained, task_loading
from bench.doctor import pruning
from bench.doctor.finding import (
    DTYPES,
    Finding,
    difference_of_tensors,
    dtype_name,
    finding_of_check,
    finding_of_error,
    is_close,
)
from bench.evaluation import scoring, tasks
from bench.plan.protocol import MIN_ROUNDS, Protocol
from bench.records.speed_results import PointTiming
from bench.speed.benchmark import SpeedBenchmark, clock_of
from bench.speed.timing import Workload
from bench.speed.workloads import CudaGraph, StepGraph, TimedPoint, workload_of_point
from bench.system import gpu
from bench.system.memory import set_gpu
from methods.console import say
from methods.model.decoder import Decoder

MODEL, REAL, DOCUMENTS = "smollm2-135m", ("piqa", "arc_easy"), 2
NATS = {torch.float32: 1e-3, torch.bfloat16: 0.02}  # log-likelihoods may differ by so many, or by this share
MADE_UP = (  # goal, two ways to it, the right one
    ("keep bread fresh", "Put it into a closed box.", "Put it into a warm oven.", 0),
    ("keep bread crisp", "Put it into a closed box.", "Put it on a cold stone.", 1),
    ("cool a drink", "Add some ice.", "Add some salt to the glass.", 0),
    ("hang a picture", "Glue the frame shut.", "Drive a nail into the wall.", 1),
)


def check_scores(device: torch.device) -> Iterator[Finding]:
    """Score made-up documents, then real ones where they are in the cache."""
    for dtype in DTYPES:
        yield check_perplexity(device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "piqa.jsonl"
        rows = [dict(zip(("goal", "sol1", "sol2", "label"), row, strict=True)) for row in MADE_UP]
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        made_up = task_loading.load_tasks(["piqa"], [("piqa", str(file), "")])
        for dtype in DTYPES:
            model = pruning.build_tiny_model(device, dtype).model
            yield compare_scorers(
                f"scorer, made-up documents, {dtype_name(dtype)}", model, pruning.make_tokenizer(), made_up
            )
    yield from _real(device)


def _real(device: torch.device) -> Iterator[Finding]:
    what = f"scorer, {' and '.join(REAL)}"
    missing = [name for name in (MODEL, "tasks") if not assets.is_complete(name)]
    if missing:
        reason = f"not in the cache: {', '.join(missing)}; `python -m bench fetch` gets them"
        yield Finding("not here", what, reason)
        return
    real = task_loading.load_tasks(REAL)
    for dtype in DTYPES[: 1 if device.type == "cpu" else None]:
        model, tokenizer = pretrained.load(MODEL, device, dtype)
        yield compare_scorers(f"{what}, {dtype_name(dtype)}", model, tokenizer, real)


def compare_scorers(what: str, model: Any, tokenizer: Any, loaded: dict[str, Any]) -> Finding:
    """Answer the first documents of each task by both scorers and compare every choice."""
    documents = {name: list(range(min(DOCUMENTS, len(task.eval_docs)))) for name, task in loaded.items()}
    with task_loading.silence_lm_eval(), contextlib.redirect_stderr(io.StringIO()):  # of lm-eval's own bars
        scorers = scoring.Scorer(model, tokenizer), scoring.make_stock_scorer(model, tokenizer)
        ours, theirs = (tasks.evaluate(scorer, loaded, documents)[1] for scorer in scorers)
    wrong, most, count = list[str](), 0.0, 0
    for name in loaded:
        if ours[name]["prompt_hash"].tolist() != theirs[name]["prompt_hash"].tolist():
            wrong.append(f"the prompts of {name} differ")
        got, want = (torch.tensor(side[name]["loglikelihoods"].sum()) for side in (ours, theirs))
        scale = 1.0 if model.dtype == torch.float32 else float(want.abs().max())
        off = float((got - want).abs().max()) / scale
        most, count = max(most, off), count + len(want)
        if not off <= NATS[model.dtype]:
            wrong.append(f"log-likelihoods of {name} are off by {off:.2g}{' nats' if scale == 1 else ' of their size'}")
        if model.dtype == torch.float32 and ours[name]["greedy"].tolist() != theirs[name]["greedy"].tolist():
            wrong.append(f"what is most likely differs in {name}")
    unit = "nats" if model.dtype == torch.float32 else "of their size"
    return finding_of_check(what, wrong, f"{count} choices, log-likelihoods off by at most {most:.1e} {unit}", off=most)


@torch.no_grad()
def check_perplexity(device: torch.device, dtype: torch.dtype) -> Finding:
    """Compare the log-likelihoods of windows, read in pieces through the cache, with those of one plain forward."""
    decoder: Decoder = pruning.build_tiny_model(device, dtype)
    ids = pruning.draw_tokens("windows", 2, 40)
    scored = torch.ones_like(ids, dtype=torch.bool)
    scored[:, 0] = False
    got = scoring.nll_of_windows(decoder.model, ids, scored, batch_tokens=16)[:, 1:]
    logits = decoder.model(input_ids=ids.to(device), use_cache=False).logits.double().cpu()
    want = -logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    off = difference_of_tensors(got, want)
    wrong = [] if is_close(off, dtype) else [f"log-likelihoods of windows are off by {off:.2g} of their size"]
    return finding_of_check(
        f"perplexity, {dtype_name(dtype)}", wrong, f"log-likelihoods of tokens off by {off:.1e}", off=off
    )


# Of 95 % intervals one in twenty leaves 1 out by chance, and hardly ever three in a row; a bias stays.
TRIES = 3
NARROW = 2  # tries that say enough to be wrong although another, of a busier moment, is too wide to say anything
WIDE = 1.2  # upper over lower end of an interval that says too little
EAGER = Protocol(prefill=(32,), decode=(16,), speed_rounds=MIN_ROUNDS)
CAPTURED = replace(EAGER, cache="static", mode="graph")  # its points are timed eagerly as well


def check_timing(device: torch.device) -> Iterator[Finding]:
    """Time prefill and decode in each mode that the device has."""
    if device.type == "cuda":
        set_gpu(device)
        for dtype in DTYPES:
            try:
                yield check_captured(device, dtype, CudaGraph)
            except Exception as error:  # a step may not be capturable; the others are timed anyway
                yield finding_of_error(f"captured decode, {dtype_name(dtype)}", error)
        yield from time_against_itself(device, CAPTURED)
    else:
        yield Finding("not here", "captured decode", "steps are captured on a GPU only")
        yield from time_against_itself(device, EAGER)


@torch.inference_mode()
def check_captured(device: torch.device, dtype: torch.dtype, graph: Callable[[], StepGraph]) -> Finding:
    """Compare the logits of captured decode steps with those of eager ones on the same tokens."""
    model, kept = pruning.build_tiny_model(device, dtype).model, dict[str, torch.Tensor]()
    for mode in ("eager", "graph"):
        point = TimedPoint("decode", 2, 16, mode)
        work = workload_of_point(model, point, CAPTURED, graph)
        for _ in range(2):  # the second time on a cache that has been brought back to its depth
            work.reset()
            kept[mode] = torch.cat([_logits_of_step(work) for _ in range(work.steps)], 1)
    off = difference_of_tensors(kept["graph"], kept["eager"])
    wrong = [] if is_close(off, dtype) else [f"logits are off by {off:.2g} of their size from those of eager steps"]
    return finding_of_check(
        f"captured decode, {dtype_name(dtype)}", wrong, f"logits off by {off:.1e} from eager ones", off=off
    )


def _logits_of_step(work: Workload) -> torch.Tensor:
    """Do a step and return its logits, which the next one may overwrite."""
    output: Any = work.step()
    return output.logits.float().cpu()


def time_against_itself(device: torch.device, protocol: Protocol) -> Iterator[Finding]:
    """Time the doctor's model against a copy, up to TRIES times while an interval excludes that they are equal."""
    model = pruning.build_tiny_model(device, torch.float32 if device.type == "cpu" else torch.bfloat16).model
    benchmark = SpeedBenchmark(protocol, clock_of([device]), [device], gpu.find_gpus([device])[0], lambda doing: None)
    points_by_kind = dict[str, list[PointTiming]]()
    for number in range(TRIES):
        for point in benchmark.time(copy.deepcopy(model), model):
            points_by_kind.setdefault(f"{point.kind}, {point.mode or 'eager'}", []).append(point)
        if all(_is_narrow(points[-1]) and _holds_one(points[-1]) for points in points_by_kind.values()):
            break
        if number + 1 < TRIES:
            say("timing again: the intervals were wide, or left out that a model is as fast as itself")
    for kind, points in points_by_kind.items():
        yield _finding_of_tries(f"timing, {kind}", points)


def _holds_one(point: PointTiming) -> bool:
    return point.interval is not None and point.interval[1] <= 1 <= point.interval[2]


def _is_narrow(point: PointTiming) -> bool:
    return point.interval is not None and point.interval[2] / point.interval[1] <= WIDE


def _finding_of_tries(what: str, points: list[PointTiming]) -> Finding:
    """Return the finding of all tries of a point. A narrow interval that holds 1 is enough; two without 1 are wrong.

    With fewer narrow ones than that, an interval that holds 1 leaves the question open.
    """
    narrow = [point for point in points if _is_narrow(point)]
    right = [point for point in narrow if _holds_one(point)]
    chosen = (right or narrow or points)[-1]
    if chosen.interval is None:
        return finding_of_check(what, [chosen.failed or f"out of memory: {list(chosen.out_of_memory or ())}"], "")
    marks = "".join(f", {flag}" for flag in chosen.flags or ())
    _, low, high = chosen.interval
    figure = f"{chosen.dense_ms:.2f} ms, {low:.3f} to {high:.3f} times as fast as itself"
    names = ("dense_ms", "pruned_ms", "speedup", "speedup_low", "speedup_high", "flags")
    numbers = {name: getattr(chosen, name) for name in names} | {"tries": len(points)}
    if not right and len(narrow) < NARROW and any(map(_holds_one, points)):
        return Finding("not here", what, f"the machine is too busy to tell: {figure}{marks}", numbers)
    wrong = [] if right else [f"{figure}, and not the same in any of {len(narrow or points)} tries{marks}"]
    return finding_of_check(what, wrong, f"{figure}{marks}", **numbers)
