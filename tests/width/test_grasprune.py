"""GRASPrune: masks by brute force, gradients by finite differences, folded models beside masked ones, resuming."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import LAYERS, VOCABULARY, tiny

import methods
from methods.errors import OutOfReach, Unsupported
from methods.model import calibration as sweep_log
from methods.model.calibration import Calibration, SweepLog, SweepLogs
from methods.model.decoder import Decoder
from methods.model.gradients import compute_gradients
from methods.model.sizes import parameters
from methods.model.structures import structures_of
from methods.width.grasprune import Gates, GRASPrune, Projection, Training, make_step

LENGTHS = (12, 9, 5, 12)


def calibration(filler: int = 0, **options: object) -> Calibration:
    """Sequences of LENGTHS, padded on the right with the word `filler`."""
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 12), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    return Calibration(ids.where(mask, filler), mask, **options)


def projection(budget: float) -> Projection:
    """Two structures: three units of cost 10, of which one stays, and five of cost 3, of which two stay."""
    owner = torch.tensor([0] * 3 + [1] * 5)
    return Projection(torch.tensor([10.0, 3.0]).double()[owner], owner, [1, 2], torch.arange(8), budget)


@pytest.mark.parametrize("budget", [16.0, 20.0, 27.0, 33.0, 45.0])
def test_masks_are_the_longest_run_within_the_budget(budget):
    of = torch.Generator().manual_seed(int(budget))
    for _ in range(40):
        p = torch.rand(8, generator=of)
        mask = projection(budget).mask(p)
        best = [int(p[:3].argmax()), *(3 + p[3:].topk(2).indices).tolist()]
        order = [*best, *(unit for unit in p.argsort(descending=True).tolist() if unit not in best)]
        costs, kept = [10.0, 10.0, 10.0, *[3.0] * 5], []
        for unit in order:
            if sum(costs[each] for each in [*kept, unit]) > budget:
                break
            kept.append(unit)
        assert mask.nonzero()[:, 0].tolist() == sorted(kept)
        filled = projection(budget).mask(p, fill=True)
        room = budget - sum(costs[unit] for unit in filled.nonzero()[:, 0].tolist())
        assert room >= 0
        assert all(costs[unit] > room for unit in (~filled).nonzero()[:, 0].tolist())
        assert bool((filled | ~mask).all())


def test_the_fewest_stay_even_beyond_the_budget():
    assert int(projection(0.0).mask(torch.rand(8)).sum()) == 3


def test_ties_take_the_same_share_of_each_structure():
    model = Decoder(tiny("llama"))
    structures = structures_of(model, "channels")
    half = sum(each.cost * each.size for each in structures) / 2
    mask = Projection.of(structures, half, seed=4).mask(torch.full((48 * LAYERS,), 0.5))
    counts = mask.view(LAYERS, 48).sum(1).tolist()
    assert sum(counts) == 24 * LAYERS
    assert max(counts) - min(counts) <= 1
    assert not torch.equal(mask, Projection.of(structures, half, seed=5).mask(torch.full((48 * LAYERS,), 0.5)))


@pytest.mark.parametrize("gate", ["output", "kv"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "qwen3", "gpt_neox"])
def test_gradients_of_gates_are_finite_differences(family, gate):
    """In float64, of all gates in a random direction at once, and of single ones. Norms of Llamas are in float32."""
    model = Decoder(tiny(family, layers=2).double())
    gates, of = Gates(structures_of(model), gate), torch.Generator().manual_seed(0)
    ids = calibration().ids[:1]
    z = 0.5 + torch.rand(gates.count, generator=of, dtype=torch.float64)
    gates.z = [each.detach().double().requires_grad_() for each in gates.z]

    def loss(values: torch.Tensor) -> float:
        gates.set(values)
        with gates.multiplying(), torch.no_grad():
            logits = model.model(ids, use_cache=False).logits[0, :-1]
        return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))

    gates.set(z)
    with gates.multiplying():
        found, sums = compute_gradients(model, ids, torch.ones_like(ids, dtype=torch.bool), gates.leaves(), lambda x: x)
    assert found == pytest.approx(loss(z), rel=1e-6)
    g = torch.cat([sums[each] for each in gates.z]).double()
    directions = [torch.randn(gates.count, generator=of, dtype=torch.float64)]
    directions += [torch.eye(gates.count, dtype=torch.float64)[unit] for unit in (0, 1, gates.count - 1)]
    h, share, least = (1e-5, 1e-4, 1e-6) if family in ("gpt2", "gpt_neox") else (2e-3, 1e-2, 2e-4)
    for d in directions:
        slope = (loss(z + h * d) - loss(z - h * d)) / (2 * h)
        assert float(g @ d) == pytest.approx(slope, rel=share, abs=least)


def test_both_gates_mask_alike_and_only_that_of_the_output_has_the_slope_of_the_head():
    """With keys of 0 a head's attention is uniform: the slope by `kv` is that of another head than would come back."""
    slopes, losses = {}, {}
    for gate in ("output", "kv"):
        model = Decoder(tiny("llama", layers=2).double())
        gates = Gates(structures_of(model), gate)
        values = torch.ones(gates.count)
        values[0] = 0
        gates.set(values)
        ids = calibration().ids[:1]
        with gates.multiplying():
            losses[gate], sums = compute_gradients(
                model, ids, torch.ones_like(ids, dtype=torch.bool), gates.leaves(), lambda x: x
            )
        slopes[gate] = float(sums[gates.z[0]][0])
    assert losses["output"] == pytest.approx(losses["kv"], rel=1e-9)
    assert abs(slopes["output"] - slopes["kv"]) > 0.01 * abs(slopes["output"])


