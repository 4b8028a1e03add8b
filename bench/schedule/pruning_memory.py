"""Says how much memory pruning takes beside the dense model, method by method, from shapes and the calibration alone.

The terms are what the code of each method holds at its peak; tests hold the sums to peaks that were counted on an
emulated GPU. What no table holds, such as a plugin, is taken to hold states, or what gradients take where it says that
it needs some.

Letters: b = bytes of a number of the model, D = residual width, I = MLP width, A = width of all heads, V = vocabulary,
L = layers, N = calibration tokens, s = tokens of a micro-batch, P = parameters of a layer. Numbers without b are of
float64 (8) or float32 (4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from bench.schedule.pruned_amount import FLOAT32, FLOAT64, PruningMemory
from methods.base import Pruner
from methods.model import gradients, sliced_layer
from methods.search import trials

ALL = 2.0**32  # a weight of states beside which nothing else counts


def added(method: str, pruner: type[Pruner] | None, asked: PruningMemory) -> int:
    """Return the bytes that pruning by a method takes beside the dense weights, its compensation included.

    pruner  the class of the method, for those that are not in the table
    """
    name, _, compensation = method.partition("+")
    by_looks = {"nothing": _nothing, "calibration": _states, "gradients": _taylor}
    usual = by_looks[pruner.looks_at] if pruner else _nothing
    own = METHODS.get(name, usual)(asked)
    return round(max(own, COMPENSATIONS.get(compensation, _boundaries)(asked) if compensation else 0.0))


def offloaded(method: str, pruner: type[Pruner] | None, asked: PruningMemory) -> int:
    """Return the bytes of states that wait while a method prunes, which a folder has to have room for.

    Every formula is made of sums and maxima, so that by a weight beside which all else is nothing it is that of states.
    """
    return round(added(method, pruner, replace(asked, weight=ALL)) / ALL)


def _nothing(asked: PruningMemory) -> float:
    return 0.0


def _step(asked: PruningMemory, beside: float = 0.0) -> float:
    """Count what a layer does with a micro-batch, with `beside` bytes for each token."""
    D, I = asked.shape.width, asked.shape.mlp
    return asked.s(8 * D + 4 * I) * (1.15 * asked.b * (8 * D + 4 * I) + beside)


def _waiting(asked: PruningMemory) -> float:
    """Count the states of the other micro-batches, which wait between two layers."""
    D, I = asked.shape.width, asked.shape.mlp
    every, s = asked.sequences * asked.length, asked.s(8 * D + 4 * I)
    return asked.waits(asked.b * (every + 2 * s) * D, asked.b * (every - s) * D)


def _in_front(asked: PruningMemory) -> float:
    """Count all states, which wait in front of a layer until its weights have changed."""
    D, I = asked.shape.width, asked.shape.mlp
    return asked.waits(asked.b * (asked.N + asked.s(8 * D + 4 * I)) * D, asked.b * asked.N * D)


def _states(asked: PruningMemory, beside: float = 0.0) -> float:
    """Count a sweep; where there is one micro-batch, none is held that went before, which experts take more than."""
    alone = (
        not asked.shape.mixture
        and asked.s(8 * asked.shape.width + 4 * asked.shape.mlp) == asked.sequences * asked.length
    )
    return _waiting(asked) + _step(asked, beside) - (0.3 * _step(asked) if alone else 0.0)


def _angular(asked: PruningMemory) -> float:
    """States, and those in front of every layer where all tokens are compared."""
    compared = asked.N if asked.parameters.get("token") == "all" else asked.sequences
    return _states(asked) + asked.between_layers(compared)


def _minitron(asked: PruningMemory) -> float:
    """States, or channels in float64 twice beside what has been kept of the step."""
    D, I = asked.shape.width, asked.shape.mlp
    kept = asked.b * (4 * D + asked.shape.heads + I)
    return _waiting(asked) + max(_step(asked), asked.s(8 * D + 4 * I) * (kept + 2 * FLOAT64 * I))


def _llm_streamline(asked: PruningMemory) -> float:
    """States between all layers; or the run's ends, and a layer that is trained: gradients, moments, best weights."""
    D, I = asked.shape.width, asked.shape.mlp
    rows = asked.length * min(asked.sequences, asked.parameters.get("batch", 4))
    trained = 5 * FLOAT32 * asked.shape.layer + rows * (FLOAT32 + asked.b) * (12 * D + 4 * I)
    return max(_states(asked) + asked.between_layers(asked.N), asked.waits(3 * asked.b * asked.N * D) + trained)


def _llm_drop(asked: PruningMemory) -> float:
    return _states(asked, 4 * FLOAT32 * asked.shape.width)


def _flap(asked: PruningMemory) -> float:
    """Moments of channels in float64, then a matrix in float64."""
    return max(_states(asked, 20 * asked.shape.mlp), (FLOAT64 + asked.b) * asked.matrix)


