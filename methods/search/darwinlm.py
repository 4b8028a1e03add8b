"""Search how much each layer loses, and train each candidate a little before it is compared: DarwinLM.

Tang, Sieberling, Kurtic, Shen, Alistarh 2025, "DarwinLM: Evolutionary Structured Pruning of Large Language Models",
arXiv 2502.07780. Code: IST-DASLab/DarwinLM.

A structure is the key/value heads of a layer's attention or the channels of its MLP. It has levels of a tenth of its
units, at each of which its output matrix is what optimal brain surgery leaves (methods/width/obs.py), solved for on
what enters it in the dense model. A state chooses a level of each structure. At first all structures lose as much. A
child of the parent has min(a, b) swaps, a and b uniform in 1 .. mutations: one structure goes a level down and another
one of its kind a level up, so that as many parameters are left.

A generation has four stages. In stage s = 0 .. 3 each state that is left is made anew from the matrices of its levels,
trained, and compared:

    tokens trained on    train x (1, 5, 10, 20)_s     AdamW, a sequence a step, the loss of the next token
    tokens compared on   compare x (1, 2, 4, 8)_s     KL(p || q), p of the dense model, q of the trained state

Half of the states go on to the next stage, which the parent joins at last. The one that is left is the next parent. No
training is kept: the model is cut to the winner's widths, with the matrices of its levels. What recovers, `--heal`
trains on.

Departures from the authors' code. There a state keeps its dense shapes, and training moves removed columns away from
zero, so that a candidate is partly whole when it is compared; here it is narrow. There query heads go one by one and
keys and values stay; here a key/value head goes with its query heads. There the search has 200 generations of 16
children, trains on 10,000 to 200,000 tokens and compares on 1,024 to 8,192, of sequences of 8,192; here a usual run has
fewer. There the sequences that states are trained on and compared on are drawn of the same text with another seed; here
every second sequence is trained on, and the others are compared on. There all weights are trained, in bfloat16 at a
rate of 1e-5; here those of the layers, in float32, at a rate that is 1e-5 at the residual width of 4,096 of the
authors' models and falls with the width (Yang, Hu and others 2022, arXiv 2203.03466). There a structure may be drawn
for both directions of a swap, as here. The cost of a unit has no linear term, as in `obs`.

Cost. That of `obs` twice, and for each generation three forwards over `train` tokens 88 times, and two over `compare`
tokens 40 times, where there are 8 children. Memory holds the model in float32 once and its layers three times more, as
gradients and two moments; and on the host the output matrices of all levels. `minutes` ends the search after the
generation in which they have passed. A search that was interrupted goes on behind the last generation.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Count, Holds, Look, Positive, Pruner, Tokens, register
from methods.console import make_bar
from methods.errors import Unsupported
from methods.model.calibration import Calibration, SweepLog
from methods.model.decoder import Decoder, make_twin
from methods.model.gradients import make_repeatable, require_gradients
from methods.model.sizes import parameters
from methods.model.structures import Narrowed, cuts_of, structures_of
from methods.search.tyr import Levels, Supernet, make_supernet, state_of, widths_of
from methods.trials.blocks import Replacements, kl, sum_loss
from methods.trials.evolution import draw_sequences, end_of_search
from methods.width.obs import OBS, Counts
from methods.width.widths import find_equal_widths

TRAINED = (1, 5, 10, 20)  # times `train`, by stage: 10k, 50k, 100k and 200k tokens in the paper
COMPARED = (1, 2, 4, 8)  # times `compare`, by stage: 1,024 to 8,192 in the paper
RATE, WIDTH = 1e-5, 4096  # of the authors' training, and of the models that it was run on


@register("darwinlm")
@dataclass(frozen=True)
class DarwinLM(Pruner):
    """Search how many heads and channels each layer loses, each candidate trained a little (Tang et al. 2025)."""

    generations: Count = 10
    offspring: Count = 8  # children in each generation; 16 in the paper
    levels: Count = 11  # of a structure, half of them above what it has left and half below
    mutations: Count = 3  # swaps of a child at most
    train: Tokens = 256  # tokens that a child is trained on in the first of four stages
    compare: Tokens = 256  # and that it is compared on there
    lr: Positive | None = None  # None: 1e-5 at a residual width of 4,096, at others as 1 / width
    damping: Positive = 0.01  # what is added to the diagonal of H, as a share of its mean
    multiple: Count = 1  # what is left of the channels is a multiple of it
    minutes: Positive | None = None  # after which the search ends with what it has

    looks_at = "gradients"
    cost = "that of obs twice, and 10 times 3 over 22,528 tokens and 2 over 10,240"
    uneven_because = "it chooses the width of each layer"
    axes = ("heads", "channels")
    leaves = ("heads",)
    paper_ratio = "the heads and channels"
    paper_reads = "1,024 x 8,192 tokens of FineWeb-Edu"  # scripts/*.sh
    look = Look("long", "P")
    tiny = "generations=1,offspring=2,levels=3,train=24,compare=24"

    @property
    def holds(self) -> Holds:
        """Return the memory of obs, of a candidate in training, and of its matrices at all levels on the host."""
        return Holds(states=2, squares=5, copies=1, models=4, all_layers=1, hosted=self.levels / 3)

    @property
    def mlp_solves(self) -> float:
        """Return the number of obs for the levels and for the last cut."""
        return 2 * OBS.mlp_solves

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return the forwards of obs, twice, and of all training, which counts three times, and comparisons, twice."""
        counts = self.states_by_stage()
        trained = sum(count * times * self.train for count, times in zip(counts, TRAINED, strict=True))
        compared = sum(count * times * self.compare for count, times in zip(counts, COMPARED, strict=True))
        return 2 * OBS().forwards(layers, removed, tokens) + self.generations * (3 * trained + 2 * compared) / tokens

    def states_by_stage(self) -> list[int]:
        """Return how many states are trained in each stage of a generation, the parent in the last one included."""
        counts = [max(1, self.offspring >> stage) for stage in range(len(TRAINED))]
        return [*counts[:-1], counts[-1] + 1]

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the parameters that are left."""
        structures = structures_of(model)
        counts = find_equal_widths(model, structures, ratio, self.multiple)
        return {"parameters": parameters(model) - sum(counts[each.kind] * each.cost for each in structures)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Search how many units each layer keeps, and cut them as obs does on what the dense model gives."""
        structures = structures_of(model)
        counts, outcome = find_equal_widths(model, structures, ratio, self.multiple), dict[str, Any]()
        missed = list[dict[str, float]]()
        if any(counts.values()):
            equal = {(each.number, each.kind): each.size - counts[each.kind] for each in structures}
            units_left, outcome = self.search(model, calibration, equal)
            removed = {(each.number, each.kind): each.size - units_left[each.number, each.kind] for each in structures}
            to_cut = {at: units for at, units in removed.items() if units}
            missed = OBS(damping=self.damping).sweep(model, structures, to_cut, calibration, prefix="dense")
        return {"parameters": parameters(model), "missed": missed} | cuts_of(model, structures) | outcome

    def search(self, model: Decoder, calibration: Calibration, units_left: Counts) -> tuple[Counts, dict[str, Any]]:
        """Return the units that each structure has left, and for the record the length of the search."""
        if model.store is not None:
            raise Unsupported("darwinlm trains whole candidates, whose weights have to fit into memory")
        alone = replace(calibration, keep=None, note=None, sweeps=None, order=())  # logs are of other sweeps
        levels = Levels.around(units_left, structures_of(model), self.levels, 10, self.multiple)
        supernet = make_supernet(model, alone, levels, units_left, OBS(damping=self.damping), prefix="dense")
        log = calibration.log([], "darwinlm", self, sorted(units_left.items()))
        search = _Search(self, model, alone, supernet, random.Random(calibration.seed))
        parent, until = state_of(units_left), end_of_search(self.minutes, log.seconds)
        best = list[list[float]]()
        for random_state, widths, (*losses, trained) in log.kept():
            search.generator.setstate((3, tuple(random_state.tolist()), None))
            parent = state_of(dict(zip(sorted(units_left), widths.tolist(), strict=True)))
            best.append([float(loss) for loss in losses])
            search.trained = int(trained)
        children = partial(levels.children, count=self.offspring, mutations=self.mutations, generator=search.generator)
        states = sum(self.states_by_stage())
        with make_bar(self.generations * states, "searching", "state", len(best) * states) as bar:
            while len(best) < self.generations and time.monotonic() <= until:
                parent, losses_of_winner = search.run_generation(parent, children([parent]), bar.update)
                best.append(losses_of_winner)
                _note_generation(log, search, parent, losses_of_winner)
        outcome = {"generations": len(best), "of_generations": self.generations, "tokens_trained": search.trained}
        of_kl = {"kl_before_training": [before for before, _ in best], "kl": [after for _, after in best]}
        return widths_of(parent), outcome | of_kl