@pytest.mark.parametrize("gate", ["output", "kv"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "phi3", "gemma2", "qwen3", "phi"])
def test_a_folded_model_is_the_masked_and_scaled_one(family, gate, ids):
    """Biases of keys and values are scaled too."""
    masked, folded = Decoder(tiny(family, layers=3)), Decoder(tiny(family, layers=3))
    of = torch.Generator().manual_seed(1)
    gates = Gates(structures_of(masked), gate)
    mask = torch.rand(gates.count, generator=of) > 0.3
    for structure, part in zip(gates.structures, mask.split(gates.sizes), strict=True):
        part[: 1 if structure.kind == "kv_heads" else 4] = True
    gamma = 0.5 + torch.rand(gates.count, generator=of)
    gates.set(mask * gamma)
    with gates.multiplying(), torch.no_grad():
        expected = masked.model(ids, use_cache=False).logits
    Gates(structures_of(folded), gate).fold(mask, gamma)
    with torch.no_grad():
        got = folded.model(ids, use_cache=False).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert parameters(folded) < parameters(masked)
    with torch.no_grad():  # no hook stays behind
        assert torch.equal(masked.model(ids, use_cache=False).logits, tiny(family, layers=3)(ids).logits)


def test_a_step_is_one_of_adam():
    s = torch.randn(7, generator=torch.Generator().manual_seed(0))
    state, theirs = [s, torch.zeros(7), torch.zeros(7)], s.clone().requires_grad_()
    adam = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=0.0)
    for number in range(1, 6):
        g = torch.randn(7, generator=torch.Generator().manual_seed(number))
        theirs.grad = g
        adam.step()
        state = make_step(state, g, number, 0.01)
    torch.testing.assert_close(state[0], theirs.detach())


def test_training_lowers_the_loss_of_the_masked_model():
    losses = {}
    for epochs in (0, 5):
        pruner = GRASPrune(epochs=epochs, rescale=1, lr=0.05 if epochs else 1e-9)
        losses[epochs] = pruner.prune(Decoder(tiny("llama")), calibration(), 0.2)["scale_losses"][0]
    assert losses[5] < losses[0] - 0.05


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
def test_the_budget_is_met_to_a_channel_and_never_exceeded(family):
    for ratio in (0.05, 0.2):
        model = Decoder(tiny(family))
        dense = parameters(model)
        cost = min(structure.cost for structure in structures_of(model))
        decisions = GRASPrune(epochs=1, rescale=0).prune(model, calibration(), ratio)
        assert 0 <= (1 - ratio) * dense - parameters(model) < cost
        assert min(decisions["kv_heads"]) >= 1
        assert decisions["scale_losses"] == []
        assert decisions["tokens_trained"] == sum(LENGTHS)


