"""Checks the scorer beside lm-eval's own, document by document, and perplexity beside plain forwards.

Made-up documents of a real task are answered by the doctor's model everywhere. Where the default model and the tasks
are in the cache, real documents are answered as well; nothing is fetched.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.data import assets, pretrained, task_loading
from bench.doctor import tiny_model
from bench.doctor.finding import Finding, judged
from bench.doctor.numbers import DTYPES, apart, is_close, named
from bench.evaluation import scoring, tasks
from methods.model.decoder import Decoder

MODEL, REAL, DOCUMENTS = "smollm2-135m", ("piqa", "arc_easy"), 2
NATS = {torch.float32: 1e-3, torch.bfloat16: 0.02}  # log-likelihoods may differ by so many, or by this share
MADE_UP = (  # goal, two ways to it, the right one
    ("keep bread fresh", "Put it into a closed box.", "Put it into a warm oven.", 0),
    ("keep bread crisp", "Put it into a closed box.", "Put it on a cold stone.", 1),
    ("cool a drink", "Add some ice.", "Add some salt to the glass.", 0),
    ("hang a picture", "Glue the frame shut.", "Drive a nail into the wall.", 1),
)


def check(device: torch.device) -> Iterator[Finding]:
    """Score made-up documents, then real ones where they are at hand."""
    for dtype in DTYPES:
        yield perplexity(device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "piqa.jsonl"
        rows = [dict(zip(("goal", "sol1", "sol2", "label"), row, strict=True)) for row in MADE_UP]
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        made_up = task_loading.load(["piqa"], [("piqa", str(file), "")])
        for dtype in DTYPES:
            model = tiny_model.build(device, dtype).model
            yield both(f"scorer, made-up documents, {named(dtype)}", model, tiny_model.tokenizer(), made_up)
    yield from _real(device)


def _real(device: torch.device) -> Iterator[Finding]:
    what = f"scorer, {' and '.join(REAL)}"
    missing = [name for name in (MODEL, "tasks") if not assets.is_complete(name)]
    if missing:
        reason = f"not in the cache: {', '.join(missing)}; `python -m bench fetch` gets them"
        yield Finding("not here", what, reason)
        return
    real = task_loading.load(REAL)
    for dtype in DTYPES[: 1 if device.type == "cpu" else None]:
        model, tokenizer = pretrained.load(MODEL, device, dtype)
        yield both(f"{what}, {named(dtype)}", model, tokenizer, real)


def both(what: str, model: Any, tokenizer: Any, loaded: dict[str, Any]) -> Finding:
    """Answer the first documents of each task by both scorers and compare every choice."""
    documents = {name: list(range(min(DOCUMENTS, len(task.eval_docs)))) for name, task in loaded.items()}
    with task_loading.quiet(), contextlib.redirect_stderr(io.StringIO()):  # of lm-eval's own bars
        scorers = scoring.Scorer(model, tokenizer), scoring.stock(model, tokenizer)
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
    return judged(what, wrong, f"{count} choices, log-likelihoods off by at most {most:.1e} {unit}", off=most)


@torch.no_grad()
def perplexity(device: torch.device, dtype: torch.dtype) -> Finding:
    """Compare the log-likelihoods of windows, read in pieces through the cache, with those of one plain forward."""
    decoder: Decoder = tiny_model.build(device, dtype)
    ids = tiny_model.tokens("windows", 2, 40)
    scored = torch.ones_like(ids, dtype=torch.bool)
    scored[:, 0] = False
    got = scoring.window_nll(decoder.model, ids, scored, batch_tokens=16)[:, 1:]
    logits = decoder.model(input_ids=ids.to(device), use_cache=False).logits.double().cpu()
    want = -logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    off = apart(got, want)
    wrong = [] if is_close(off, dtype) else [f"log-likelihoods of windows are off by {off:.2g} of their size"]
    return judged(f"perplexity, {named(dtype)}", wrong, f"log-likelihoods of tokens off by {off:.1e}", off=off)