def _note_generation(log: SweepLog, search: _Search, parent: Replacements, losses: list[float]) -> None:
    """Keep all that the next generation depends on."""
    _, random_state, _ = search.generator.getstate()
    widths = [units for _, units in sorted(widths_of(parent).items())]
    log.add([torch.tensor(random_state), torch.tensor(widths), torch.tensor([*losses, search.trained]).double()], [])


class _Search:
    """Compares states after a little training.

    trained  tokens that states were trained on so far
    """

    def __init__(
        self, how: DarwinLM, model: Decoder, calibration: Calibration, supernet: Supernet, generator: random.Random
    ) -> None:
        self.how, self.model, self.supernet, self.generator = how, model, supernet, generator
        self.trained = 0
        self.lr = how.lr or RATE * WIDTH / model.config.hidden_size
        self.to_train, self.to_compare = (_take_rows(calibration, first) for first in (0, 1))

    def run_generation(
        self, parent: Replacements, children: Sequence[Replacements], note: Callable[[], object] = lambda: None
    ) -> tuple[Replacements, list[float]]:
        """Return the state that is left after all stages, with its loss before and after training in the last.

        note  is called behind each state that was trained
        """
        states, losses = list(children), dict[Replacements, list[float]]()
        for stage, (trained, compared) in enumerate(zip(TRAINED, COMPARED, strict=True)):
            is_last = stage == len(TRAINED) - 1
            if is_last and parent not in states:
                states.append(parent)
            train = draw_sequences(self.to_train, trained * self.how.train, self.generator)
            compare = draw_sequences(self.to_compare, compared * self.how.compare, self.generator)
            losses = {}
            for state in states:
                losses[state] = self.train_and_compare(state, train, compare)
                note()
            survivors = 1 if is_last else max(1, len(states) // 2)
            states = sorted(states, key=lambda state: losses[state][1])[:survivors]
        return states[0], losses[states[0]]

    def train_and_compare(self, state: Replacements, train: Calibration, compare: Calibration) -> list[float]:
        """Return the loss of a state on some tokens, before and after it is trained on others."""
        candidate = make_candidate(self.model, self.supernet, state)
        before = divergence_of(self.model, candidate, compare)
        fit_layers(candidate, train, self.lr)
        self.trained += int(train.mask.sum())
        return [before, divergence_of(self.model, candidate, compare)]


def _take_rows(calibration: Calibration, first: int) -> Calibration:
    """Return every second sequence from `first` on, or all where there is one alone."""
    rows = slice(first if len(calibration.ids) > 1 else 0, None, 2)
    return replace(calibration, ids=calibration.ids[rows], mask=calibration.mask[rows])


def make_candidate(model: Decoder, supernet: Supernet, state: Replacements) -> Decoder:
    """Return a model in a state, with weights of its own in float32."""
    candidate, copies = make_twin(model), dict[int, nn.Parameter]()
    for number, layer in enumerate(candidate.layers):
        supernet.narrow_in_place(layer, [at for at in state if isinstance(at, Narrowed) and at.layer == number])
    for module in candidate.model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            own = nn.Parameter(weight.detach().float().clone(), requires_grad=False)
            module.register_parameter(name, copies.setdefault(id(weight), own))  # one for a head that is tied
    for layer in candidate.layers:
        layer.settle()
    return candidate


def fit_layers(model: Decoder, text: Calibration, lr: float) -> None:
    """Take a step of AdamW on each sequence, in place, by the mean loss of the next token."""
    weights = [weight for layer in model.layers for weight in layer.module.parameters()]
    optimiser = torch.optim.AdamW(weights, lr)
    with require_gradients(model, weights), make_repeatable(model):
        for ids in _sequences(text):
            with torch.enable_grad():
                logits = _logits(model, ids)[:-1]
                loss = nn.functional.cross_entropy(logits.float(), ids[1:].to(logits.device))
                torch.autograd.backward([loss])
            optimiser.step()
            optimiser.zero_grad()


@torch.no_grad()
def divergence_of(dense: Decoder, model: Decoder, text: Calibration) -> float:
    """Return KL(p || q) of the next token, the mean over all tokens of a text with a successor, in nats."""
    total, count = 0.0, 0
    for ids in _sequences(text):
        p, logits = (_logits(each, ids)[:-1] for each in (dense, model))
        total += float(sum_loss(kl, logits, p.float().log_softmax(-1), ids[1:]))
        count += len(ids) - 1
    return total / count


def _sequences(text: Calibration) -> Iterator[Tensor]:
    """Yield the real tokens of each sequence that has two of them, (T,)."""
    for ids, mask in zip(text.ids, text.mask, strict=True):
        if (length := int(mask.sum())) > 1:
            yield ids[:length]


def _logits(model: Decoder, ids: Tensor) -> Tensor:
    """Return the logits of a sequence, (T,) -> (T, V)."""
    placed = ids[None].to(model.embed.weight.device)
    logits: Tensor = model.model(input_ids=placed, use_cache=False).logits[0]
    return logits
