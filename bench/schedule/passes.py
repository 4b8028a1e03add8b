"""Counts what pruning computes, method by method, from the shapes of the model and the calibration alone.

A method that is not in the table, such as a plugin's, is taken to look at its calibration once, or three times where it
needs gradients (its attribute `looks_at`). Constants that were counted in records say where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bench.schedule.shape import Shape
from methods.base import Pruner
from methods.search.evopress import generations_of

EIGENVALUES = 9  # D^3 of a symmetric matrix's
SINGULAR_VALUES = 9  # m^2 n of a matrix's, m <= n
REMOVAL = 8  # products' worth of each entry of H^-1 that a removal updates, for which it is read and written
LACO_WINDOWS = 33  # tried for each layer removed, where a ratio is met: 129, 285, 371 for 4, 8, 11 of 30 (smollm2-135m)
EXCHANGES = 2  # rounds of them at the end of a search of `laco-ls`
PUBLISHED_WINDOWS = 45  # tried by `laco-published`, whatever the ratio: 47, 45, 43 there
BLOCKS = 2.9  # attentions and MLPs removed for a layer's worth of parameters: 12, 22, 32 for 4, 8, 11 layers there
FITS = {"scale": 0.71, "linearpatch": 0.81, "ghost": 0.90, "replaceme": 0.99, "refit": 3.53, "reinitialize": 0.0}
# in forwards without the head; tests/benchmarks/README.md, "What a fit costs, in forwards"
LOOKS = ("puzzle", "shortened-llama", "shortened-llama-taylor")  # at the dense model, once for all ratios


@dataclass(frozen=True)
class PruningWork:
    """Says what is pruned, and on what.

    ratio      to remove of the dense model
    known      the ratio up to which an earlier search's removals are known; of a method that `looks`, more than 0 says
               that another cell has looked
    sequences, length   of the calibration
    """

    shape: Shape
    ratio: float
    known: float
    sequences: int
    length: int
    parameters: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        """Return the calibration tokens that the method reads."""
        every = self.sequences * self.length
        return min(every, self.parameters.get("tokens") or every)

    def removals(self, ratio: float) -> int:
        """Return how many layers a ratio is."""
        return round(ratio * self.shape.parameters / max(1.0, self.shape.layer))


@dataclass(frozen=True)
class Computed:
    """Holds multiply-accumulates, how often the layers' weights are read for few tokens, and products in float64."""

    macs: float = 0.0
    reads: float = 0.0
    exact: float = 0.0

    def __add__(self, other: Computed) -> Computed:
        return Computed(self.macs + other.macs, self.reads + other.reads, self.exact + other.exact)


def computed(method: str, pruner: type[Pruner] | None, asked: PruningWork) -> Computed:
    """Return what pruning by a method computes, its compensation included.

    pruner  the class of the method, for those that are not in the table
    """
    name, _, compensation = method.partition("+")
    usual = {"nothing": 0.0, "calibration": 1.0, "gradients": 3.0}[pruner.looks_at] if pruner else 0.0
    found = METHODS.get(name, partial(_forwards, count=usual))(asked)
    every = asked.sequences * asked.length
    return found + Computed(
        FITS.get(compensation, 1.0 if compensation else 0.0) * asked.shape.body(every, asked.length)
    )


def searches(method: str) -> bool:
    """Say whether a method's cells begin with the removals of each other."""
    return method.partition("+")[0] in ("sleb", "blockpruner", "finercut", "laco-ls")


def looks(method: str) -> bool:
    """Say whether nearly all that a method computes is of the dense model, whatever the ratio and compensation are."""
    return method.partition("+")[0] in LOOKS


def _forwards(asked: PruningWork, count: float) -> Computed:
    """Count forwards of the layers over the calibration; of gradients three are a forward and a backward pass."""
    return Computed(count * asked.shape.body(asked.sequences * asked.length, asked.length))


def _taylor(asked: PruningWork) -> Computed:
    """Two forward passes and a backward pass over few tokens, with the head."""
    if asked.known:
        return Computed()
    rows = min(asked.sequences, asked.parameters.get("sequences", asked.sequences))
    tokens = rows * min(asked.length, asked.tokens) if "sequences" in asked.parameters else asked.tokens
    times = 4 * asked.parameters.get("steps", 1)
    return Computed(times * (asked.shape.body(tokens, asked.length) + tokens * asked.shape.head))


def _slicegpt(asked: PruningWork) -> Computed:
    """Two forwards, and two eigenvalue problems of the width for each layer."""
    shape = asked.shape
    return _forwards(asked, 2) + Computed(exact=2 * shape.layers * EIGENVALUES * shape.width**3)


