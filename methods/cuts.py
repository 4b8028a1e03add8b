"""Where blocks have been cut out of a model, and what a map at each cut would have to do.

A cut lies behind the last block that is left before a run of removed ones, be they whole layers or single attentions
and MLPs. `at_cuts` walks the dense and the pruned model side by side over the calibration tokens; at each cut it shows
what the pruned model has there, every earlier cut mended already, and what the dense model has behind the run:

    y = r + n    the pruned model's residual at the cut, n what its last block adds        z    the dense model's state

Letters: B = sequences of a micro-batch, T = tokens, D = residual width, M = real tokens that are fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from methods.anatomy import Decoder
from methods.progress import over
from methods.pruner import Calibration, Unsupported
from methods.signals import Entry, enter, step, values_of_a_step


@dataclass(frozen=True)
class Pruning:
    """What a pruner has done. `kept` are the dense model's numbers of the pruned model's layers."""

    dense: Decoder
    pruned: Decoder
    kept: Sequence[int]


@dataclass(frozen=True)
class Cut:
    """behind  the number of the pruned model's layer whose end the cut is; -1: the cut is before the first layer
    removed    "layer 3", "attention 5": what is gone, by the dense model's numbers
    until      half layers of the dense model that have been run at the end of the removed run
    """

    behind: int
    removed: tuple[str, ...]
    until: int


def cuts_of(pruning: Pruning) -> list[Cut]:
    """The cuts, from front to rear."""
    kept, dense = pruning.kept, pruning.dense
    layers, cuts, run, behind = pruning.pruned.layers, list[Cut](), list[str](), -1
    until = 0
    for number, layer in enumerate(dense.layers):
        place = kept.index(number) if number in kept else None
        has = {"attention": layer.has_attention, "mlp": layer.has_mlp}
        if place is None:
            run.append(f"layer {number}")
            until = 2 * number + 2
            continue
        left = {"attention": layers[place].has_attention, "mlp": layers[place].has_mlp}
        lost = [part for part in has if has[part] and not left[part]]
        if run and (layer.parallel or left["attention"] or not has["attention"]):
            cuts.append(Cut(behind, tuple(run), until))
            run = []
        if layer.parallel:
            behind, run, until = place, [f"{part} {number}" for part in lost], 2 * number + 2
        elif "attention" in lost:
            run.append(f"attention {number}")
            cuts.append(Cut(behind, tuple(run), 2 * number + 1))
            behind, run = place, []
        else:
            behind = place
            if "mlp" in lost:
                run, until = [f"mlp {number}"], 2 * number + 2
    return [*cuts, Cut(behind, tuple(run), until)] if run else cuts


class States:
    """The dense model's states of every micro-batch, (B, T, D) each, after any number of half layers."""

    def __init__(self, model: Decoder, entries: list[Entry]) -> None:
        self.layers, self.entries, self.halves = model.layers, entries, 0
        self.x = [entry.x for entry in entries]

    def advance(self, halves: int) -> list[Tensor]:
        while self.halves < halves:
            number, second = divmod(self.halves, 2)
            layer, taken = self.layers[number], 1
            arguments = [entry.arguments[layer.kind] for entry in self.entries]
            if second:
                self.x = [x + layer.transform(x) if layer.has_mlp else x for x in self.x]
            elif halves > self.halves + 1:
                self.x, taken = [layer(x, given) for x, given in zip(self.x, arguments, strict=True)], 2
            else:
                self.x = [x + layer.attend(x, given) for x, given in zip(self.x, arguments, strict=True)]
            self.halves += taken
        return self.x


@dataclass(frozen=True)
class Seen:
    """One micro-batch at a cut. `where` (B, T) is true at the tokens that are fitted; the others are (B, T, D)."""

    y: Tensor
    n: Tensor
    z: Tensor
    where: Tensor

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """y, n and z of the fitted tokens, (M, D) each, in float64."""
        y, n, z = (state[self.where].double() for state in (self.y, self.n, self.z))
        return y, n, z


