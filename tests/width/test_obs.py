"""OBS against losses that are found by solving for every set of units, and its sweep against a model masked by hand."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYERS, TINY, VOCABULARY, tiny
from tiny_methods import overflowing

import methods
from methods.errors import Unsupported
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.width import obs
from methods.width.obs import OBS, RemovalCosts, find_cheapest

U, D = 6, 24
LENGTHS = (24, 20, 9, 24, 3, 15)
DAMPING = 0.01


def calibration(filler: int = 0, **options: object) -> Calibration:
    """Sequences of LENGTHS, padded on the right with the word `filler`."""
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 24), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(24) < torch.tensor(LENGTHS)[:, None]
    return Calibration(ids.where(mask, filler), mask, **options)


def problem(units: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return H (C, C) and W (D, C) of a random matrix whose inputs depend on each other."""
    of, C = torch.Generator().manual_seed(seed), units * width
    X = torch.randn(200, C, generator=of, dtype=torch.float64) @ torch.randn(C, C, generator=of, dtype=torch.float64)
    return X.T @ X, torch.randn(D, C, generator=of, dtype=torch.float64)


def best(X: torch.Tensor, W: torch.Tensor, width: int, gone: tuple[int, ...]) -> tuple[float, torch.Tensor]:
    """Return min 1/2 ||X (V-W)^T||^2 over V with zeros at the units `gone`, and V, by ordinary least squares."""
    K, V = [c for c in range(X.shape[1]) if c // width not in gone], torch.zeros_like(W)
    V[:, K] = torch.linalg.lstsq(X[:, K], X @ W.T).solution.T
    return 0.5 * float((X @ (V - W).T).square().sum()), V


@pytest.mark.parametrize("width", [1, 3])
def test_costs_are_exact_loss_increases(width):
    H, W = problem(U, width)
    X, left, gone, lost = torch.linalg.cholesky(H).T, RemovalCosts(H, W, width), (), 0.0
    for _ in range(U - 1):
        costs = left.costs()
        for u in set(range(U)) - set(gone):
            assert lost + float(costs[u]) == pytest.approx(best(X, W, width, (*gone, u))[0], rel=1e-9)
        (unit,) = left.cheapest(1)
        assert unit == int(costs.argmin())
        lost += float(costs[unit])
        left.remove(unit)
        gone = (*gone, unit)


def test_two_threads_give_the_costs_of_one():
    """Of heads as wide as those of real models: LU of several matrices at once is wrong there (pytorch/142815)."""
    of, C = torch.Generator().manual_seed(0), 3 * 192
    X, W = (torch.randn(rows, C, generator=of, dtype=torch.float64) for rows in (2 * C, D))
    costs = RemovalCosts(X.T @ X, W, 192)
    alone = costs.costs()
    torch.set_num_threads(2)
    for _ in range(5):
        torch.testing.assert_close(costs.costs(), alone, rtol=1e-9, atol=0)


@pytest.mark.parametrize("score", ["cost", "tyr-release"])
@pytest.mark.parametrize(("units", "width"), [(48, 1), (8, 6)])
def test_updates_that_wait_change_nothing(units, width, score, monkeypatch):
    H, W = problem(units, width)
    orders = []
    for later in (1, 7, 1000):
        monkeypatch.setattr(obs, "LATER", later)
        orders.append(find_cheapest(H, W, width, units - 2, score=score))
    assert orders[0] == orders[1] == orders[2]
    assert len(set(orders[0])) == units - 2


def test_units_of_one_round_go_together():
    H, W = problem(40, 1)
    first = find_cheapest(H, W, 1, 1)
    at_once, one_by_one = find_cheapest(H, W, 1, 20, rounds=1), find_cheapest(H, W, 1, 20)
    assert at_once[:1] == one_by_one[:1] == first
    assert at_once == RemovalCosts(H, W, 1).costs().argsort()[:20].tolist() != one_by_one
    assert len(set(find_cheapest(H, W, 1, 20, rounds=3))) == 20
    assert find_cheapest(H, W, 1, 20, rounds=50) == one_by_one


def test_the_score_of_a_release_is_another():
    """tr(V_u (H W^T)_u) is added, by the matrix that is left when the unit's turn comes."""
    H, W = problem(U, 3)
    X, left = torch.linalg.cholesky(H).T, RemovalCosts(H, W, 3, "tyr-release")
    exact = RemovalCosts(H, W, 3)
    for gone in ((), (4,), (4, 1)):
        if gone:
            left.remove(gone[-1])
            exact.remove(gone[-1])
        V, G = best(X, W, 3, gone)[1], H @ W.T
        for u in set(range(U)) - set(gone):
            at = slice(3 * u, 3 * u + 3)
            linear = float((V[:, at].T * G[at]).sum())
            assert float(left.costs()[u] - exact.costs()[u]) == pytest.approx(linear, rel=1e-6)


def test_moments_that_are_not_positive_definite_are_refused():
    with pytest.raises(Unsupported, match="give more tokens, or the method a larger damping"):
        find_cheapest(torch.zeros(4, 4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64), 1, 2)


def test_states_that_overflow_are_the_reason_and_not_the_tokens():
    with pytest.raises(Unsupported, match="states of a layer overflow"):
        OBS().prune(Decoder(overflowing()), calibration(), 0.2)


@torch.no_grad()
def inputs(model: Decoder, matrix: torch.nn.Module) -> torch.Tensor:
    """Return what enters a matrix on all real tokens, (T, C) in float64, from whole forwards."""
    rows: list[torch.Tensor] = []
    hook = matrix.register_forward_pre_hook(lambda _, x: rows.append(x[0].flatten(0, -2).double()))
    tokens = calibration()
    for ids, length in zip(tokens.ids, LENGTHS, strict=True):
        model.model(ids[None, :length], use_cache=False)
    hook.remove()
    return torch.cat(rows)


def dense_of(family: str) -> Decoder:
    """Return a tiny model of three layers, GPT-2's with as many channels as the others have."""
    return Decoder(tiny(family, layers=3, **({"n_inner": 48} if family == "gpt2" else {})))


@torch.no_grad()
def masked(family: str, counts: dict[str, int]) -> tuple[Decoder, dict[str, list[list[int]]]]:
    """Matrix by matrix: leave out each unit in turn, solve, and keep the solution that misses least."""
    model, removed = dense_of(family), {"kv_heads": [], "channels": []}
    for layer in model.layers:
        for kind, matrix, width in (
            ("kv_heads", layer.out, layer.group * layer.head_width),
            ("channels", layer.down, 1),
        ):
            X, W, gone = inputs(model, matrix), matrix.weight.double(), ()
            drawn = (DAMPING * X.square().sum(0).mean()).sqrt() * torch.eye(X.shape[1], dtype=torch.float64)
            X = torch.linalg.qr(torch.cat([X, drawn])).R  # the same sums of squares; `drawn` stands for the damping
            for _ in range(counts[kind]):
                left = set(range(X.shape[1] // width)) - set(gone)
                gone = (*gone, min(left, key=lambda u: best(X, W, width, (*gone, u))[0]))
            if gone:
                matrix.weight.copy_(best(X, W, width, gone)[1])
            removed[kind].append(sorted(gone))
    return model, removed


LIKE_OTHERS = ("qwen3", "phi3", "opt", "phi")  # whose parts feed one another as in llama, gpt2 or gpt_neox


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.nightly] if name in LIKE_OTHERS else []) for name in TINY]
)
def test_each_matrix_is_fed_by_what_has_been_cut_before_it(family, ids):
    model = dense_of(family)
    decisions = OBS(damping=DAMPING).prune(model, calibration(), 0.3)
    expected, removed = masked(family, decisions["removed_per_layer"])
    assert {kind: decisions[f"removed_{kind}"] for kind in removed} == removed
    with torch.no_grad():
        logits = expected.model(ids).logits
        torch.testing.assert_close(model.model(ids).logits, logits, rtol=0, atol=1e-4 * float(logits.abs().max()))


