"""Methods that remove experts, against the authors' scores of the same experts' outputs and router's logits."""

from __future__ import annotations

import pytest
from authors_code import Run, every_run
from made_mixtures import drawn, sentences

import methods
from methods.experts import merging, reap
from methods.model.decoder import Decoder

THEIRS = {"reap": "reap", "expert-norm": "ean_sum", "expert-frequency": "expert_frequency"}


@every_run("reap")
def test_experts(run: Run, monkeypatch: pytest.MonkeyPatch):
    """A run is a family: mixtral and qwen3_moe renormalise the router's weights, olmoe does not."""
    family = run.key
    monkeypatch.setattr(reap, "experts_to_go", lambda model, ratio: run["n"])
    agree = {}
    for method, name in THEIRS.items():
        decided = methods.make(method).prune(Decoder(drawn(family)), sentences(), 0.3)
        agree[name] = decided["scores"], [layer[name] for layer in run["layers"]]
        gone = dict(enumerate(decided["removed_experts"]))
        assert [gone[layer["layer"]] for layer in run["layers"]] == run["pruned"][name], method
    run.agrees(None, **agree)


OURS = {  # with the code's choices put in
    "ream": ("ream", {"saliency": "released", "group_size": 3}),
    "outputs": ("ream", {"saliency": "released", "group_size": 4, "similarity": "output", "merging": "activations"}),
    "mc-smoe": ("mc-smoe", {"similarity": "mean"}),
    "hc-smoe": ("hc-smoe", {}),
    "none": ("ream", {"saliency": "released", "group_size": 8, "merging": None}),
}


@every_run("ream")
def test_merged_experts(run: Run, monkeypatch: pytest.MonkeyPatch):
    """A run is a family and a setting of the authors' program: who is merged, with which saliency, and logits."""
    monkeypatch.setattr(reap, "experts_to_go", lambda model, ratio: 8 - run["kept"])
    monkeypatch.setattr(merging, "COMPONENTS", 96)  # all there are
    method, parameters = OURS[run["setting"]]
    model = Decoder(drawn(run["family"]))
    decided = methods.make(method, parameters).prune(model, run.calibration(), 0.3)
    decisions = decided["removed_experts"], decided["merged_experts"]
    for layer, removed, merged in zip(run["layers"], *decisions, strict=True):
        assert removed == sorted(number for group in layer["groups"] for number in group[1:])
        joined = [] if run["setting"] == "none" else [set(group) for group in layer["groups"] if len(group) > 1]
        assert sorted(map(set, merged), key=min) == sorted(joined, key=min)
    batches = 2 if "smoe" in run["setting"] else 1  # by which the code divides counts
    theirs = [[batches * value for value in layer["saliency"]] for layer in run["layers"]]
    run.agrees(model, scores=(decided["scores"], theirs))
