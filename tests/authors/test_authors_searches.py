"""Searches by evolution against their authors' scripts: the same draws, so the same states; fitness is a formula."""

from __future__ import annotations

import math

import torch
from authors_code import Run, every_run
from conftest import tiny

from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.structures import Sublayer
from methods.search.evopress import EvoPress
from methods.search.tyr import Levels, Tyr, widths_of
from methods.trials import evolution
from methods.trials.blocks import Replacements


def missed(gone: Replacements, ids: int) -> float:
    """Return the formula that stood in for the loss: neighbours are missed more together, a layer's blocks less.

    Summed up exactly, and for no two states the same, so that no order and no rounding decides.
    """
    is_mlp = {block: block.part == "mlp" for block in gone}
    parts = [1 + ((7 * block.layer + 3 * is_mlp[block]) % 11) / 10 for block in gone]
    parts += [0.8 for block in gone if Sublayer(block.part, block.layer + 1) in gone]
    parts += [-0.5 for block in gone if not is_mlp[block] and Sublayer("mlp", block.layer) in gone]
    parts += [0.001 * math.sqrt(7 + (2 * block.layer + is_mlp[block]) ** 3) for block in gone]
    places = sum((block.layer + 1) * (13 if is_mlp[block] else 1) for block in gone)
    return math.fsum([*parts, 0.3 * math.sin(places * 0.7 + ids * 0.001)])


@every_run("evopress")
def test_evopress(run: Run, monkeypatch):
    evaluated: list[int] = []

    class Toy:
        runs = 0.0

        def __init__(self, model: Decoder, drawn: Calibration, loss: str, narrow: None) -> None:
            assert loss == "kl"
            self.layers, self.drawn = model.layers, drawn

        def losses(self, states: list[Replacements], *_: object, **__: object) -> list[float]:
            evaluated.extend(int(self.drawn.mask.sum()) for _ in states)
            return [missed(state, int(self.drawn.ids[self.drawn.mask].sum())) for state in states]

    monkeypatch.setattr(evolution, "Trial", Toy)
    ids = torch.tensor(run["data"])
    first, final = run["tokens"]
    search = EvoPress(
        run["generations"], run["offspring"], run["initial"], run["population"], run["survivors"], 3, first, final
    )
    calibration = Calibration(ids, torch.ones_like(ids, dtype=torch.bool), seed=run["seed"])
    gone, said = search.search(Decoder(tiny("llama", layers=run["layers"])), calibration, run["k"])
    assert sorted(block.layer for block in gone if block.part == "attention") == run["attention"]
    assert sorted(block.layer for block in gone if block.part == "mlp") == run["mlp"]
    assert (len(evaluated), sum(evaluated)) == (run["evaluations"], run["evaluated_tokens"])
    assert said["generations"] == run["generations"]


STEP = {"kv_heads": (3, 1), "channels": (64, 8)}  # units at first, and those of a step
LEVELS = {"kv_heads": [1, 2, 3, 4], "channels": list(range(32, 97, 8))}  # in the script: -1 .. 2 and -4 .. 4 steps less


def missed_by_levels(chosen: Replacements, ids: int) -> float:
    """Return the formula that stood in for the loss, by how many steps less each structure has."""
    steps = {
        (layer, kind == "channels"): (STEP[kind][0] - w) // STEP[kind][1]
        for (layer, kind), w in widths_of(chosen).items()
    }
    every = sorted((layer, int(is_mlp), step) for (layer, is_mlp), step in steps.items())
    parts = [
        0.01 * (1 + ((7 * l + 3 * m) % 11) / 10) * (o * o) + 0.05 * o * ((5 * l + 2 * m) % 7 - 3) for l, m, o in every
    ]
    parts += [0.001 * math.sqrt(7 + (2 * l + m) ** 3) * o for l, m, o in every]
    places = sum((l + 1) * (13 if m else 1) * o for l, m, o in every)
    return math.fsum([*parts, 0.3 * math.sin(places * 0.7 + ids * 0.001)])


@every_run("tyr")
def test_tyr(run: Run, monkeypatch):
    evaluated: list[int] = []

    class Toy:
        runs = 0.0

        def __init__(self, model: Decoder, drawn: Calibration, loss: str, narrow: None) -> None:
            self.layers, self.drawn = model.layers, drawn

        def losses(self, states: list[Replacements], *_: object, **__: object) -> list[float]:
            evaluated.extend(int(self.drawn.mask.sum()) for _ in states)
            return [missed_by_levels(each, int(self.drawn.ids[self.drawn.mask].sum())) for each in states]

    left = {(layer, kind): STEP[kind][0] for layer in range(run["layers"]) for kind in STEP}
    levels = Levels({at: LEVELS[at[1]] for at in left}, {at: (at[1], 0, 0) for at in left})
    monkeypatch.setattr(evolution, "Trial", Toy)
    monkeypatch.setattr(Tyr, "around", lambda *_: levels)
    monkeypatch.setattr(Tyr, "supernet", lambda *_: None)
    first, final = run["tokens"]
    search = Tyr(1, run["generations"], run["offspring"], 9, run["survivors"], 4, first, final)
    ids = torch.tensor(run["data"])
    calibration = Calibration(ids, torch.ones_like(ids, dtype=torch.bool), seed=run["seed"])
    found, said = search.search(Decoder(tiny("llama", layers=run["layers"])), calibration, left)
    for name, kind in (("attention", "kv_heads"), ("mlp", "channels")):
        start, step = STEP[kind]
        assert [(start - found[layer, kind]) // step for layer in range(run["layers"])] == run[name]
    known = run["generations"] - 1 if final == ids.numel() else 0  # parents, which the script measures anew
    evaluated += [final] * known
    assert (len(evaluated), sum(evaluated)) == (run["evaluations"], run["evaluated_tokens"])
    assert said["generations"] == run["generations"]