@dataclass(frozen=True)
class Mended:
    """state  what the pruned model has at the cut from then on, (B, T, D) for each micro-batch
    gain      what the model's residual behind the cut is multiplied by in effect, since its norms do not see it
    """

    state: Callable[[Seen], Tensor]
    gain: float = 1.0


Mend = Callable[[Cut, list[Seen]], Mended]


@torch.no_grad()
def at_cuts(pruning: Pruning, calibration: Calibration, leave_first: bool, mend: Mend) -> list[dict[str, Any]]:
    """Call `mend` at each cut, from front to rear, and go on with the states that it leads to.

    Returns for each cut what was removed, and ||y - z||^2 / ||z||^2 over the fitted tokens before and after.
    """
    cuts, dense = {cut.behind: cut for cut in some_cuts(pruning)}, pruning.dense
    batches = calibration.batches(values_of_a_step(dense) + 3 * dense.embed.embedding_dim)
    entries = [enter(dense, ids) for ids, _ in batches]
    masks = [mask for _, mask in batches]
    fitted = [fitted_tokens(mask, leave_first).to(dense.embed.weight.device) for mask in masks]
    states, x, report, gain = States(dense, entries), [entry.x for entry in entries], list[dict[str, Any]](), 1.0

    def at(cut: Cut, y: list[Tensor], n: list[Tensor]) -> list[Tensor]:
        nonlocal gain
        seen = [Seen(*four) for four in zip(y, n, states.advance(cut.until), fitted, strict=True)]
        before, mended = error(seen, gain), mend(cut, seen)
        gain, after = mended.gain, [mended.state(each) for each in seen]
        left = error([replace(each, y=new) for each, new in zip(seen, after, strict=True)], gain)
        report.append(
            {"behind_layer": cut.behind, "removed": list(cut.removed), "error_before": before, "error_after": left}
        )
        return after

    if -1 in cuts:
        x = at(cuts[-1], x, [torch.zeros_like(one) for one in x])
    for number, layer in enumerate(over(pruning.pruned.layers[: max(cuts) + 1], "mending", "layer")):
        arguments = [entry.arguments[layer.kind] for entry in entries]
        if number not in cuts:
            x = [layer(one, given) for one, given in zip(x, arguments, strict=True)]
            continue
        taken = [step(layer, one, given, mask) for one, given, mask in zip(x, arguments, masks, strict=True)]
        x = at(cuts[number], [each.y for each in taken], [each.m if layer.has_mlp else each.a for each in taken])
    return report


def fitted_tokens(mask: Tensor, leave_first: bool) -> Tensor:
    """(B, T) true at the real tokens, but not at the first position where that is left out of the fit."""
    where = mask.clone()
    if leave_first and mask.shape[1] > 1:
        where[:, 0] = False
    return where


def error(seen: Sequence[Seen], gain: float = 1.0) -> float:
    """||gain y - z||^2 / ||z||^2 over the fitted tokens."""
    missed = whole = 0.0
    for each in seen:
        y, _, z = each.rows()
        missed += float((gain * y - z).square().sum())
        whole += float(z.square().sum())
    return missed / whole


def kept_layers(decisions: dict[str, Any], dense: Decoder, pruned: Decoder) -> list[int]:
    """The dense model's numbers of the layers that are left. Raises Unsupported where the method does not say."""
    gone = set(decisions.get("removed_layers", []))
    kept = [number for number in range(len(dense.layers)) if number not in gone]
    if len(kept) != len(pruned.layers):
        raise Unsupported("the method's decisions do not say which layers it has removed (removed_layers)")
    return kept


def some_cuts(pruning: Pruning) -> list[Cut]:
    """The cuts; raises Unsupported where the pruner has removed nothing whole."""
    cuts = cuts_of(pruning)
    if not cuts:
        raise Unsupported("the method removes heads and channels, nothing whole, so there is no cut; refit serves it")
    return cuts
