"""Methods that remove experts, against the authors' scores of the same experts' outputs and router's logits."""

from __future__ import annotations

import pytest
from authors_code import Run, every_run
from made_mixtures import drawn, sentences

import methods
from methods.experts import reap
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
