"""SVD-LLM against the theorem of Eckart and Young on what enters each matrix, and its ranks against their budget."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from conftest import VOCABULARY, tiny
from tiny_methods import SPECS, logits

import methods
from methods.errors import OutOfReach, Unsupported
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.inserted import LowRank, factor_matrix, ranks_of
from methods.model.sizes import parameters
from methods.width.svd_llm import factor_of_whitening, factors_of_rank, parameters_to_go, rank_of_share, share_to_keep

LENGTHS = (24, 20, 9, 24, 3, 15)
SEVERAL = ["llama", "gpt2", "opt", "phi3", "gemma2", "phi", "gpt_neox"]  # fused matrices, an MLP without a module, ...


def calibration(filler: int = 0) -> Calibration:
    """Sequences of LENGTHS, padded on the right with the word `filler`."""
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 24), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(24) < torch.tensor(LENGTHS)[:, None]
    return Calibration(ids.where(mask, filler), mask)


def problem(m: int, n: int, tokens: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Return W (m, n) and X (n, tokens), whose rows depend on each other and are of unequal size."""
    of = torch.Generator().manual_seed(m + n)
    mixed = torch.randn(n, n, generator=of, dtype=torch.float64) * torch.logspace(0, 2, n, dtype=torch.float64)
    X = mixed @ torch.randn(n, tokens, generator=of, dtype=torch.float64)
    return torch.randn(m, n, generator=of, dtype=torch.float64), X


