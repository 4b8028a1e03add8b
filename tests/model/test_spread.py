"""Layers over several devices: in order, by their share of the bytes, and what is tied lies together."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, LAYERS, tiny
from emulated import EmulatedGpus

from methods.model.decoder import Decoder, place_of, put_model, settle_model

GPUS = [torch.device("cuda", number) for number in range(3)]


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_go_by_their_order_and_every_device_has_its_share(family):
    with EmulatedGpus(count=3) as gpus:
        decoder = Decoder(put_model(tiny(family, layers=9), GPUS))
        places = [layer.device.index for layer in decoder.layers]
        assert places == sorted(places)
        assert place_of(decoder.model) == GPUS
        largest = max(sum(p.nbytes for p in layer.module.parameters()) for layer in decoder.layers)
        last = decoder.head.weight.nbytes
        sizes = [memory.now for memory in gpus.memories]
        assert max(sizes) - min(sizes) <= largest + last
        assert (decoder.head.weight is decoder.embed.weight) == (decoder.head.weight.device == GPUS[0])


def test_a_larger_gpu_has_more_of_the_model(monkeypatch):
    with EmulatedGpus(count=2) as gpus:
        gpus.memories[1].size *= 3
        places = [layer.device.index for layer in Decoder(put_model(tiny("llama", layers=8), GPUS[:2])).layers]
    assert 1 <= places.count(0) <= 2


def test_a_model_that_lies_where_it_belongs_is_settled_without_a_copy():
    ids = torch.arange(3, 9)[None]
    with EmulatedGpus(count=2) as gpus, torch.no_grad():
        model = put_model(tiny("llama", layers=LAYERS), GPUS[:2])
        expected = model(ids.to(GPUS[0])).logits
        pointers = {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
        before = sum(memory.now for memory in gpus.memories)
        again = tiny("llama", layers=LAYERS)
        again.load_state_dict(model.state_dict(), assign=True)
        again.tie_weights()
        settled = settle_model(again)
        assert {name: tensor.data_ptr() for name, tensor in settled.named_parameters()} == pointers
        assert sum(memory.now for memory in gpus.memories) <= before + 1024  # rotary frequencies
        assert torch.equal(settled(ids.to(GPUS[0])).logits, expected)