def _svd_llm(asked: PruningWork) -> Computed:
    """A forward, H of four inputs in each layer, and singular values of each matrix."""
    shape, given = asked.shape, asked.parameters
    H = 2 * shape.width**2 + shape.heads**2 + shape.mlp**2
    of_tokens = _forwards(asked, 2 if given.get("prefix") == "pruned" else 1)
    return of_tokens + Computed(exact=shape.layers * (asked.tokens * H + SINGULAR_VALUES * shape.width * shape.layer))


def _obs(asked: PruningWork) -> Computed:
    """Two forwards, and in each layer H of what is cut, its inverse, the removals, and a solve."""
    shape = asked.shape
    D, C, A = shape.width, shape.mlp, shape.heads
    gone = (1 - shape.kept(asked.ratio)) * C
    of_layer = asked.tokens * (C**2 + A**2) + C**3 + A**3 + gone * REMOVAL * C**2 + D * (C**2 + A**2)
    return _forwards(asked, 2) + Computed(exact=shape.layers * of_layer)


def _trials(asked: PruningWork, count: float, kept: float = 1.0) -> Computed:
    """Count models without one block: half of the layers run again behind it, and the head."""
    shape = asked.shape
    return Computed(count * (shape.body(asked.tokens, asked.length, kept / 2) + asked.tokens * shape.head))


def _each_layer(asked: PruningWork) -> Computed:
    """Every layer is left out once."""
    return Computed() if asked.known else _trials(asked, asked.shape.layers)


def _search(asked: PruningWork, blocks: float, stay: int) -> Computed:
    """Every block that is left is tried for each that goes; `blocks` for each layer, of which `stay` stay."""
    shape, per = asked.shape, 1 if blocks == 1 else 2
    first, last = (round(blocks * asked.removals(ratio)) for ratio in (asked.known, asked.ratio))
    there = per * shape.layers - stay
    steps = [_trials(asked, max(0, there - at), max(0.0, 1 - at / there)) for at in range(first, last)]
    return sum(steps, Computed(shape.body(asked.tokens, asked.length)))


def _evopress(asked: PruningWork) -> Computed:
    """Children run what their parents have left, on few tokens; the fittest and, unless on all, the parents on more."""
    given, shape, k = asked.parameters, asked.shape, asked.removals(asked.ratio)
    kept, every = max(0.0, 1 - k / shape.layers), asked.sequences * asked.length
    generations = given.get("generations") or generations_of(k, shape.layers)

    def compared(states: int, tokens: int) -> Computed:
        of_each = shape.body(tokens, asked.length, kept) + tokens * shape.head
        return Computed(states * of_each + shape.body(tokens, asked.length))

    final, survivors = min(every, given.get("final_tokens", 4096)), given.get("survivors", 2)
    first, again = compared(given.get("initial", 64), asked.tokens), shape.body(final, asked.length)
    more = compared(survivors + given.get("population", 1), final)
    if final == every:  # what the dense model gives and what is missed of parents is known
        first, more = first + Computed(again), Computed(compared(survivors, final).macs - again)
    each = compared(given.get("offspring", 32), asked.tokens) + more
    return first + Computed(generations * each.macs) if k else Computed()


def _sleb(asked: PruningWork) -> Computed:
    return _search(asked, 1, asked.parameters.get("keep_first", 1) + asked.parameters.get("keep_last", 1))


def _laco(asked: PruningWork, windows: float | None = None) -> Computed:
    """Each window that is tried runs a quarter of the layers over a few short sentences; other states are kept."""
    if asked.parameters.get("T") is not None:
        windows = asked.shape.layers
    elif windows is None:
        windows = LACO_WINDOWS * asked.removals(asked.ratio)
    tokens = min(asked.sequences, asked.parameters.get("sentences", 5)) * asked.parameters.get("tokens", 16)
    return Computed(windows * asked.shape.body(tokens, tokens, 0.25), windows / 4)


def _laco_ls(asked: PruningWork) -> Computed:
    """Three forwards, trials of a few tokens for each layer that goes, a map's fit for each window, and finalists."""
    given, shape = asked.parameters, asked.shape
    tokens = given.get("trial_tokens", 512)
    divisions, exchanges = given.get("divisions", 3), given.get("exchanges", 12)
    n = asked.removals(asked.ratio)
    if not n:
        return Computed()
    steps = max(1, n - asked.removals(asked.known))  # the last one is taken anew
    seen, D = min(asked.sequences * asked.length, given.get("search_tokens", 4096)), shape.width
    windows = sum(range(shape.layers - n, shape.layers)) if divisions else 0  # of 2 to n + 1 layers
    maps = (windows + 4 * steps) * D * D * (2 * seen + D)
    fits = 2 * given.get("sweeps", 1) + 1 + given.get("attention", False)
    every = steps * (given.get("trials", 12) + divisions) + EXCHANGES * exchanges
    trial = (0.5 * every + steps + EXCHANGES) * shape.body(tokens, asked.length)
    most = given.get("finalists", 8)
    final = 0.75 * (most + 1) * given.get("final_tokens", 4096) if most > 1 or exchanges else 0
    head = ((every + steps) * tokens + final) * shape.head
    return _forwards(asked, fits) + Computed(trial + shape.body(final, asked.length) + head, exact=maps)


