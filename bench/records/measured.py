"""Describes `decisions` of a record: what a method removed, in the keys that methods share.

A method writes what it likes beside them; its page says what that is. Layers go by their numbers in the model that the
method was given.

Describes `measured` of a record: figures with their unit in the name; one that was not measured is absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from bench.plan.kinds import (
    DRAWN,
    Above,
    Amount,
    Bits,
    Bytes,
    Count,
    Error,
    LayerNumber,
    Layers,
    Layout,
    Macs,
    Mebibytes,
    Name,
    Nats,
    OneOf,
    Pair,
    Parameters,
    Positive,
    Ratio,
    Scalar,
    Seconds,
    Sha256,
    Share,
    SomeLayers,
    SomeParameters,
    Tokens,
    Whole,
    absent,
    needed,
)
from bench.records.asked import HealingRecipe
from bench.records.speed_results import SpeedFound
from methods.counted import QUANTITIES

ANSWER_BPB = "answer_bpb"  # the metric of the right answer's bits per byte
ACCURACY = re.compile(r"(^|_)acc(_|$)")


def is_accuracy(task: Mapping[str, Any]) -> bool:
    """Say whether a task's main metric is an accuracy, which alone can be averaged over tasks."""
    return is_accuracy_metric(task["main"])


def is_accuracy_metric(metric: str) -> bool:
    """Say whether a metric is a share of documents that were right."""
    name = metric.partition(",")[0]  # lm-eval names a filter behind a comma
    return name in ("exact_match", "em", "mc1", "mc2") or ACCURACY.search(name) is not None


class CalibrationDrawn(Layout):
    """Says which tokens the method was shown."""

    source: ClassVar[str] = "bench.runs.measure"

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

    source: ClassVar[str] = "bench.runs.measure"

    parameters: Parameters = absent("stored parameters")
    layers: Layers = needed("that are left")
    ratio: Ratio = absent("of the dense model's parameters")
    ratio_budget: Ratio = absent("what it had to meet")
    pruned_sha256: Sha256 = absent("of every tensor")
    prune_seconds: Seconds = absent("of pruning")
    healing: dict[str, Any] = absent("of training, as in `measured`")


class StageDecided(Layout):
    """Says what became of a stage that the cell goes on from."""

    source: ClassVar[str] = "bench.runs.store"

    label: Name = absent("the method with its parameters")
    method: Name = needed("its name")
    parameters: dict[str, Any] = absent("by name")
    ratio: Ratio | None = absent("that was asked for")
    healing: HealingRecipe = absent("how it was trained")
    decisions: WhatWent = needed("what it removed")
    measured: EarlierFigures = needed("what was measured of it")


class DecidedAll(WhatWent):
    """Says what the method decided; layers go by their numbers in the model that it was given."""

    earlier: list[StageDecided] = absent("what became of each stage before, the first one first", "bench.runs.store")


class BudgetMet(Layout):
    """Says how a budget was met that is no number of parameters."""

    source: ClassVar[str] = "methods.budget"

    of: Annotated[str, OneOf(tuple(QUANTITIES))] = needed("which quantity")
    share: Share = needed("of the dense model's that may stay")
    stays: Amount = needed("share that does stay")
    ratio: Ratio = needed("of all parameters, that the method was asked for")
    tried: list[Pair] = absent("[ratio, what stays] of each pruning")


class PeakOfDevice(Layout):
    """Holds the highest memory on one GPU."""

    source: ClassVar[str] = "bench.system.memory"

    allocated_bytes: Bytes = absent("by tensors")
    reserved_bytes: Bytes = absent("held by torch")


class PeakOfStage(PeakOfDevice):
    """Holds the highest memory during one stage of the cell, over all GPUs together or of the process on a CPU."""

    resident_bytes: Bytes = absent("of the process, on a CPU")
    anonymous_bytes: Bytes = absent("of the process in no file, on a CPU, looked at every 0.02 s")
    each: list[PeakOfDevice] = absent("GPU by itself, of several")

    @model_validator(mode="after")
    def _has_a_peak(self) -> Self:
        """Refuse a stage of which nothing is known."""
        if self.model_fields_set.isdisjoint(("allocated_bytes", "resident_bytes")):
            raise ValueError("has neither allocated_bytes nor resident_bytes")
        return self


