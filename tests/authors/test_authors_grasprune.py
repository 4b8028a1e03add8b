"""GRASPrune against its authors' training: scores, masks and scales of all units, and logits of the pruned model."""

from __future__ import annotations

import torch
from authors_code import Run, every_run, tensors

from methods.model.decoder import Decoder
from methods.model.structures import structures_of
from methods.width.grasprune import Gates, GRASPrune, Projection, Training


@every_run("grasprune")
def test_grasprune(run: Run):
    """The runs are in float64, and both begin with the same scores, none of which are equal."""
    model = Decoder(run.model().model.double())
    structures, pruner = structures_of(model), GRASPrune(gate="kv", epochs=run["epochs"])
    gates = Gates(structures, "kv")
    held = sum(structure.cost * structure.size for structure in structures)
    projection = Projection.of(structures, (1 - run["keep"]) * held, seed=0)
    training = Training(model, gates, run.calibration(), pruner.lr)
    start = (torch.arange(gates.count) * 7919 % gates.count).float() / gates.count * 0.1 - 0.05
    s, _, _ = training.run(start, pruner.values_of_masks(projection), pruner.epochs, "masks")
    mask = projection.mask(torch.sigmoid(s / pruner.tau))
    assert (~mask).nonzero()[:, 0].tolist() == run["removed"]
    t, _, _ = training.run(torch.zeros(gates.count), pruner.values_of_scales(mask), 1, "scales")
    gamma = 1 + pruner.alpha * torch.tanh(t)
    gates.fold(mask, gamma)
    with torch.no_grad():
        logits = model.model(tensors()[f"probe/{run['model']}"].long(), use_cache=False).logits[0, ::4, :8]
    run.agrees(None, scores=(s, run["scores"]), scales=(gamma[mask], run["scales"]), logits=(logits, run["logits"]))
