"""Describes `decisions` of a record: what a method removed, in the keys that methods share.

A method may write others beside them, which its own page explains. Layers go by their numbers in the model that the
method was given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Len

from bench.plan.kinds import (
    Count,
    Error,
    LayerNumber,
    Layers,
    Name,
    Parameters,
    Positive,
    Ratio,
    Seconds,
    Sha256,
    Tokens,
    Whole,
    declare_field,
    declare_optional_field,
)
from bench.plan.protocol import Recipe
from bench.records.layout import LayoutOf


@dataclass(frozen=True, kw_only=True)
class CalibrationDrawn:
    """Says which tokens the method was shown."""

    SOURCE: ClassVar[str] = "bench.runs.measure"

    source_text: str | None = declare_optional_field("name or file of the text", alias="source")
    seed: Whole | None = declare_optional_field("of the draw of sequences")
    shape: tuple[Count, ...] | None = declare_optional_field("[sequences, tokens of each]")
    sha256: Sha256 = declare_field("of the tokens and their mask")


@dataclass(frozen=True, kw_only=True)
class FitErrors:
    """Says how well a fit holds: ||y - z||^2 / ||z||^2 over tokens."""

    SOURCE: ClassVar[str] = "methods.least_squares"

    error_before: Error | None = declare_optional_field("without the fit")
    error_after: Error | None = declare_optional_field("with it, on the sequences that it was made of")
    error_held_out: Error | None = declare_optional_field(
        "of a fit to three quarters of the sequences, on the last quarter"
    )

    def refuse_misfit(self) -> None:
        """Raise ValueError for an error on other sequences that has none on the fitted ones to be compared with."""
        if self.error_held_out is not None and self.error_after is None:
            raise ValueError("has error_held_out, and no error_after beside it")


@dataclass(frozen=True, kw_only=True)
class SinkErrors(FitErrors):
    """Says the same of attention sinks alone."""

    tokens: Tokens | None = declare_optional_field("that are sinks")


@dataclass(frozen=True, kw_only=True)
class FitDone(FitErrors):
    """Says where a fit was made, and how well it holds on tokens that are no attention sinks."""

    window: Annotated[tuple[LayerNumber, ...], Len(2, 2)] | None = declare_optional_field(
        "first and last of its layers"
    )
    part: Name | None = declare_optional_field("attention or mlp, where a matrix was fitted anew")
    layer: LayerNumber | None = declare_optional_field("whose part that is")
    removed: tuple[str, ...] | None = declare_optional_field("what stood at the cut that it mends")
    behind_layer: Whole | None = declare_optional_field("where that cut is; -1 in front of the first layer")
    sinks: SinkErrors | None = declare_optional_field("over attention sinks")

    def refuse_misfit(self) -> None:
        """Raise ValueError for a fit that does not say where in the model it was made."""
        FitErrors.refuse_misfit(self)
        of_a_part = self.part is not None and self.layer is not None
        if self.error_after is not None and self.window is None and self.removed is None and not of_a_part:
            raise ValueError("does not say where it was made: by window, by part and layer, or by removed")


@dataclass(frozen=True, kw_only=True)
class FitsDone:
    """Holds fits under the names that methods give them."""

    SOURCE: ClassVar[str] = "methods"

    cuts: tuple[FitDone, ...] | None = declare_optional_field("of a compensation that maps the states behind a cut")
    refitted: tuple[FitDone, ...] | None = declare_optional_field("of one that solves for matrices anew")
    errors: tuple[FitDone, ...] | None = declare_optional_field("of laco-ls, for each window of layers")


@dataclass(frozen=True, kw_only=True)
class CompensationDone(FitsDone):
    """Says how the model was repaired."""

    SOURCE: ClassVar[str] = "methods.compensation"

    name: Name | None = declare_optional_field("of the compensation")
    added_parameters: Parameters | None = declare_optional_field("that it put into the model")
    tokens: Tokens | None = declare_optional_field("that it was fitted to")


@dataclass(frozen=True, kw_only=True)
class MergeTried:
    """Says of one window of layers whether LaCo merged it."""

    SOURCE: ClassVar[str] = "methods.depth.laco"

    pointer: LayerNumber = declare_field("layer that the others merge into")
    layers: Layers | None = declare_optional_field("of the model at that time")
    merged: Layers | None = declare_optional_field("that would be merged")
    similarity: float | None = declare_field("cosine of the last states to the dense model's")
    accepted: bool = declare_field("whether it was above the threshold")


@dataclass(frozen=True, kw_only=True)
class WhatWent(FitsDone):
    """Says what went, in the words that all methods share, which reports read."""

    removed_layers: tuple[LayerNumber, ...] | None = declare_optional_field("whole layers")
    removed_attention: tuple[LayerNumber, ...] | None = declare_optional_field("layers that lost their attention")
    removed_mlp: tuple[LayerNumber, ...] | None = declare_optional_field("layers that lost their MLP")
    removed_kv_heads: tuple[tuple[Count, ...], ...] | None = declare_optional_field(
        "of each layer, numbers of the key/value heads that went"
    )
    removed_mixer_heads: tuple[tuple[Count, ...], ...] | None = declare_optional_field(
        "of each layer, numbers of the heads that went of the mixer in its attention's place"
    )
    removed_channels: tuple[tuple[Count, ...], ...] | None = declare_optional_field(
        "of each layer, numbers of the MLP channels that went"
    )
    removed_state_channels: tuple[tuple[Count, ...], ...] | None = declare_optional_field(
        "of each layer, numbers of the channels that went of the state of its mixer"
    )
    removed_experts: tuple[tuple[Count, ...], ...] | None = declare_optional_field(
        "of each layer, numbers of the experts that went; none of a single MLP"
    )
    kv_heads: tuple[Count, ...] | None = declare_optional_field("of each layer, how many are left")
    mixer_heads: tuple[Count, ...] | None = declare_optional_field("of each layer, how many are left")
    channels: tuple[Count, ...] | None = declare_optional_field("of each layer, how many are left")
    state_channels: tuple[Count, ...] | None = declare_optional_field("of each layer, how many are left")
    experts: tuple[Count, ...] | None = declare_optional_field("of each layer, how many are left; 0 of a single MLP")
    d: Count | None = declare_optional_field("residual width that is left")
    width: Positive | None = declare_optional_field("residual width of the dense model")
    threshold: float | None = declare_optional_field(
        "of laco: the similarity above which layers were merged", null=True
    )
    trace: tuple[MergeTried, ...] | None = declare_optional_field("of laco: every window that was tried")
    removal_order: tuple[str, ...] | None = declare_optional_field(
        "of a greedy search: what went, the first first; of laco-ls all that is gone by each step, and in what is taken"
    )
    free_removals: Count | None = declare_optional_field("how many of those another ratio may begin with")
    generations: Count | None = declare_optional_field("of an evolutionary search: how many were done")
    of_generations: Count | None = declare_optional_field("how many were asked for; more where its minutes ended it")
    compensation: CompensationDone | None = declare_optional_field("how the model was repaired")
    calibration: CalibrationDrawn | None = declare_optional_field("which tokens it was shown")


@dataclass(frozen=True, kw_only=True)
class EarlierFigures:
    """Holds what the record of an earlier stage has measured."""

    SOURCE: ClassVar[str] = "bench.runs.measure"

    parameters: Parameters | None = declare_optional_field("stored parameters")
    layers: Layers = declare_field("that are left")
    ratio: Ratio | None = declare_optional_field("of the dense model's parameters")
    ratio_budget: Ratio | None = declare_optional_field("what it had to meet")
    pruned_sha256: Sha256 | None = declare_optional_field("of every tensor")
    prune_seconds: Seconds | None = declare_optional_field("of pruning")
    healing: dict[str, Any] | None = declare_optional_field("of training, as in `measured`")


@dataclass(frozen=True, kw_only=True)
class StageDecided:
    """Says what became of a stage that the cell goes on from."""

    SOURCE: ClassVar[str] = "bench.runs.store"

    label: Name | None = declare_optional_field("the method with its parameters")
    method: Name = declare_field("its name")
    parameters: dict[str, Any] | None = declare_optional_field("by name")
    ratio: Ratio | None = declare_optional_field("that was asked for", null=True)
    healing: Annotated[Any, LayoutOf(Recipe)] | None = declare_optional_field("how it was trained")
    decisions: WhatWent = declare_field("what it removed")
    measured: EarlierFigures = declare_field("what was measured of it")


@dataclass(frozen=True, kw_only=True)
class Decisions(WhatWent):
    """Says what the method decided; layers go by their numbers in the model that it was given."""

    earlier: tuple[StageDecided, ...] | None = declare_optional_field(
        "what became of each stage before, the first one first", "bench.runs.store"
    )