@torch.no_grad()
def test_the_record_says_what_each_matrix_misses():
    family = "llama"
    model, dense = Decoder(tiny(family)), Decoder(tiny(family))
    decisions = OBS().prune(model, calibration(), 0.5)
    X, W = inputs(dense, dense.layers[0].out), dense.layers[0].out.weight.double()
    V, E = torch.zeros_like(W), model.layers[0].out.weight.shape[1]
    (gone,) = decisions["removed_kv_heads"][0]
    V[:, slice(E, None) if gone == 0 else slice(E)] = model.layers[0].out.weight.double()
    missed = (X @ (V - W).T).square().sum() / (X @ W.T).square().sum()
    assert decisions["missed"][0]["kv_heads"] == pytest.approx(float(missed), rel=1e-4)


def test_a_matrix_that_gives_nothing_misses_nothing():
    model = Decoder(tiny("llama"))
    torch.nn.init.zeros_(model.layers[1].down.weight)
    assert OBS().prune(model, calibration(), 0.3)["missed"][1]["channels"] == 0


def test_every_layer_loses_as_much():
    model = Decoder(tiny("llama"))
    decisions = OBS().prune(model, calibration(), 0.5)
    assert decisions["removed_per_layer"]["kv_heads"] == 1
    assert decisions["kv_heads"] == [1] * LAYERS
    assert len(set(decisions["channels"])) == 1


def test_padding_and_micro_batches_change_nothing():
    runs = [
        OBS().prune(Decoder(tiny("mistral")), calibration(filler=filler, memory=memory), 0.3)
        for filler, memory in ((0, 2**30), (77, 2**30), (0, 1), (0, 40_000))
    ]
    for run in runs:
        missed, first = run.pop("missed"), runs[0].get("missed", [])
        for layer, same in zip(missed, first, strict=False):
            assert layer == pytest.approx(same, rel=1e-6)
    assert all(run == runs[0] for run in runs)


def test_a_unit_that_is_always_silent_goes_first():
    model = Decoder(tiny("llama"))
    for matrix in model.layers[0].up:
        with torch.no_grad():
            matrix.weight[7] = 0
    decisions = methods.make("obs").prune(model, calibration(), 0.05)
    assert 7 in decisions["removed_channels"][0]
