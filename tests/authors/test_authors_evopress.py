"""EvoPress against the authors' script: the same draws, and so the same states, where fitness is a formula."""

from __future__ import annotations

import math

import torch
from authors_code import Run, every_run
from conftest import tiny

from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.structures import Sublayer
from methods.search import evopress
from methods.search.evopress import EvoPress
from methods.search.trials import Gone


def missed(gone: Gone, ids: int) -> float:
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

        def __init__(self, model: Decoder, drawn: Calibration, loss: str) -> None:
            assert loss == "kl"
            self.layers, self.drawn = model.layers, drawn

        def losses(self, states: list[Gone], *_: object, **__: object) -> list[float]:
            evaluated.extend(int(self.drawn.mask.sum()) for _ in states)
            return [missed(state, int(self.drawn.ids[self.drawn.mask].sum())) for state in states]

    monkeypatch.setattr(evopress, "Trial", Toy)
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