def _wanda_sp(asked: PruningMemory) -> float:
    """All states wait in front of the layer that is cut; its matrix is scored in float64."""
    of_a_layer = max(_step(asked, FLOAT64 * asked.shape.mlp), (FLOAT64 + asked.b) * asked.matrix)
    return _in_front(asked) + of_a_layer


def _obs(asked: PruningMemory) -> float:
    """All states in front of a layer and behind it, and matrices of all pairs of what enters an output matrix."""
    D, C = asked.shape.width, max(asked.shape.mlp, asked.shape.heads)
    rows = asked.s(8 * D + 4 * C) * FLOAT32 * C
    return asked.waits(2 * asked.b * asked.N * D) + max(_step(asked) + rows, FLOAT64 * (4 * C**2 + 4 * D * C))


def _svd_llm(asked: PruningMemory) -> float:
    """All states in front of a layer; H of its four inputs, or copies of the last with factors and singular vectors."""
    D, I, A = asked.shape.width, asked.shape.mlp, asked.shape.heads
    sums = FLOAT64 * (2 * D**2 + A**2 + I**2) + _step(asked) + asked.s(8 * D + 4 * I) * FLOAT64 * max(I, A)
    last = FLOAT64 * max(3 * I**2 + D * I, I**2 + 4 * D * I) + asked.layer * (1 - asked.ratio)
    return _in_front(asked) + max(sums, last)