class LearningPoint(Layout):
    """Says where training stood at a point of the learning curve."""

    source: ClassVar[str] = "bench.healing"

    step: Count = needed("of the optimiser")
    tokens: Tokens = needed("trained on so far")
    seconds: Seconds = needed("of training so far")
    loss: float = absent("on the training text since the point before, nats per token")
    heldout_loss: Nats = needed("on held-out sequences")
    heldout_loss_low: Nats = needed("lower end of its 95 % interval")
    heldout_loss_high: Nats = needed("upper end of its 95 % interval")


class HealingFound(Layout):
    """Says how the model was trained after pruning."""

    source: ClassVar[str] = "bench.runs.measure"

    recipe: HealingRecipe = absent("how, with the steps that follow from it", "bench.plan.protocol")
    text_sha256: Sha256 = absent("of the tokens")
    start_sha256: Sha256 = absent("of the model before training, as pruned_sha256")
    tokens: Tokens = needed("trained on")
    seconds: Seconds = needed("of training, over all attempts")
    tokens_per_second: Amount = absent("of training")
    curve: Annotated[list[LearningPoint], Field(min_length=1)] = needed("of learning", "bench.healing")


class TextScored(Layout):
    """Says how well the model predicts one text."""

    source: ClassVar[str] = "bench.evaluation.scoring"

    perplexity: Above = needed("per token")
    perplexity_low: Above = absent("lower end of its 95 % interval over windows")
    perplexity_high: Above = absent("upper end of its 95 % interval over windows")
    bits_per_byte: Bits = absent("of the scored text in UTF-8")
    byte_perplexity: Above = absent("per byte of UTF-8")
    word_perplexity: Above = absent("per word; absent where it is beyond what a float holds")
    nll_per_token: Nats = absent("mean negative log-likelihood")
    tokens: Tokens = needed("that are scored")
    words: Count = absent("by white space")
    windows: Count = needed("that were read")
    drawn: bool = needed(DRAWN)
    window: Tokens = needed("of a window")
    stride: Tokens = needed("from window to window")
    bos: str = needed("every window: each begins with the token that begins texts; none: none does", "bench.data.texts")
    sha256: Sha256 = needed("of the windows' tokens and of what is scored of them", "bench.data.texts")
    whole: bool = absent("all of the text, and not only every second document", "bench.data.texts")


class TaskMetric(Layout):
    """Holds a metric of a task, in the unit that lm-eval gives it: of an accuracy a share."""

    source: ClassVar[str] = "bench.evaluation.tasks"

    value: float = needed("mean over documents, or what lm-eval makes of them")
    stderr: float | None = absent("standard error of a mean over documents; null or absent: there is none", ge=0)


class TaskAnswered(Layout):
    """Says how a task was answered."""

    source: ClassVar[str] = "bench.evaluation.tasks"

    main: Name = needed("which of the metrics stands in tables")
    metrics: dict[str, TaskMetric] = needed("of lm-eval by name, with its filter behind a comma")
    version: Scalar = needed("of lm-eval's definition of the task")
    documents: Count = needed("that were answered")
    available: Count = needed("that the task has")
    fewshot: Count = needed("examples in front of each question")
    chance: Share = absent("accuracy of guesses, of a task with choices", "bench.records.answers")
    answer_bpb: TaskMetric = absent(
        "bits per byte of the right answer, of a task with choices", "bench.records.answers"
    )

    @model_validator(mode="after")
    def _metrics_are_there(self) -> Self:
        """Refuse a task without its main metric, and an accuracy that is no share."""
        if self.main not in self.metrics:
            raise ValueError(f"has the main metric {self.main!r}, and no figure of that name")
        for name, metric in self.metrics.items():
            if is_accuracy_metric(name) and not 0 <= metric.value <= 1:
                raise ValueError(f"has {name} {metric.value:g}, and an accuracy is a share from 0 to 1")
        return self


class ChecksFound(Layout):
    """Holds what moves before accuracy does."""

    source: ClassVar[str] = "bench.evaluation.checks"

    copying: Share = absent("of words that follow when a list is given again")
    counting: Share = absent("of numbers that follow when numbers are counted up")
    repetition: Share = absent("of the 4-grams of a continuation that it has had before")
    distinct_1: Share = absent("distinct words per word over all continuations")
    distinct_2: Share = absent("distinct pairs per pair over all continuations")
    agreement: Share = absent("of positions at which the dense model finds the same token the most likely")
    kl: Nats = absent("divergence of the next token from the dense model's; absent for dense")
    kl_low: Nats = absent("lower end of its 95 % interval")
    kl_high: Nats = absent("upper end of its 95 % interval")
    drawn: bool = absent(DRAWN)


