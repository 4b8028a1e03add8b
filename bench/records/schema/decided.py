"""Describes `decisions` of a record: what a method removed, in the keys that methods share.

A method writes what it likes beside them; its page says what that is. Layers go by their numbers in the model that the
method was given.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from bench.records.schema.asked import HealingRecipe
from bench.records.schema.kinds import (
    Count,
    Error,
    LayerNumber,
    Layers,
    Layout,
    Name,
    Parameters,
    Positive,
    Ratio,
    Seconds,
    Sha256,
    Tokens,
    Whole,
    absent,
    needed,
)


class CalibrationDrawn(Layout):
    """Says which tokens the method was shown."""

    source: ClassVar[str] = "bench.run.measure"

    source_text: str = absent("name or file of the text", alias="source")
    seed: Whole = absent("of the draw of sequences")
    shape: list[Count] = absent("[sequences, tokens of each]")
    sha256: Sha256 = needed("of the tokens and their mask")


class FitErrors(Layout):
    """Says how well a fit holds: ||y - z||^2 / ||z||^2 over tokens."""

    source: ClassVar[str] = "methods.least_squares"

    error_before: Error = absent("without the fit")
    error_after: Error = absent("with it, on the sequences that it was made of")
    error_held_out: Error = absent("of a fit to three quarters of the sequences, on the last quarter")

    @model_validator(mode="after")
    def _held_out_beside_fitted(self) -> Self:
        """Refuse an error on other sequences that has none on the fitted ones to be compared with."""
        if "error_held_out" in self.model_fields_set and "error_after" not in self.model_fields_set:
            raise ValueError("has error_held_out, and no error_after beside it")
        return self


class SinkErrors(FitErrors):
    """Says the same of attention sinks alone."""

    tokens: Tokens = absent("that are sinks")


class FitDone(FitErrors):
    """Says where a fit was made, and how well it holds on tokens that are no attention sinks."""

    window: Annotated[list[LayerNumber], Field(min_length=2, max_length=2)] = absent("first and last of its layers")
    part: Name = absent("attention or mlp, where a matrix was fitted anew")
    layer: LayerNumber = absent("whose part that is")
    removed: list[str] = absent("what stood at the cut that it mends")
    behind_layer: Whole = absent("where that cut is; -1 in front of the first layer")
    sinks: SinkErrors = absent("over attention sinks")

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        """Refuse errors of nothing."""
        there = self.model_fields_set
        placed = "window" in there or {"part", "layer"} <= there or "removed" in there
        if "error_after" in there and not placed:
            raise ValueError("does not say where it was made: by window, by part and layer, or by removed")
        return self


class FitsDone(Layout):
    """Holds fits under the names that methods give them."""

    source: ClassVar[str] = "methods"

    cuts: list[FitDone] = absent("of a compensation that maps the states behind a cut")
    refitted: list[FitDone] = absent("of one that solves for matrices anew")
    errors: list[FitDone] = absent("of laco-ls, for each window of layers")


class CompensationDone(FitsDone):
    """Says how the model was repaired."""

    source: ClassVar[str] = "methods.compensation"

    name: Name = absent("of the compensation")
    added_parameters: Parameters = absent("that it put into the model")
    tokens: Tokens = absent("that it was fitted to")


class MergeTried(Layout):
    """Says of one window of layers whether LaCo merged it."""

    source: ClassVar[str] = "methods.depth.laco"

    pointer: LayerNumber = needed("layer that the others merge into")
    layers: Layers = absent("of the model at that time")
    merged: Layers = absent("that would be merged")
    similarity: float | None = needed("cosine of the last states to the dense model's")
    accepted: bool = needed("whether it was above the threshold")


class WhatWent(FitsDone):
    """Says what went, in the words that all methods share, which reports read."""

    removed_layers: list[LayerNumber] = absent("whole layers")
    removed_attention: list[LayerNumber] = absent("layers that lost their attention")
    removed_mlp: list[LayerNumber] = absent("layers that lost their MLP")
    removed_kv_heads: list[list[Count]] = absent("of each layer, numbers of the key/value heads that went")
    removed_channels: list[list[Count]] = absent("of each layer, numbers of the MLP channels that went")
    removed_experts: list[list[Count]] = absent("of each layer, numbers of the experts that went; none of a single MLP")
    kv_heads: list[Count] = absent("of each layer, how many are left")
    channels: list[Count] = absent("of each layer, how many are left")
    experts: list[Count] = absent("of each layer, how many are left; 0 of a single MLP")
    d: Count = absent("residual width that is left")
    width: Positive = absent("residual width of the dense model")
    threshold: float | None = absent("of laco: the similarity above which layers were merged")
    trace: list[MergeTried] = absent("of laco: every window that was tried")
    removal_order: list[str] = absent(
        "of a greedy search: what went, the first first; of laco-ls all that is gone by each step, and in what is taken"
    )
    free_removals: Count = absent("how many of those another ratio may begin with")
    generations: Count = absent("of an evolutionary search: how many were done")
    of_generations: Count = absent("how many were asked for; more where its minutes ended it")
    compensation: CompensationDone = absent("how the model was repaired")
    calibration: CalibrationDrawn = absent("which tokens it was shown")


class EarlierFigures(Layout):
    """Holds what the record of an earlier stage has measured."""

    source: ClassVar[str] = "bench.run.measure"

    parameters: Parameters = absent("stored parameters")
    layers: Layers = needed("that are left")
    ratio: Ratio = absent("of the dense model's parameters")
    ratio_budget: Ratio = absent("what it had to meet")
    pruned_sha256: Sha256 = absent("of every tensor")
    prune_seconds: Seconds = absent("of pruning")
    healing: dict[str, Any] = absent("of training, as in `measured`")


class StageDecided(Layout):
    """Says what became of a stage that the cell goes on from."""

    source: ClassVar[str] = "bench.run.store"

    label: Name = absent("the method with its parameters")
    method: Name = needed("its name")
    parameters: dict[str, Any] = absent("by name")
    ratio: Ratio | None = absent("that was asked for")
    healing: HealingRecipe = absent("how it was trained")
    decisions: WhatWent = needed("what it removed")
    measured: EarlierFigures = needed("what was measured of it")


class DecidedAll(WhatWent):
    """Says what the method decided; layers go by their numbers in the model that it was given."""

    earlier: list[StageDecided] = absent("what became of each stage before, the first one first", "bench.run.store")