def best(W: torch.Tensor, X: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best W_k by the singular vectors of W X itself, without S, and all of its singular values."""
    U, sigma, _ = torch.linalg.svd(W @ X, full_matrices=False)
    return U[:, :k] @ U[:, :k].T @ W, sigma


@pytest.mark.parametrize(("m", "n", "k"), [(12, 20, 5), (20, 12, 5), (16, 16, 1)])
def test_what_is_missed_are_the_singular_values_that_are_cut_and_nothing_misses_less(m, n, k):
    W, X = problem(m, n)
    down, up, missed = factors_of_rank(W, factor_of_whitening(X @ X.T), k)
    W_k, sigma = best(W, X, k)
    assert (down.shape, up.shape) == ((k, n), (m, k))
    torch.testing.assert_close(up @ down, W_k)
    least = float(((W - up @ down) @ X).square().sum())
    assert least == pytest.approx(float(sigma[k:].square().sum()), rel=1e-9)
    assert float(missed) == pytest.approx(least / float((W @ X).square().sum()), rel=1e-9)
    of = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(20):
            other = [one + size * one.norm() * torch.randn(one.shape, generator=of).double() for one in (up, down)]
            assert float(((W - other[0] @ other[1]) @ X).square().sum()) > least
    plain_U, plain, plain_V = torch.linalg.svd(W, full_matrices=False)
    plain_W = plain_U[:, :k] @ plain[:k].diag() @ plain_V[:k]
    assert float(((W - plain_W) @ X).square().sum()) > least


def test_both_factors_bear_the_same_share_of_the_singular_values():
    W, X = problem(12, 20)
    S = factor_of_whitening(X @ X.T)
    down, up, _ = factors_of_rank(W, S, 6)
    sigma = torch.linalg.svdvals(W @ X)[:6]
    torch.testing.assert_close(up.T @ up, sigma.diag())
    torch.testing.assert_close((down @ S) @ (down @ S).T, sigma.diag())


@pytest.mark.parametrize(("m", "n"), [(12, 20), (20, 12)])
@pytest.mark.parametrize("tokens", [200, 7])
def test_at_full_rank_the_matrix_is_what_it_was(m, n, tokens):
    W, X = problem(m, n, tokens)
    down, up, missed = factors_of_rank(W, factor_of_whitening(X @ X.T), min(m, n))
    torch.testing.assert_close(up @ down, W, rtol=0, atol=1e-6 * float(W.abs().max()))
    assert float(missed) < 1e-12


def test_fewer_tokens_than_inputs_are_reproduced_by_as_many_ranks():
    W, X = problem(12, 20, tokens=5)
    down, up, _ = factors_of_rank(W, factor_of_whitening(X @ X.T), 5)
    torch.testing.assert_close(up @ down @ X, W @ X, rtol=0, atol=1e-6 * float((W @ X).abs().max()))


def test_the_diagonal_is_lifted_only_where_it_has_to_be():
    _, X = problem(12, 20)
    H = X @ X.T
    S = factor_of_whitening(H.clone())
    torch.testing.assert_close(S @ S.T, H)
    assert torch.equal(S, S.tril())
    poor = X[:, :5] @ X[:, :5].T
    S = factor_of_whitening(poor.clone())
    lift = S @ S.T - poor
    assert 0 < float(lift.diagonal().mean()) < 1e-9 * float(torch.linalg.eigvalsh(poor)[-1])
    zero = factors_of_rank(torch.randn(6, 4), factor_of_whitening(torch.zeros(4, 4, dtype=torch.float64)), 2)
    assert all(bool(one.isfinite().all()) for one in zero)
    with pytest.raises(Unsupported, match="states of a layer overflow"):
        factor_of_whitening(torch.full((3, 3), math.inf, dtype=torch.float64))


def test_ranks_are_those_of_the_paper_and_what_would_not_be_smaller_stays_whole():
    assert [rank_of_share(32, 32, kept) for kept in (0.8, 0.5, 0.001, 1.0)] == [12, 8, 1, None]
    assert rank_of_share(4096, 11008, 0.8) == int(4096 * 11008 * 0.8 / (4096 + 11008)) == 2388
    assert rank_of_share(1, 40, 0.5) is None
    assert rank_of_share(32, 32, 0.9999) == 15
    assert parameters_to_go(Counter({(32, 32): 3, (1, 40): 2}), 0.5) == 3 * (1024 - 64 * 8)


@pytest.mark.parametrize("wanted", [0.0, 0.02, 0.1, 0.25, 0.5, 0.9])
def test_the_kept_share_comes_nearest_to_the_budget(wanted):
    shapes = Counter({(32, 32): 12, (16, 32): 12, (48, 32): 12, (32, 48): 6})
    total = sum(count * m * n for (m, n), count in shapes.items())
    found = parameters_to_go(shapes, share_to_keep(shapes, wanted * total, total))
    every = {parameters_to_go(shapes, step / 5_000) for step in range(5_001)}
    assert abs(found - wanted * total) == min(abs(each - wanted * total) for each in every)
    with pytest.raises(OutOfReach, match=r"ratio 0.99 is out of reach: with factors of rank 1 in every layer, 0.9\d\d"):
        share_to_keep(shapes, 0.99 * total, total)


def entered(model: Decoder, tokens: Calibration) -> dict[tuple[int, str], torch.Tensor]:
    """What enters each matrix when each sequence runs alone through the model, without padding: (n, tokens)."""
    found: dict[tuple[int, str], list[torch.Tensor]] = {}
    hooks = []
    for number, layer in enumerate(model.layers):
        for name, matrix in layer.named_matrices().items():
            rows = found.setdefault((number, name), [])
            hooks.append(matrix.register_forward_pre_hook(lambda _, x, rows=rows: rows.append(x[0].flatten(0, -2))))
    for ids, mask in zip(tokens.ids, tokens.mask, strict=True):
        logits(model, ids[mask][None])
    for hook in hooks:
        hook.remove()
    return {at: torch.cat(rows).T.double() for at, rows in found.items()}


@pytest.mark.parametrize("family", SEVERAL)
@torch.no_grad()
def test_each_matrix_is_the_best_on_what_enters_it_in_the_dense_model(family):
    model, dense = Decoder(tiny(family)), Decoder(tiny(family))
    decided = methods.make("svd-llm").prune(model, calibration(), 0.3)
    X = entered(dense, calibration())
    for number, (layer, whole) in enumerate(zip(model.layers, dense.layers, strict=True)):
        for name, matrix in layer.named_matrices().items():
            k, W = decided["ranks"][number][name], whole.named_matrices()[name].weight.double()
            W_k, sigma = best(W, X[number, name], k)
            product = (matrix.up.weight @ matrix.down.weight).double()
            torch.testing.assert_close(product, W_k, rtol=0, atol=1e-4 * float(W.abs().max()))
            share = float(sigma[k:].square().sum() / sigma.square().sum())
            assert decided["missed"][number][name] == pytest.approx(share, rel=1e-4)
    assert parameters(dense) - parameters(model) == sum(
        W.numel() - k * sum(W.shape)
        for layer, ranks in zip(dense.layers, decided["ranks"], strict=True)
        for (name, k), W in ((one, layer.named_matrices()[one[0]].weight) for one in ranks.items())
    )


@torch.no_grad()
def test_behind_factored_layers_a_matrix_is_the_best_on_what_enters_it_there():
    model, other = Decoder(tiny("llama")), Decoder(tiny("llama"))
    decided = methods.make("svd-llm", {"prefix": "pruned"}).prune(model, calibration(), 0.3)
    methods.make("svd-llm").prune(other, calibration(), 0.3)
    fed = Decoder(tiny("llama"))  # its first two layers factored, the third one whole
    layers = fed.layers
    for number in (0, 1):
        layers[number].module = model.layers[number].module
    fed.set_layers(layers)
    X, apart = entered(fed, calibration()), 0.0
    for name, matrix in fed.layers[2].named_matrices().items():
        W_k, _ = best(matrix.weight.double(), X[2, name], decided["ranks"][2][name])
        made, dense = (each.layers[2].named_matrices()[name] for each in (model, other))
        torch.testing.assert_close((made.up.weight @ made.down.weight).double(), W_k, rtol=0, atol=1e-5)
        apart = max(apart, float((dense.up.weight @ dense.down.weight - W_k).abs().max()))
    assert apart > 1e-2


def test_what_stands_in_a_padded_place_decides_nothing():
    one, other = Decoder(tiny("llama")), Decoder(tiny("llama"))
    for model, filler in ((one, 0), (other, 7)):
        methods.make("svd-llm").prune(model, calibration(filler), 0.3)
    for ours, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_norms_biases_embedding_and_head_stay_as_they_are():
    model, dense = Decoder(tiny("qwen2")), Decoder(tiny("qwen2"))
    methods.make("svd-llm").prune(model, calibration(), 0.3)
    whole, left = (dict(each.model.named_parameters()) for each in (dense, model))
    matrices = {f"{model.family.layers}.{l}.{name}" for l, one in enumerate(model.layers) for name in ranks_of_all(one)}
    same = {name for name in whole if name.removesuffix(".weight") not in matrices and not name.endswith("proj.bias")}
    assert len(same) > 2 * len(model.layers)
    assert all(torch.equal(left[name], whole[name]) for name in same)
    for ours, theirs in zip(model.layers, dense.layers, strict=True):
        for one, other in zip(ours.qkv, theirs.qkv, strict=True):
            assert torch.equal(one.bias, other.bias)
        assert ours.kv_heads == theirs.kv_heads


def ranks_of_all(layer) -> dict[str, int]:
    found = ranks_of(layer.named_matrices())
    assert len(found) == len(layer.matrices)
    return found


def test_a_factored_matrix_has_no_weight_and_says_so_in_one_line():
    matrix = torch.nn.Linear(6, 4)
    low = factor_matrix(matrix, torch.randn(2, 6), torch.randn(4, 2))
    assert (low.in_features, low.out_features, low.rank) == (6, 4, 2)
    assert torch.equal(low.bias, matrix.bias)
    assert not hasattr(low, "weight")
    with pytest.raises(Unsupported, match="factored into two of low rank") as said:
        low.weight.norm()
    assert "\n" not in str(said.value)
    with pytest.raises(AttributeError, match="'LowRank' object has no attribute 'other'"):
        low.other.norm()
    x = torch.randn(3, 6)
    torch.testing.assert_close(low(x), x @ low.down.weight.T @ low.up.weight.T + matrix.bias)


SERVE = ["drop-tail", "magnitude", "shortgpt", "angular", "sleb", "blockpruner", "llm-drop", "shortened-llama"]
REFUSE = ["laco", "slicegpt", "flap", "wanda-sp", "obs", "llm-pruner", "minitron-width", "svd-llm"]


@pytest.mark.parametrize("method", [*SERVE, "shortgpt+ghost", "shortgpt+linearpatch"])
def test_methods_that_look_at_no_weights_serve_a_factored_model(method, ids):
    model = Decoder(tiny("llama"))
    methods.make("svd-llm").prune(model, calibration(), 0.2)
    before = parameters(model)
    methods.make(method).prune(model, calibration(), 0.3)
    assert parameters(model) < before
    assert bool(logits(model, ids).isfinite().all())
    assert all(isinstance(matrix, LowRank) for layer in model.layers for matrix in layer.matrices)


@pytest.mark.parametrize("method", [*REFUSE, "drop+scale", "drop+replaceme"])
def test_others_refuse_it_in_one_line(method):
    model = Decoder(tiny("llama"))
    methods.make("svd-llm").prune(model, calibration(), 0.2)
    with pytest.raises(Unsupported, match="a matrix has been factored into two of low rank") as said:
        methods.make(method, SPECS["drop"] if "+" in method else {}).prune(model, calibration(), 0.3)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("method", ["flap", "blockpruner", "shortgpt+ghost", "drop-tail"])
def test_it_follows_methods_that_leave_uneven_layers(method, ids):
    model = Decoder(tiny("llama"))
    methods.make(method).prune(model, calibration(), 0.2)
    before = parameters(model)
    decided = methods.make("svd-llm").prune(model, calibration(), 0.2)
    assert parameters(model) == decided["parameters"] < before
    assert abs(parameters(model) - 0.8 * before) < 0.02 * before
    assert bool(logits(model, ids).isfinite().all())


def test_a_sliced_model_is_refused():
    model = Decoder(tiny("llama"))
    methods.make("slicegpt").prune(model, calibration(), 0.2)
    with pytest.raises(Unsupported, match="the residual has been sliced"):
        methods.make("svd-llm").plan(model, 0.2)