class ModelSaved(Layout):
    """Says where the pruned model was saved; perplexity, tasks, speed and checks are of what loads there again."""

    source: ClassVar[str] = "bench.runs.saving"

    folder: str = absent("below the run's")
    bytes: Bytes = absent("of its files")
    loads_with: str = absent("transformers or prunebench", "methods.checkpoint")
    reason: str | None = absent("why not transformers alone, or null", "methods.checkpoint")
    dtype: str = absent("of the weights on disk")
    rounding: dict[str, Any] = absent("{dtype, tokens, logit_difference, kl} of the stored model against the given one")


class SamplesKept(Layout):
    """Names a file of samples."""

    source: ClassVar[str] = "bench.runs.store"

    rows: Count = absent("documents or windows in it")
    sha256: Sha256 = needed("of the Parquet file")


class MeasuredAll(Layout):
    """Holds the figures of a cell."""

    source: ClassVar[str] = "bench.runs.measure"

    parameters: Parameters = absent(
        "unique stored parameters after pruning; in every record that is ok", "methods.model"
    )
    active_parameters: Parameters = absent(
        "with which one token is computed: all but those of experts that it is not routed to", "methods.model"
    )
    parameters_without_embeddings: Parameters = absent("without embedding, position table and head", "methods.model")
    dense_parameters: SomeParameters = absent("of the model before pruning", "methods.model")
    dense_parameters_without_embeddings: SomeParameters = absent("of the model before pruning", "methods.model")
    ratio: Ratio = absent("1 - parameters / dense_parameters")
    ratio_without_embeddings: Ratio = absent("the same without embeddings")
    ratio_budget: Ratio = absent("what every method of the run had to meet; absent if none was asked", "bench.plan")
    budget: BudgetMet = absent("in place of ratio_budget where the budget was no number of parameters")
    layers: Layers = absent("that are left", "methods.model")
    dense_layers: SomeLayers = absent("of the model before pruning", "methods.model")
    weight_bytes: Bytes = absent("of the parameters in the model's dtype", "methods.model")
    kv_bytes_per_token: Bytes = absent("of the key-value cache", "methods.model")
    macs_per_token: Macs = absent("per token in a sequence of macs_context tokens", "methods.model")
    macs_context: Tokens = absent("over which they are averaged", "methods.model")
    weights_sha256: Sha256 = absent("of the dense model's weight files", "bench.data.pretrained")
    pruned_sha256: Sha256 = absent("of every tensor of the model that was measured", "bench.runs.inputs")
    prune_seconds: Seconds = absent(
        "of pruning, with what earlier cells spent on removals or statistics that this one used; absent for dense"
    )
    search_seconds: list[Seconds] = absent(
        "of a greedy search, until each of its free_removals was found, by whichever cell",
        "bench.runs.searches",
    )
    weights_in: str = absent("files, where the weights lay in files and not in memory (docs/guides/memory.md)")
    states_in: str = absent("files, where states that waited while it pruned had a folder for them (--offload)")
    peak_memory: dict[str, PeakOfStage] = absent(
        "by stage of `seconds`; `together`: of all stages from pruning on, where they were not told apart",
        "bench.system.memory",
    )
    calibration_memory_mib: Mebibytes = absent(
        "for the states of a micro-batch, where that followed from the memory that was free; absent for dense"
    )
    healing: HealingFound = absent("how it was trained; absent unless healed")
    perplexity: dict[str, TextScored] = absent("by text")
    tasks: dict[str, TaskAnswered] = absent("by task")
    speed: SpeedFound = absent("absent unless asked for, and of several draws in all but the first")
    checks: ChecksFound = absent("what the model says of itself; less of it without a text or with weights in files")
    saved: ModelSaved = absent("where the pruned model was saved; absent unless it was")
    threads: dict[str, Count] = absent(
        "by stage of `seconds`: the fewest that torch had, where --threads auto left cores to other programs",
        "bench.system.threads",
    )
    seconds: dict[str, Seconds] = absent(
        "by stage: load, prune, heal, save, perplexity, tasks, speed, checks; what an interrupted attempt had finished "
        "takes none"
    )
    samples: dict[str, SamplesKept] = absent("by file name without its ending", "bench.runs.store")

    @model_validator(mode="after")
    def _says_of_what(self) -> Self:
        """Refuse a budget of a model whose size is not there."""
        sizes = ("dense_parameters", "dense_parameters_without_embeddings")
        if missing := [name for name in sizes if name not in self.model_fields_set and self.ratio_budget is not None]:
            raise ValueError(f"has ratio_budget, and no {missing[0]} beside it")
        return self