def test_without_passes_the_order_of_ties_decides():
    decisions = GRASPrune(epochs=0, rescale=0).prune(Decoder(tiny("llama")), calibration(), 0.2)
    again = GRASPrune(epochs=3, rescale=0, lr=1e-30).prune(Decoder(tiny("llama")), calibration(), 0.2)
    assert again["removed_channels"] == decisions["removed_channels"]
    assert again["moved"] == [0, 0, 0]
    assert max(decisions["channels"]) - min(decisions["channels"]) <= 2


def test_padding_changes_nothing():
    runs = [GRASPrune(epochs=1).prune(Decoder(tiny("qwen2")), calibration(filler=filler), 0.2) for filler in (0, 77)]
    assert runs[0] == runs[1]


def test_an_interrupted_training_goes_on_with_its_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_log, "SECONDS", 0.0)
    whole = Decoder(tiny("llama"))
    pruner = GRASPrune(epochs=3, rescale=2)
    expected = pruner.prune(whole, calibration(), 0.2)
    add, adds = SweepLog.add, list[int]()

    def counted(self, *given):
        if len(adds) == 4:
            raise KeyboardInterrupt
        adds.append(self.done)
        add(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(SweepLog, "add", counted)
        with pytest.raises(KeyboardInterrupt):
            pruner.prune(Decoder(tiny("llama")), replace(calibration(), sweeps=SweepLogs(tmp_path)), 0.2)
    passes = list[int]()
    run_pass = Training.run_pass
    monkeypatch.setattr(Training, "run_pass", lambda self, *given: passes.append(1) or run_pass(self, *given))
    resumed = Decoder(tiny("llama"))
    assert pruner.prune(resumed, replace(calibration(), sweeps=SweepLogs(tmp_path)), 0.2) == expected
    assert len(passes) == 1
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_removals_of_a_record_are_not_learnt_again():
    first, again = Decoder(tiny("llama")), Decoder(tiny("llama"))
    decisions = GRASPrune(epochs=2).prune(first, calibration(), 0.2)
    order = []
    for kind in ("kv_heads", "channels"):
        for number, units in enumerate(decisions[f"removed_{kind}"]):
            order += [f"{kind} {number} {'+'.join(map(str, units))}"] if units else []
    repeated = GRASPrune(epochs=2).prune(again, replace(calibration(), order=tuple(order)), 0.2)
    assert repeated["removed_channels"] == decisions["removed_channels"]
    assert "moved" not in repeated
    for mine, theirs in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_cannot_be_served_is_refused():
    with pytest.raises(OutOfReach, match="out of reach: with one head and few channels left in each layer"):
        GRASPrune().plan(Decoder(tiny("llama")), 0.9)
    with pytest.raises(Unsupported, match="experts"):
        GRASPrune().plan(Decoder(tiny("mixtral")), 0.1)
    single = Calibration(torch.ones(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(Unsupported, match="no calibration sequence has two tokens"):
        GRASPrune().prune(Decoder(tiny("llama")), single, 0.1)


def test_nothing_is_looked_at_for_nothing():
    assert GRASPrune().prune(Decoder(tiny("llama")), None, 0.0)["channels"] == [48] * LAYERS


@pytest.mark.parametrize(
    ("given", "message"),
    [({"gate": "head"}, "grasprune:gate"), ({"lr": "0"}, "grasprune:lr is float"), ({"epochs": "-1"}, "at least 0")],
)
def test_unsound_parameters_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        methods.make("grasprune", given)
