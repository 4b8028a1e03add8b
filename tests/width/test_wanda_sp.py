"""Wanda-sp against scores from activations that are hooked in a model masked layer by layer."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYERS, TINY, VOCABULARY, tiny

import methods
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.width.wanda_sp import WandaSP

LENGTHS = (24, 20, 9, 24, 3, 15)


def calibration(filler: int = 0, **options: object) -> Calibration:
    """Sequences of LENGTHS, padded on the right with the word `filler`."""
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 24), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(24) < torch.tensor(LENGTHS)[:, None]
    return Calibration(ids.where(mask, filler), mask, **options)


@torch.no_grad()
def scores(model: Decoder, number: int) -> dict[str, list[float]]:
    """Of the units of one layer, from the model as it is: mean |W| times the input's norm, summed over a head."""
    layer, tokens = model.layers[number], calibration()
    found = {}
    for kind, matrix, width in (("kv_heads", layer.out, layer.group * layer.head_width), ("channels", layer.down, 1)):
        rows: list[torch.Tensor] = []
        hook = matrix.register_forward_pre_hook(lambda _, x, rows=rows: rows.append(x[0].flatten(0, -2).double()))
        for ids, length in zip(tokens.ids, LENGTHS, strict=True):
            model.model(ids[None, :length], use_cache=False)
        hook.remove()
        norm = torch.linalg.vector_norm(torch.cat(rows), dim=0)
        s = [float(matrix.weight[:, j].abs().double().sum() / len(matrix.weight) * norm[j]) for j in range(len(norm))]
        found[kind] = [sum(s[start : start + width]) for start in range(0, len(s), width)]
    return found


@torch.no_grad()
def masked(family: str, counts: dict[str, int], fed_by_dense: bool = False) -> tuple[Decoder, list[dict]]:
    """Layer by layer: score, then zero the columns of the lowest. And what was zeroed."""
    model, dense, removed = Decoder(tiny(family)), Decoder(tiny(family)), []
    for number, layer in enumerate(model.layers):
        found = scores(dense if fed_by_dense else model, number)
        width = {"kv_heads": layer.group * layer.head_width, "channels": 1}
        removed.append(
            {kind: sorted(range(len(s)), key=lambda u, s=s: s[u])[: counts[kind]] for kind, s in found.items()}
        )
        for kind, matrix in (("kv_heads", layer.out), ("channels", layer.down)):
            for unit in removed[-1][kind]:
                matrix.weight[:, unit * width[kind] : (unit + 1) * width[kind]] = 0
    return model, [{kind: sorted(units) for kind, units in layer.items()} for layer in removed]


@pytest.mark.parametrize("family", TINY)
def test_each_layer_is_fed_by_those_already_cut(family, ids):
    """The same units as with masks, and the same logits; dense activations would have chosen others."""
    model = Decoder(tiny(family))
    decisions = WandaSP().prune(model, calibration(), 0.3)
    counts = decisions["removed_per_layer"]
    expected, removed = masked(family, counts)
    for kind in ("kv_heads", "channels"):
        assert decisions[f"removed_{kind}"] == [layer[kind] for layer in removed]
    with torch.no_grad():
        logits = expected.model(ids).logits
        torch.testing.assert_close(model.model(ids).logits, logits, rtol=0, atol=1e-4 * float(logits.abs().max()))
    assert masked(family, counts, fed_by_dense=True)[1] != removed


def test_every_layer_loses_as_much():
    model = Decoder(tiny("llama"))
    decisions = WandaSP().prune(model, calibration(), 0.5)
    assert decisions["removed_per_layer"]["kv_heads"] == 1
    assert decisions["kv_heads"] == [1] * LAYERS
    assert len(set(decisions["channels"])) == 1


def test_a_multiple():
    decisions = WandaSP(multiple=16).prune(Decoder(tiny("llama")), calibration(), 0.2)
    assert decisions["channels"] == [32] * LAYERS
    with pytest.raises(ValueError, match="wanda-sp:multiple is int, at least 1; got '0'"):
        methods.make("wanda-sp", {"multiple": "0"})


def test_padding_and_micro_batches_change_nothing():
    runs = [
        WandaSP().prune(Decoder(tiny("mistral")), calibration(filler=filler, memory=memory), 0.3)
        for filler, memory in ((0, 2**30), (77, 2**30), (0, 1), (0, 40_000))
    ]
    assert all(run == runs[0] for run in runs)


def test_nothing_is_looked_at_for_nothing():
    decisions = WandaSP().prune(Decoder(tiny("llama")), None, 0.0)
    assert decisions["channels"] == [48] * LAYERS
