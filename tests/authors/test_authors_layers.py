"""Methods that remove whole layers, against runs of their authors' code, or of ports where the authors have none."""

from __future__ import annotations

import dataclasses
import math

import torch
from authors_code import Run, every_run, every_trial, last_state_normed, ratio_of

from methods.depth.angular import Angular
from methods.depth.llm_streamline import LLMStreamline
from methods.depth.shortened_llama import ShortenedLlama, ShortenedLlamaTaylor
from methods.depth.shortgpt import ShortGPT
from methods.depth.sleb import SLEB

PLUS = (4, 2)  # layers at both ends that the authors of Shortened LLaMA protect


@every_run("sleb")
def test_sleb(run: Run, monkeypatch):
    model, calibration, trials = run.model(), run.calibration(), every_trial(monkeypatch)
    method = SLEB(keep_first=run["early"], keep_last=run["latter"], tokens=calibration.ids.numel())
    decided = method.prune(model, calibration, ratio_of(model, run["n"]))
    assert decided["removal_order"] == [f"layer {layer}" for layer in run["order"]]
    ours = [trials.get(frozenset(f"layer {layer}" for layer in gone), math.nan) for gone, _ in run["trials"]]
    run.agrees(model, losses=(decided["losses"], run["losses"]), trials=(ours, [loss for _, loss in run["trials"]]))


@every_run("shortgpt")
def test_shortgpt(run: Run):
    model, calibration = run.model(), run.calibration()
    decided = ShortGPT().prune(model, calibration, ratio_of(model, run["n"]))
    assert decided["removed_layers"] == run["removed"]
    BI = torch.tensor(run["importances"]) / calibration.ids.numel()  # the port sums over tokens
    run.agrees(model, BI=(decided["scores"], BI))


@every_run("angular")
def test_angular(run: Run, monkeypatch):
    """Against both ports. ShortGPT's protects no layer; PruneMe's compares the last state behind the final norm.

    PruneMe's begins behind the first layer; its distances are means over sequences, those of ShortGPT's sums.
    """
    model, calibration, n = run.model(), run.calibration(), run["n"]
    ratio, rows, s = ratio_of(model, n), len(calibration.ids), len(model.layers) - n
    decided = Angular(keep_first=0, keep_last=0).prune(run.model(), calibration, ratio)
    assert decided["removed_layers"] == run["short_removed"]
    summed = ([rows * distance for distance in decided["distances"]], run["short_importances"][: s + 1])

    last_state_normed(monkeypatch)
    decided = Angular(keep_first=1, keep_last=0).prune(model, calibration, ratio)
    assert decided["removed_layers"] == run["pruneme_removed"]
    assert [[start, start + n] for start in range(1, s + 1)] == [run_of[:2] for run_of in run["pruneme"]]
    run.agrees(None, summed=summed, mean=(decided["distances"][1:], [distance for *_, distance in run["pruneme"]]))


@every_run("llm_streamline")
def test_llm_streamline(run: Run, monkeypatch):
    """Which run becomes one layer; the state behind the last layer is compared behind the final norm, as there."""
    last_state_normed(monkeypatch)
    model, calibration, n = run.model(), run.calibration(), run["n"]
    decided = LLMStreamline(passes=1).prune(model, calibration, ratio_of(model, n))
    s = run["best_layer"]
    assert (decided["trained_layer"], decided["removed_layers"]) == (s, list(range(s + 1, s + n + 1)))
    run.agrees(None, cos=([0.5 + 0.5 * cos for cos in decided["similarities"]], run["similarities"]))


@every_run("shortened_llama")
def test_shortened_llama(run: Run):
    """Both keep what the authors' scripts keep; a short last batch weighs as theirs."""
    model, calibration = run.model(), run.calibration()
    keep = dict(zip(("keep_first", "keep_last"), PLUS if run.said.get("plus") else (0, 0), strict=True))
    if run["criterion"] == "ppl":
        decided = ShortenedLlama(**keep).prune(model, calibration, ratio_of(model, run["n"]))
        assert decided["removed_layers"] == run["removed"]
        run.agrees(model, PPL=([math.exp(loss) for loss in decided["scores"]], run["scores"]))
        return
    method = ShortenedLlamaTaylor(**keep, tokens=8192)
    if run["criterion"] == "taylor24":  # batches of 10, 10 and 4 sequences of equal weight: 2 : 2 : 5 a sequence
        weight = torch.tensor([2] * 20 + [5] * 4)
        again = (block.repeat_interleave(weight, 0) for block in (calibration.ids, calibration.mask))
        calibration = dataclasses.replace(calibration, ids=next(again), mask=next(again))
        scores = method.scores(model, calibration)
        assert sorted(range(len(scores)), key=scores.__getitem__) == run["order"]
        run.agrees(None, shares=(shares(scores), shares(run["scores"])))
        return
    decided = method.prune(model, calibration, ratio_of(model, run["n"]))
    assert decided["removed_layers"] == run["removed"]
    run.agrees(model, shares=(shares(decided["scores"]), shares(run["scores"])))


def shares(scores: list[float]) -> torch.Tensor:
    scores = torch.tensor(scores, dtype=torch.float64)
    return scores / scores.sum()