def _puzzle(asked: PruningWork) -> Computed:
    """Every choice of a layer runs what lies behind it; the solutions run all that is left, about as much each."""
    given, shape = asked.parameters, asked.shape
    choices = (given.get("steps", 4) + 1) * (given.get("heads", 1) + 1) - 1
    tokens = min(asked.sequences * asked.length, given.get("tokens", 2048))
    tried = shape.layers * choices * (0.5 * shape.body(tokens, asked.length) + tokens * shape.head)
    kept = given.get("best", 8) * (shape.body(tokens, asked.length, 1 - asked.ratio) + tokens * shape.head)
    found = 0.0 if asked.known else shape.body(asked.sequences * asked.length, asked.length) + tried
    return Computed(found + kept)


def _tyr(asked: PruningWork) -> Computed:
    """Sweeps of obs; most of a forward over few tokens for each child, and over more for the fittest and the parent."""
    given, every = asked.parameters, asked.sequences * asked.length
    rounds, generations = given.get("rounds", 4), given.get("generations", 6)
    first, final = min(every, given.get("tokens", 512)), min(every, given.get("final_tokens", 2048))
    tokens = given.get("offspring", 16) * first + (given.get("survivors", 2) + 1) * final
    compared = asked.shape.body(tokens, asked.length, 1 - asked.ratio) + tokens * asked.shape.head
    dense = asked.shape.body(first + final, asked.length) + (first + final) * asked.shape.head
    searched = Computed(rounds * generations * (compared + dense))
    return sum([_obs(asked)] * (rounds + 1), searched)


def _llm_streamline(asked: PruningWork) -> Computed:
    """A forward, the run once more, and a forward and a backward pass of one layer for each of the passes."""
    L = asked.shape.layers
    return _forwards(asked, 2 + 3 * asked.parameters.get("passes", 16) / L)


def _laco_puzzle(asked: PruningWork) -> Computed:
    """The windows of the layers that collapse, and choices and a refit of the rest."""
    of_layers = replace(asked, parameters={}, ratio=asked.parameters.get("collapsed", 0.67) * asked.ratio)
    of_rest = replace(asked, parameters={"best": 4, "tokens": 512} | dict(asked.parameters))
    return _laco_ls(of_layers) + _puzzle(of_rest) + _forwards(asked, FITS["refit"])


def _two_ssp(asked: PruningWork) -> Computed:
    """A forward for the channels; each attention that is left is tried for each of the n that go.

    n is not rounded: the budget in whole layers that it is rounded for is not known here.
    """
    shape, alpha = asked.shape, asked.parameters.get("alpha", 1.5)
    A = shape.width * (2 * shape.heads + shape.keys)
    p = min(1.0, asked.ratio * shape.parameters / shape.inner)
    n = shape.layers * p ** ((shape.layer - A) / A / alpha)
    return _forwards(asked, 1) + _trials(asked, n * (shape.layers - max(0.0, n - 1) / 2))


METHODS: dict[str, Callable[[PruningWork], Computed]] = {
    **dict.fromkeys(("dense", "drop", "drop-tail", "drop-random"), partial(_forwards, count=0)),  # they look at nothing
    **dict.fromkeys(("magnitude", "shortgpt", "angular", "llm-drop"), partial(_forwards, count=1)),
    "flap": partial(_forwards, count=1),
    "minitron-width": partial(_forwards, count=1),
    "wanda-sp": partial(_forwards, count=2),  # each layer is run to be scored, and again as it has been cut
    "obs": _obs,
    "svd-llm": _svd_llm,
    **dict.fromkeys(("reap", "expert-norm", "expert-frequency"), partial(_forwards, count=2)),  # experts compute twice
    "expert-random": partial(_forwards, count=0),
    "slicegpt": _slicegpt,
    "llm-pruner": _taylor,
    "shortened-llama-taylor": _taylor,
    "shortened-llama": _each_layer,
    "sleb": _sleb,
    "blockpruner": partial(_search, blocks=BLOCKS, stay=0),
    "finercut": partial(_search, blocks=BLOCKS, stay=0),
    "evopress": _evopress,
    "tyr": _tyr,
    "llm-streamline": _llm_streamline,
    "puzzle": _puzzle,
    "laco-puzzle": _laco_puzzle,
    "2ssp": _two_ssp,
    "laco": _laco,
    "laco-published": partial(_laco, windows=PUBLISHED_WINDOWS),
    "laco-ls": _laco_ls,
}
