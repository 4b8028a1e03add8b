"""Methods that cut heads and channels, against runs of their authors' code.

The authors remove the same share of heads and of channels, where channels close the budget of a ratio here:
`removing` puts their counts in.
"""

from __future__ import annotations

import math

import pytest
import torch
from authors_code import Run, every_run, every_trial
from torch import Tensor

from methods.model.sizes import parameters
from methods.model.structures import Structure, structures_of
from methods.width import flap, minitron_width, two_ssp, wanda_sp
from methods.width.flap import FLAP
from methods.width.minitron_width import MinitronWidth
from methods.width.two_ssp import TwoSSP
from methods.width.wanda_sp import WandaSP
from methods.width.widths import parameters_freed


def removing(monkeypatch: pytest.MonkeyPatch, kv_heads: int, channels: int) -> None:
    """Let every layer lose so many heads and channels from now on, where layers stay equal."""
    for module in (flap, wanda_sp, two_ssp, minitron_width):
        monkeypatch.setattr(module, "find_equal_widths", lambda *_, **__: {"kv_heads": kv_heads, "channels": channels})


def by_layer(structures: list[Structure], rows: list[Tensor]) -> dict[str, Tensor]:
    """Return a row of each structure as one matrix for attentions and one for MLPs, as the authors name them."""
    kinds = {"attn": "kv_heads", "mlp": "channels"}
    pairs = list(zip(structures, rows, strict=True))
    return {name: torch.stack([row for each, row in pairs if each.kind == kind]) for name, kind in kinds.items()}


@every_run("flap")
def test_flap(run: Run, monkeypatch):
    """The authors' variance is a parameter; the ratio asks for the parameters that they have removed.

    Scores are the means, the variances or norms, and z of every unit where one threshold holds for all.
    """
    model, calibration = run.model(), run.calibration()
    rows, variance = len(calibration.ids), "pooled" if run["metric"] == "wifn" else "released"
    method = FLAP(metric=run["metric"], variance=variance, structure=run["structure"])
    structures = structures_of(model, "kv_heads", "channels")
    tables, n = flap.moments_of_inputs(model, calibration, variance), int(calibration.mask.sum())
    ours = {"mean": [mean for mean, _, _ in tables]}
    ours["fluc"] = [v * (n - 1) / (rows - 1) for _, v, _ in tables]  # a sequence counts as one
    ours["norm"] = [norm.square() / rows for _, _, norm in tables]  # a mean of squares
    ours["score"] = [method.score(structure, seen) for structure, seen in zip(structures, tables, strict=True)]
    scores = {
        f"{part}.{what}": (one, run.tensor(f"{part}.{what}"))
        for what, rows in ours.items()
        for part, one in by_layer(structures, rows).items()
        if run.has(f"{part}.{what}")
    }
    assert len(scores) == (6 if run["structure"] == "al_am" else 4)
    gone = {"kv_heads": run["heads"], "channels": run["channels"]}
    removing(monkeypatch, len(run["heads"][0]), len(run["channels"][0]))
    counts = [torch.tensor([len(gone[each.kind][each.number])]) for each in structures]
    removed = sum(
        int(parameters_freed(each, count, biases=True)) for each, count in zip(structures, counts, strict=True)
    )
    decided = method.prune(model, calibration, removed / parameters(model))
    assert {kind: decided[f"removed_{kind}"] for kind in gone} == gone
    run.agrees(model, **scores)


@every_run("wanda_sp")
def test_wanda_sp(run: Run, monkeypatch):
    """Scores are the norms that every layer sees, behind the layers that have been cut."""
    model, calibration, seen = run.model(), run.calibration(), []
    score = wanda_sp.score_units

    def noted(structure: Structure, norm: Tensor) -> Tensor:
        seen.append((structure, norm))
        return score(structure, norm)

    monkeypatch.setattr(wanda_sp, "score_units", noted)
    removing(monkeypatch, len(run["heads"][0]), len(run["channels"][0]))
    decided = WandaSP().prune(model, calibration, run["ratio"])
    assert decided["removed_kv_heads"] == run["heads"]
    assert decided["removed_channels"] == run["channels"]
    norms = by_layer(*map(list, zip(*seen, strict=True)))
    squares = {part: norm.square() / len(calibration.ids) for part, norm in norms.items()}  # a mean over sequences
    run.agrees(model, **{part: (square, run.tensor(f"{part}.norm")) for part, square in squares.items()})


@every_run("two_ssp")
def test_two_ssp(run: Run, monkeypatch):
    """The authors' share p counts the parameters of the layers; as many channels as they keep are kept."""
    model, calibration, trials = run.model(), run.calibration(), every_trial(monkeypatch)
    L, size = len(model.layers), model.layers[0].down.in_features
    ratio = run["p"] * run["main"] / run["total"]
    tokens = run["second"] * calibration.ids.shape[1]
    plan = TwoSSP(alpha=run["alpha"], tokens=tokens).plan(model, ratio)
    assert plan["attentions"] == len(run["attentions"])
    assert abs(size - plan["removed_per_layer"]["channels"] - run["channels"]) <= 1
    norms = torch.stack(two_ssp.norms_of_channels(model, calibration))
    removing(monkeypatch, 0, size - run["channels"])
    decided = TwoSSP(alpha=run["alpha"], tokens=tokens).prune(model, calibration, ratio)
    assert decided["removed_channels"] == run["removed_channels"]
    assert sorted(decided["attentions_in_order"]) == run["attentions"]
    order = decided["attentions_in_order"]
    tried = [{*order[:step], layer} for step in range(len(order)) for layer in range(L) if layer not in order[:step]]
    PPL = [math.exp(trials[frozenset(f"attention {layer}" for layer in gone)]) for gone in tried]
    run.agrees(model, norms=(norms, run.tensor("norms")), **({"PPL": (PPL, run["ppls"][1:])} if order else {}))


@every_run("minitron_width")
def test_minitron_width(run: Run, monkeypatch):
    """The authors' heads are query heads, scored alone and ranked inside their groups; channels are removed."""
    model, calibration = run.model(), run.calibration()
    size = model.layers[0].down.in_features
    F = dict(zip(minitron_width.places_of(model), minitron_width.activity_of_channels(model, calibration), strict=True))
    scores = {}
    for part, kind in (("attn", "kv_heads"), ("mlp", "channels")):
        ours = torch.stack([F[number, kind] for number in range(len(model.layers))])
        scores[part] = (ours, run.tensor(part))
    heads = scores["attn"][0].unflatten(1, (model.config.num_attention_heads, -1)).square().sum(-1).sqrt()
    groups = heads.unflatten(1, (model.config.num_key_value_heads, -1)).argsort(descending=True)
    groups = groups + groups.shape[2] * torch.arange(groups.shape[1])[:, None]
    assert groups.flatten(1).tolist() == run["head_ranking"]
    removing(monkeypatch, 0, size - run["keep"])
    decided = MinitronWidth().prune(model, calibration, 0.25)
    assert decided["removed_channels"] == run["removed"]
    run.agrees(model, heads=(heads, run["head_importance"]), **scores)
