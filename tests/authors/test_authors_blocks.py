"""Methods that remove single attentions and MLPs, against runs of their authors' code.

The authors count blocks, where a ratio here counts parameters: `counting_blocks` puts their count in.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
from authors_code import Run, every_run, every_trial

from methods.depth import llm_drop
from methods.depth.blockpruner import BlockPruner
from methods.depth.finercut import FinerCut
from methods.depth.llm_drop import LLMDrop
from methods.trials import selection

MODES = {"attn": "attn", "mlp": "mlp", "all": "joint", "block": "block"}
TOKENS = 8192  # more than any run has


def counting_blocks(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Let a budget be `n` blocks of size 1 from now on."""
    for module in (selection, llm_drop):
        monkeypatch.setattr(module, "parameters_of_blocks", lambda model, ratio, blocks: n, raising=False)
        monkeypatch.setattr(module, "sizes_of_sublayers", lambda model, blocks: dict.fromkeys(blocks, 1))


def names(blocks: list[list]) -> list[str]:
    return [f"{'attention' if part == 'mha' else part} {layer}" for part, layer in blocks]


@every_run("blockpruner")
def test_blockpruner(run: Run, monkeypatch):
    model, calibration, trials = run.model(), run.calibration(), every_trial(monkeypatch)
    counting_blocks(monkeypatch, run["n"])
    decided = BlockPruner(tokens=TOKENS).prune(model, calibration, 0.5)
    assert decided["removal_order"] == names(run["order"])
    first = [math.exp(trials[frozenset(names([block]))]) for block, _ in run["first"]]
    left = [math.exp(loss) for loss in decided["losses"]]
    run.agrees(model, first=(first, [ppl for _, ppl in run["first"]]), left=(left, run["ppls"]))


@every_run("finercut")
def test_finercut(run: Run, monkeypatch):
    """The authors' js and positions are parameters; that no block of layer 0 goes first is put in."""
    model, calibration, trials = run.model(), run.calibration(), every_trial(monkeypatch)
    method = FinerCut(
        distance={"js_divergence": "js-released", "kl_divergence": "kl"}[run["metric"]],
        positions="all",
        mode={"am": "both", "a": "attention"}[run["level"]],
        keep_first=1,
        tokens=TOKENS,
    )
    counting_blocks(monkeypatch, 1)
    first = method.prune(run.model(), calibration, 0.5)
    order = tuple(first["removal_order"])
    ours = [trials[frozenset(names([block]))] for block, _ in run["first"]]
    counting_blocks(monkeypatch, run["n"])
    decided = dataclasses.replace(method, keep_first=0).prune(model, dataclasses.replace(calibration, order=order), 0.5)
    assert decided["removal_order"] == names(run["order"])
    left = [*first["losses"], *decided["losses"][1:]]
    share = run["vocab"]  # the authors take the mean over words too
    run.agrees(
        model,
        first=([one / share for one in ours], [distance for _, distance in run["first"]]),
        left=([one / share for one in left], run["distances"]),
    )


@every_run("llm_drop")
def test_llm_drop(run: Run, monkeypatch):
    model, calibration = run.model(), run.calibration()
    counting_blocks(monkeypatch, run["n"])
    decided = LLMDrop(mode=MODES[run["target"]]).prune(model, calibration, 0.5)
    assert decided["order"] == names(run["order"])
    ours = {{"attention": "attn"}.get(part, part): scores for part, scores in decided["scores"].items()}
    assert ours.keys() == run["similarities"].keys()
    pairs = {part: ([1 - S for S in ours[part]], theirs) for part, theirs in run["similarities"].items()}
    run.agrees(model, **pairs)
