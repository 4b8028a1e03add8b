"""Minitron's width against activity summed by hand, and the shapes it leaves against transformers' own classes."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import LAYERS, TINY, VOCABULARY, tiny
from transformers import AutoModelForCausalLM

import methods
from methods.errors import OutOfReach, Unsupported
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import keep_channels, structures_of
from methods.width import widths
from methods.width.minitron_width import MinitronWidth, activity_of_channels, places_of
from methods.width.widths import find_equal_widths

LENGTHS = (24, 20, 9, 24, 3, 15)


def calibration(filler: int = 0, **options: object) -> Calibration:
    """Sequences of LENGTHS, padded on the right with the word `filler`."""
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 24), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(24) < torch.tensor(LENGTHS)[:, None]
    return Calibration(ids.where(mask, filler), mask, **options)


@torch.no_grad()
def by_hand(model: Decoder) -> dict[tuple[int, str], torch.Tensor]:
    """F of every channel, each sequence run alone and without its padding."""
    sums: dict[tuple[int, str], torch.Tensor] = {}
    hooks = []
    for number, layer in enumerate(model.layers):
        for place, matrix in (((number, "kv_heads"), layer.out), ((number, "channels"), layer.down)):

            def add(_: object, x: tuple[torch.Tensor], place: tuple[int, str] = place) -> None:
                sums[place] = sums.get(place, 0) + x[0].flatten(0, -2).abs().double().mean(0) ** 2

            hooks.append(matrix.register_forward_pre_hook(add))
    tokens = calibration()
    for ids, length in zip(tokens.ids, LENGTHS, strict=True):
        model.model(ids[None, :length], use_cache=False)
    for hook in hooks:
        hook.remove()
    return {place: total**0.5 for place, total in sums.items()}


@pytest.mark.parametrize("memory", [1, 2**30])
@pytest.mark.parametrize("family", TINY)
def test_activity_by_hand(family, memory):
    expected = by_hand(Decoder(tiny(family)))
    model = Decoder(tiny(family))
    found = activity_of_channels(model, calibration(filler=9, memory=memory))
    assert set(places_of(model)) == expected.keys()
    for place, F in zip(places_of(model), found, strict=True):
        torch.testing.assert_close(F, expected[place], rtol=1e-4, atol=1e-5 * float(F.max()))


def test_the_most_active_stay():
    F = by_hand(Decoder(tiny("llama")))
    decisions = MinitronWidth(heads=True).prune(Decoder(tiny("llama")), calibration(), 0.5)
    assert decisions["removed_per_layer"]["kv_heads"] == 1
    for number in range(LAYERS):
        heads = [float(F[number, "kv_heads"][start : start + 16].norm()) for start in (0, 16)]
        assert decisions["removed_kv_heads"][number] == [heads.index(min(heads))]
        order = F[number, "channels"].argsort().tolist()
        assert decisions["removed_channels"][number] == sorted(order[: len(decisions["removed_channels"][number])])


@pytest.mark.parametrize("method", ["minitron-width", "wanda-sp", "flap"])
def test_equal_widths_are_a_shape_of_the_family(method, ids):
    """A stock Llama of these widths takes the weights and gives the same logits."""
    options = {"minitron-width": {"heads": "yes"}, "wanda-sp": {}, "flap": {"structure": "ul_um", "bias": "no"}}[method]
    model = Decoder(tiny("llama"))
    methods.make(method, options).prune(model, calibration(), 0.5)
    config = copy.deepcopy(model.config)
    config.intermediate_size = model.layers[0].down.in_features
    config.num_key_value_heads, config.num_attention_heads, config.head_dim = 1, 2, 8
    stock = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    stock.load_state_dict(model.model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(stock(ids).logits, model.model(ids).logits)


def test_heads_reach_further_than_channels_alone():
    model = Decoder(tiny("llama"))
    reach = LAYERS * 42 * 96 / parameters(model)  # 6 of 48 channels stay
    assert MinitronWidth().plan(model, reach)["removed_per_layer"] == {"kv_heads": 0, "channels": 42}
    wanted = rf"with 6 channels left in each layer, {reach:.3f} of the parameters are gone; heads=True reaches further"
    with pytest.raises(OutOfReach, match=wanted):
        MinitronWidth().plan(model, reach + 1e-4)
    counts = MinitronWidth(heads=True).plan(model, reach + 1e-4)["removed_per_layer"]
    assert counts["kv_heads"] == 1
    with pytest.raises(OutOfReach, match=r"with 1 kv heads and 6 channels left in each layer, 0.\d+ of the parameters"):
        MinitronWidth(heads=True).plan(model, 0.9)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("family", ["llama", "phi", "opt", "gemma"])
def test_equal_widths_come_nearest_to_the_ratio(family, multiple, biases):
    """Of all cuts with the share of heads that the ratio asks for, the channels are those that miss it least."""
    model = Decoder(tiny(family))
    structures, dense = structures_of(model, "kv_heads", "channels"), parameters(model)
    first = {structure.kind: structure for structure in structures[:2]}
    G, I = first["kv_heads"].size, first["channels"].size
    prunable = LAYERS * sum(structure.cost * structure.size for structure in first.values())

    def miss(k: int, n: int, ratio: float) -> float:
        lost = 0
        for kind, count in (("kv_heads", k), ("channels", n)):
            new_bias = 32 if biases and count and first[kind].writer.bias is None else 0
            lost += LAYERS * (count * first[kind].cost - new_bias)
        return abs(lost - ratio * dense)

    for ratio in (0.0, 0.02, 0.1, 0.21, 0.3):
        counts = find_equal_widths(model, structures, ratio, multiple, biases=biases)
        k, n = counts["kv_heads"], counts["channels"]
        assert k == int(ratio * dense / prunable * G)
        allowed = [other for other in range(I - I // 8 + 1) if other == 0 or (I - other) % multiple == 0]
        assert n in allowed
        assert miss(k, n, ratio) == min(miss(k, other, ratio) for other in allowed)


def test_layers_that_differ_have_no_equal_cut():
    model = Decoder(tiny("llama"))
    keep_channels(model.layers[2], range(40))
    with pytest.raises(Unsupported, match="widths differ already"):
        MinitronWidth().plan(model, 0.1)


def test_padding_and_micro_batches_change_nothing():
    runs = [
        MinitronWidth(heads=True).prune(Decoder(tiny("qwen3")), calibration(filler=filler, memory=memory), 0.3)
        for filler, memory in ((0, 2**30), (77, 2**30), (0, 1), (0, 40_000))
    ]
    assert all(run == runs[0] for run in runs)


def test_nothing_is_looked_at_for_nothing():
    decisions = MinitronWidth().prune(Decoder(tiny("llama")), None, 0.0)
    assert decisions["channels"] == [48] * LAYERS


def test_a_multiple():
    decisions = MinitronWidth(multiple=16).prune(Decoder(tiny("llama")), calibration(), 0.2)
    assert decisions["channels"] == [32] * LAYERS
    with pytest.raises(ValueError, match="minitron-width:multiple is int, at least 1; got '0'"):
        methods.make("minitron-width", {"multiple": "0"})


def test_equal_widths_take_the_nearest_number_of_heads_that_is_allowed(monkeypatch):
    model = Decoder(tiny("opt"))  # four heads
    structures = structures_of(model, "kv_heads", "channels")
    G = structures[0].size
    free = find_equal_widths(model, structures, 0.25)["kv_heads"]
    for left in range(1, G + 1):
        monkeypatch.setattr(widths, "may_have_heads", lambda model, kv_heads, left=left: kv_heads == left)
        counts = find_equal_widths(model, structures, 0.25, uniform=True)
        assert counts["kv_heads"] in (0, G - left)
        assert abs(counts["kv_heads"] - free) == min(abs(k - free) for k in (0, G - left))
        lost = sum(structure.cost * counts[structure.kind] for structure in structures)
        assert lost / parameters(model) == pytest.approx(0.25, abs=0.01)
    monkeypatch.setattr(widths, "may_have_heads", lambda model, kv_heads: False)
    with pytest.raises(OutOfReach, match=f"with {G} kv heads and 6 channels left"):
        find_equal_widths(model, structures, 0.9, uniform=True)
