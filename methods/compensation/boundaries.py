"""Where blocks have been cut out of a model, and what a map at each cut would have to do.

A cut lies behind the last block that is left before a run of removed ones, be they whole layers or single attentions
and MLPs. `at_boundaries` walks the dense and the pruned model side by side over the calibration tokens; at each cut it
shows what the pruned model has there, every earlier cut mended already, and what the dense model has behind the run:

    y = r + n    the pruned model's residual at the cut, n what its last block adds        z    the dense model's state

Attention sinks are a population of their own at each cut (methods/model/sinks.py).

Letters: B = sequences of a micro-batch, T = tokens, D = residual width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from methods.errors import Unsupported
from methods.least_squares import Fitted, errors
from methods.model.activations import States, beside, enter_all, step, values_of_a_step
from methods.model.calibration import Calibration, Wait, in_memory
from methods.model.decoder import Decoder
from methods.model.sinks import Sinks, find_sinks, wanted_states
from methods.progress import over


@dataclass(frozen=True)
class Pruning:
    """Holds what a pruner has done.

    kept     the dense model's numbers of the pruned model's layers
    removed  what went, as the record names it: which layers, parts and units
    windows  first and last of the layers whose work the first of them has been refitted to do
    """

    dense: Decoder
    pruned: Decoder
    kept: Sequence[int]
    removed: Mapping[str, Any] = field(default_factory=dict)
    windows: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class Boundary:
    """Says where a cut lies.

    behind     the number of the pruned model's layer whose end the cut is; -1: the cut is before the first layer
    removed    "layer 3", "attention 5": what is gone, by the dense model's numbers
    until      half layers of the dense model that have been run at the end of the removed run
    """

    behind: int
    removed: tuple[str, ...]
    until: int


def boundaries_of(pruning: Pruning) -> list[Boundary]:
    """Return the cuts, from front to rear."""
    kept, dense = pruning.kept, pruning.dense
    layers, cuts, run, behind = pruning.pruned.layers, list[Boundary](), list[str](), -1
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
            cuts.append(Boundary(behind, tuple(run), until))
            run = []
        if layer.parallel:
            behind, run, until = place, [f"{part} {number}" for part in lost], 2 * number + 2
        elif "attention" in lost:
            run.append(f"attention {number}")
            cuts.append(Boundary(behind, tuple(run), 2 * number + 1))
            behind, run = place, []
        else:
            behind = place
            if "mlp" in lost:
                run, until = [f"mlp {number}"], 2 * number + 2
    return [*cuts, Boundary(behind, tuple(run), until)] if run else cuts


@dataclass(frozen=True)
class BoundaryStates:
    """Holds one micro-batch at a cut.

    y, n, z  (B, T, D)
    where    (B, T) true at real tokens
    sink     (B, T) true at those of them that are attention sinks
    wait     keeps what is computed of them until all micro-batches are fitted, as `Calibration.wait` does
    """

    y: Tensor
    n: Tensor
    z: Tensor
    where: Tensor
    sink: Tensor
    wait: Wait = in_memory

    def measured(self, sinks: Sinks) -> Tensor:
        """Return (B, T), true at the tokens whose sizes are compared: all real ones, or those that are no sinks."""
        return self.where & ~self.sink if sinks == "apart" else self.where


@dataclass(frozen=True)
class Compensated:
    """Says what a compensation has made of a cut.

    state     gives what the pruned model has at the cut from then on, (B, T, D) for each micro-batch
    gain      what the model's residual behind the cut is multiplied by in effect, since its norms do not see it
    fitted    the fit, where there is one, with what it misses on held-out sequences
    """

    state: Callable[[BoundaryStates], Tensor]
    gain: float = 1.0
    fitted: Fitted | None = None


Compensate = Callable[[Boundary, list[BoundaryStates]], Compensated]


@torch.no_grad()
def at_boundaries(pruning: Pruning, calibration: Calibration, sinks: Sinks, mend: Compensate) -> dict[str, Any]:
    """Call `mend` at each cut, from front to rear, and go on with the states that it leads to.

    Returns, for the record, how many tokens were read, and for each of the `cuts` what was removed and what `errors`
    says of it.
    """
    cuts, dense = {cut.behind: cut for cut in some_boundaries(pruning)}, pruning.dense
    entries, masks = enter_all(dense, calibration, values_of_a_step(dense) + 3 * dense.embed.embedding_dim)
    where = [mask.to(dense.embed.weight.device) for mask in masks]
    x, report, gain, wait = [entry.x for entry in entries], list[dict[str, Any]](), 1.0, calibration.wait
    states, layers = States(dense, entries, wait), pruning.pruned.layers[: max(cuts) + 1]  # as they are without maps

    def at(cut: Boundary, y: list[Tensor], n: list[Tensor]) -> list[Tensor]:
        nonlocal gain
        own, tokens = beside(y, states.advance(cut.until), where)
        z = wanted_states(tokens, y, own, sinks, wait)
        found = find_sinks(tokens, y, z)
        seen = [BoundaryStates(*five, wait) for five in zip(y, n, z, tokens, found, strict=True)]
        mended = mend(cut, seen)
        pruning.pruned.layers[max(0, cut.behind)].settle()
        after = [wait(mended.state(each)) for each in seen]
        both = [wait(gain * one) for one in y], [wait(mended.gain * one) for one in after]
        missed = errors(found, tokens, z, *both, fitted=mended.fitted)
        if mended.gain != 1.0 and "sinks" in missed:  # each is wanted in the size that it has with the gain
            for name, with_gain in zip(("error_before", "error_after"), both, strict=True):
                sized = wanted_states(tokens, with_gain, own, sinks, wait)
                missed["sinks"][name] = errors(found, tokens, sized, with_gain, with_gain)["sinks"]["error_after"]
        report.append({"behind_layer": cut.behind, "removed": list(cut.removed)} | missed)
        gain = mended.gain
        return after

    if -1 in cuts:
        x = at(cuts[-1], x, [wait(torch.zeros_like(one)) for one in x])
    for number, layer in enumerate(over(layers, "mending", "layer")):
        arguments = [entry.arguments[layer.kind] for entry in entries]
        pruning.pruned.read_ahead(number + 1)
        with layer.visiting():
            if number not in cuts:
                x = [wait(layer(one, given)) for one, given in zip(x, arguments, strict=True)]
                continue
            y, n = list[Tensor](), list[Tensor]()
            for one, given, mask in zip(x, arguments, masks, strict=True):
                taken = step(layer, one, given, mask)
                y.append(wait(taken.y))
                n.append(wait(taken.m if layer.has_mlp else taken.a))
            del taken
        x = at(cuts[number], y, n)
    return {"cuts": report, "tokens": int(calibration.mask.sum())}


def kept_layers(decisions: dict[str, Any], dense: Decoder, pruned: Decoder) -> list[int]:
    """Return the dense model's numbers of the layers that are left. Raises Unsupported where a method does not say."""
    gone = set(decisions.get("removed_layers", []))
    kept = [number for number in range(len(dense.layers)) if number not in gone]
    if len(kept) != len(pruned.layers):
        raise Unsupported("the method's decisions do not say which layers it has removed (removed_layers)")
    return kept


def some_boundaries(pruning: Pruning) -> list[Boundary]:
    """Return the cuts. Raises Unsupported where the pruner has removed nothing whole."""
    cuts = boundaries_of(pruning)
    if not cuts:
        raise Unsupported(
            "the method removes heads, channels or experts, nothing whole, so there is no cut; refit serves heads and "
            "channels"
        )
    return cuts