def _taylor(asked: PruningMemory) -> float:
    """The larger of the loss and its gradient, and of a layer's gradients, summed up in float32 and scored."""
    D, I, V, L = asked.shape.width, asked.shape.mlp, asked.shape.vocabulary, asked.shape.layers
    given, b = asked.parameters, asked.b
    rows, length = asked.sequences, min(asked.length, given.get("tokens") or asked.length)
    if "sequences" in given:  # llm-pruner, whose tokens are those of a sequence
        rows = min(rows, given["sequences"])
    else:
        rows, length = max(1, asked.N // asked.length), asked.length
    importance = given.get("importance", "element1")
    squares, sums = importance in ("element2", "mix"), 2 if importance == "mix" else 1
    at_once = length if squares else max(length, min(rows * length, gradients.TOKENS_AT_ONCE))
    loss = (4 * FLOAT32 + (b if b < FLOAT32 else 0)) * at_once * V
    found = asked.layer + b * at_once * (4 * D + 2 * I)
    of_a_layer = FLOAT32 * sums * asked.shape.layer + max(found, 3 * FLOAT32 * asked.matrix)
    every = b * rows * length * D
    return asked.waits((L + 2) * every, (L + 1) * every) + max(loss, of_a_layer)


def _llm_pruner(asked: PruningMemory) -> float:
    if asked.parameters.get("importance") in ("l1", "l2", "random"):
        return 3 * FLOAT32 * asked.matrix
    return _taylor(replace(asked, parameters={"sequences": 10, "tokens": 64} | dict(asked.parameters)))


def _slicegpt(asked: PruningMemory) -> float:
    """A new table, rows of it in float64, the bases of a layer, and states, all of them where they are few."""
    D, V, b = asked.shape.width, asked.shape.vocabulary, asked.b
    values = 6 * D + 2 * (asked.shape.read // D)
    table = b * V * D * (2 if asked.shape.tied else 1) + 2 * FLOAT64 * min(V * D, sliced_layer.NUMBERS)
    sites = 6 * FLOAT64 * D**2 + asked.s(values) * (b * values + 4 * FLOAT32 * D)
    every = asked.sequences * asked.length * D
    here = not asked.on_gpu or FLOAT32 * every <= asked.memory
    return max(table, b * V * D + sites + asked.waits((FLOAT32 + b) * every, FLOAT32 * every) * here)


def _cut_experts(asked: PruningMemory) -> float:
    """Count what is left of the largest tensor of a layer's experts, gate and up, beside the whole."""
    return 0.7 * asked.layer * asked.shape.kept(asked.ratio)


def _experts(asked: PruningMemory) -> float:
    """Count a sweep in which experts compute once more beside the step."""
    return max(_cut_experts(asked), _states(asked, 4 * asked.b * asked.shape.width))


def _trials(
    asked: PruningMemory, logits: float = 2.2, *, dense: bool = False, cut: float = 0.0, copied: float = 0.0
) -> float:
    """Count states in front of each layer, a layer that runs or logits of a few tokens, and the dense model's.

    cut     the parameters that channels have gone with before
    copied  bytes of a layer that runs with other weights than the model's
    """
    D, V, L, b = asked.shape.width, asked.shape.vocabulary, asked.shape.layers, asked.b
    I = asked.shape.mlp - cut / (3 * D * L)
    pieces = (logits * FLOAT32 + (b if b < FLOAT32 else 0)) * V * min(asked.N, trials.TOKENS_AT_ONCE)
    kept = FLOAT32 * asked.N * V if dense and asked.memory >= FLOAT32 * asked.N * V else 0
    batch = min(asked.N, asked.s(D * (L + 8)))
    runs = b * max(batch, min(trials.ROWS, trials.MOST * batch)) * (3 * I + 6 * D)
    in_files = 2 * L * batch + (2 if dense and not kept else 1) * asked.N
    states = asked.waits(b * D * in_files, b * D * (L + 3) * asked.N)
    return states + kept + max(pieces, runs + copied)


def _search(asked: PruningMemory, loss: str = "nll", copied: float = 0.0) -> float:
    """Count logits and what the loss makes of them: a copy, two more for KL, a mixture of both models for JS."""
    loss = asked.parameters.get("loss", loss)
    return _trials(asked, {"nll": 2.2, "kl": 6.5}.get(loss, 8.0), dense=loss != "nll", copied=copied)


def _evopress(asked: PruningMemory) -> float:
    """Count a search by KL whose last comparison reads most tokens."""
    return _search(replace(asked, parameters={"loss": "kl", "tokens": asked.parameters.get("final_tokens", 4096)}))


def _puzzle(asked: PruningMemory) -> float:
    """Count what heads and channels contribute, or trials by KL beside three quarters of an MLP."""
    given = {"loss": asked.parameters.get("score", "kl"), "tokens": asked.parameters.get("tokens", 2048)}
    contributed = _states(asked, FLOAT64 * asked.shape.mlp)
    return max(contributed, _search(replace(asked, parameters=given), copied=0.55 * asked.layer))


def _tyr(asked: PruningMemory) -> float:
    """Count a sweep of `obs` through a copy that is cut, or a comparison by KL; on a CPU the matrices of all levels."""
    kept = 1 - asked.ratio
    copied = 0.0 if asked.in_files else asked.b * kept * asked.shape.inner
    compared = replace(asked, parameters={"loss": "kl", "tokens": asked.parameters.get("final_tokens", 2048)})
    found = max(_obs(asked) + copied, _search(compared, copied=kept * asked.layer))
    return found + (0.0 if asked.on_gpu else _levels(asked))


def _levels(asked: PruningMemory) -> float:
    """Count the output matrices of all levels of `tyr`."""
    shape, levels = asked.shape, asked.parameters.get("levels", 9)
    return float(levels * shape.layers * asked.b * (1 - asked.ratio) * (shape.mlp + shape.heads) * shape.width)


def kept_on_the_host(method: str, asked: PruningMemory) -> int:
    """Return the bytes of what a method that prunes on a GPU keeps on the host, other than states."""
    return round(_levels(asked)) if method.partition("+")[0] == "tyr" else 0


def _laco_puzzle(asked: PruningMemory) -> float:
    """Count the largest of its parts."""
    of_rest = replace(asked, parameters={"tokens": 512} | dict(asked.parameters))
    return max(_laco_ls(replace(asked, parameters={})), _puzzle(of_rest), _refit(asked))


def _two_ssp(asked: PruningMemory) -> float:
    """Count the channels' norms, or trials, before which cut channels have left memory unless they lie in files."""
    cut = 0.8 * asked.ratio * asked.shape.parameters
    gone = 0 if asked.in_files else asked.b * cut
    return max(_states(asked, FLOAT64 * asked.shape.mlp), _trials(asked, cut=cut) - gone)


def _laco(asked: PruningMemory) -> float:
    """States of a few sentences at layers and above windows, and a layer's activations or merged matrices."""
    D, I, L, b = asked.shape.width, asked.shape.mlp, asked.shape.layers, asked.b
    tokens = _sentences(asked, 16)
    kept = 0.7 * L * max(0, L - asked.parameters.get("C", 4)) * b * tokens * D  # 563 were counted of 30 layers
    waiting = asked.waits((L + 1) * b * tokens * D + min(asked.memory, kept))
    return waiting + max(2.5 * b * asked.matrix, 3 * b * tokens * (I + D))


def _laco_published(asked: PruningMemory) -> float:
    """A merged layer, and all activations of a layer on the sentences."""
    tokens = _sentences(asked, 64)
    return 1.2 * asked.layer + asked.b * tokens * (3 * asked.shape.mlp + 9 * asked.shape.width)


def _laco_ls(asked: PruningMemory) -> float:
    """The search's states, maps and logits; or a survivor's fit, on all tokens, beside its dense matrices."""
    D, I, V, L, b = asked.shape.width, asked.shape.mlp, asked.shape.vocabulary, asked.shape.layers, asked.b
    given, removed = asked.parameters, asked.ratio * asked.shape.parameters / max(1.0, asked.shape.layer)
    seen, tried = min(asked.N, given.get("search_tokens", 4096)), min(asked.N, given.get("trial_tokens", 512))
    longer, divisions = given.get("trials", 12), given.get("divisions", 3)
    finally_tried = min(asked.N, given.get("final_tokens", 4096))
    ends = max((min(longer, L - 1) + divisions) * tried, (given.get("finalists", 8) + 1) * finally_tried)
    states, maps = (2 * L + 1) * seen + (L + 1) * tried + ends, min(L - 1 + 2 * removed, 2 * longer + 4 * divisions)
    logits = 6 * min(finally_tried, trials.TOKENS_AT_ONCE)  # of the dense model, and a trial's
    search = asked.waits(b * D * states) + b * D * D * maps + FLOAT32 * logits * V
    inputs = I + asked.shape.heads if given.get("attention") else I
    steps = D + asked.shape.heads + inputs if given.get("attention") else 0
    rows = asked.waits(asked.N * (b * (5 * D + I + steps) + FLOAT64 * D))
    pieces = FLOAT64 * asked.s(11 * D + 4 * I) * (inputs + D)
    return max(search, rows + pieces + asked.fits(inputs, D) + 2 * b * asked.matrix)


def _cut_states(asked: PruningMemory) -> float:
    """All tokens' states of both models at a cut, and what a layer does with them."""
    D, I = asked.shape.width, asked.shape.mlp
    all_tokens = asked.waits(asked.b * asked.sequences * asked.length * 9 * D)
    return all_tokens + asked.b * asked.s(8 * D + 4 * I) * (2 * D + asked.shape.heads + 3 * I)


def _boundaries(asked: PruningMemory) -> float:
    """States at a cut, and the fit of a map."""
    D, I = asked.shape.width, asked.shape.mlp
    return _cut_states(asked) + asked.fits(D, D) + 2 * FLOAT64 * asked.s(11 * D + 4 * I) * D


def _refit(asked: PruningMemory) -> float:
    """One dense layer, states of all tokens and what enters the matrix, and the fit of what it has left.

    What a width method has cut is gone by then; a CPU keeps the dense layers in the same memory.
    """
    D, b, tokens = asked.shape.width, asked.b, asked.sequences * asked.length
    gone = asked.ratio * asked.shape.parameters
    left = asked.shape.mlp * max(0.0, 1 - gone / max(1, asked.shape.inner))
    pieces = 2 * FLOAT64 * asked.s(8 * D + 4 * asked.shape.mlp) * D
    fit = asked.waits(b * tokens * (10 * D + left), b * tokens * (8 * D + left)) + asked.fits(left, D) + pieces
    if asked.in_files:
        return fit + asked.layer
    return fit + (asked.layer - b * gone if asked.on_gpu else b * (asked.shape.inner - gone))


def _reinitialize(asked: PruningMemory) -> float:
    """A second model of what is left, drawn anew on the host, which then lies on a GPU beside the dense weights."""
    return asked.b * (1 - asked.ratio) * asked.shape.parameters


def _sentences(asked: PruningMemory, tokens: int) -> int:
    """Return the tokens of the sentences that LaCo reads."""
    rows = min(asked.sequences, asked.parameters.get("sentences") or 5)
    return rows * min(asked.length, asked.parameters.get("tokens") or tokens)


METHODS: dict[str, Callable[[PruningMemory], float]] = {
    **dict.fromkeys(("dense", "drop", "drop-tail", "drop-random"), _nothing),
    **dict.fromkeys(("magnitude", "shortgpt"), _states),
    "angular": _angular,
    "minitron-width": _minitron,
    "llm-drop": _llm_drop,
    "llm-streamline": _llm_streamline,
    **dict.fromkeys(("reap", "expert-norm", "expert-frequency"), _experts),
    "expert-random": _cut_experts,
    "flap": _flap,
    "wanda-sp": _wanda_sp,
    "obs": _obs,
    "svd-llm": _svd_llm,
    "slicegpt": _slicegpt,
    "llm-pruner": _llm_pruner,
    "shortened-llama-taylor": _taylor,
    "shortened-llama": _trials,
    "sleb": _search,
    "blockpruner": _search,
    "finercut": partial(_search, loss="js"),
    "evopress": _evopress,
    "tyr": _tyr,
    "puzzle": _puzzle,
    "laco-puzzle": _laco_puzzle,
    "2ssp": _two_ssp,
    "laco": _laco,
    "laco-published": _laco_published,
    "laco-ls": _laco_ls,
}
COMPENSATIONS: dict[str, Callable[[PruningMemory], float]] = {  # the others fit a map
    "scale": _cut_states,
    "refit": _refit,
    "reinitialize": _reinitialize,
}
