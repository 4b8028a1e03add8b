"""NIRVANA against its authors' program: the scores of all units, and which of them go."""

from __future__ import annotations

import torch
from authors_code import Run, every_run

from methods.model.decoder import Decoder
from methods.model.structures import structures_of
from methods.width.nirvana import Nirvana, scores_of_units


@every_run("nirvana")
def test_nirvana(run: Run):
    """The runs are in float64. The share that goes is that of the program's formula.

    Where all heads of a layer are below the threshold, the program keeps the last one and the method the best one.
    """
    model, text = Decoder(run.model().model.double()), run.calibration()
    structures = structures_of(model)
    heads, channels = ([each for each in structures if each.kind == kind] for kind in ("kv_heads", "channels"))
    scores = scores_of_units(model, text, len(text.ids), text.ids.shape[1])
    units = {kind: sum(each.size for each in structures if each.kind == kind) for kind in ("kv_heads", "channels")}
    held = sum(each.cost * each.size for each in structures)
    fewer = units["kv_heads"] / units["channels"] / run["gamma"]  # heads that go for each channel
    go = run["sparsity"] * held / (channels[0].cost + fewer * heads[0].cost)
    share = (int(go) + 0.5) / units["channels"]
    made = Nirvana(gamma=run["gamma"])
    lowest = int(share / made.gamma * units["kv_heads"])
    of_heads = [score for structure, score in zip(structures, scores, strict=True) if structure.kind == "kv_heads"]
    most = torch.cat(of_heads).sort().values[lowest - 1]  # the threshold of the heads
    for structure, score, count in zip(structures, scores, made.counts(structures, scores, share), strict=True):
        if count:
            structure.remove(score, count)
        theirs = run[f"removed_{structure.kind}"][structure.number]
        if structure.kind == "kv_heads" and count == structure.size - 1 and bool((score <= most).all()):
            assert theirs == list(range(structure.size - 1))
            assert structure.removed == sorted(score.argsort()[:count].tolist())
        else:
            assert structure.removed == theirs
    pairs = {}
    for structure, score in zip(structures, scores, strict=True):
        theirs = run["heads" if structure.kind == "kv_heads" else "channels"][structure.number]
        pairs[f"{structure.kind}_{structure.number}"] = (score, theirs)
    run.agrees(None, **pairs)
