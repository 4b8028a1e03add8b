"""Describes `decisions` and `measured` of a record.

`decisions` says what a method removed, in the keys that methods share. A method may write others beside them, which its
own page explains. Layers go by their numbers in the model that the method was given.

`measured` holds values with their unit in the name. One that was not measured is absent.
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
)
from bench.plan.protocol import Recipe
from bench.records.layout import Layout, LayoutOf, declare_field, declare_optional_field
from bench.records.quantity import (
    declare_quantity,
    format_bits,
    format_bytes,
    format_count,
    format_percent,
    format_perplexity,
    format_seconds,
    format_significant,
)
from bench.records.speed_results import SpeedFound
from methods.counted import QUANTITIES

CONTINUATIONS = "copying, counting, repetition, distinct 2-grams: of greedy continuations."
LIKELIHOOD = (
    "bpb: bits per byte of the right answer, ± one standard error, every document and every task weighing alike; how "
    "likely that answer is, which follows perplexity more than what is chosen."
)
ANSWER_BPB = "answer_bpb"  # the metric of the right answer's bits per byte
ACCURACY = re.compile(r"(^|_)acc(_|$)")


def is_accuracy(task: Mapping[str, Any]) -> bool:
    """Return whether a task's main metric is an accuracy. Accuracies alone are averaged over tasks."""
    return is_accuracy_metric(task["main"])


def is_accuracy_metric(metric: str) -> bool:
    """Return whether a metric is the share of documents that were answered right."""
    name = metric.partition(",")[0]  # lm-eval names a filter behind a comma
    return name in ("exact_match", "em", "mc1", "mc2") or ACCURACY.search(name) is not None


class CalibrationDrawn(Layout):
    """Says which tokens the method was shown."""

    source: ClassVar[str] = "bench.runs.measure"

    source_text: str = declare_optional_field("name or file of the text", alias="source")
    seed: Whole = declare_optional_field("of the draw of sequences")
    shape: list[Count] = declare_optional_field("[sequences, tokens of each]")
    sha256: Sha256 = declare_field("of the tokens and their mask")


class FitErrors(Layout):
    """Says how well a fit holds: ||y - z||^2 / ||z||^2 over tokens."""

    source: ClassVar[str] = "methods.least_squares"

    error_before: Error = declare_optional_field("without the fit")
    error_after: Error = declare_optional_field("with it, on the sequences that it was made of")
    error_held_out: Error = declare_optional_field("of a fit to three quarters of the sequences, on the last quarter")

    @model_validator(mode="after")
    def _held_out_beside_fitted(self) -> Self:
        """Refuse an error on other sequences that has none on the fitted ones to be compared with."""
        if "error_held_out" in self.model_fields_set and "error_after" not in self.model_fields_set:
            raise ValueError("has error_held_out, and no error_after beside it")
        return self


class SinkErrors(FitErrors):
    """Says the same of attention sinks alone."""

    tokens: Tokens = declare_optional_field("that are sinks")


class FitDone(FitErrors):
    """Says where a fit was made, and how well it holds on tokens that are no attention sinks."""

    window: Annotated[list[LayerNumber], Field(min_length=2, max_length=2)] = declare_optional_field(
        "first and last of its layers"
    )
    part: Name = declare_optional_field("attention or mlp, where a matrix was fitted anew")
    layer: LayerNumber = declare_optional_field("whose part that is")
    removed: list[str] = declare_optional_field("what stood at the cut that it mends")
    behind_layer: Whole = declare_optional_field("where that cut is; -1 in front of the first layer")
    sinks: SinkErrors = declare_optional_field("over attention sinks")

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        """Refuse errors of nothing."""
        given = self.model_fields_set
        placed = "window" in given or {"part", "layer"} <= given or "removed" in given
        if "error_after" in given and not placed:
            raise ValueError("does not say where it was made: by window, by part and layer, or by removed")
        return self


class FitsDone(Layout):
    """Holds fits under the names that methods give them."""

    source: ClassVar[str] = "methods"

    cuts: list[FitDone] = declare_optional_field("of a compensation that maps the states behind a cut")
    refitted: list[FitDone] = declare_optional_field("of one that solves for matrices anew")
    errors: list[FitDone] = declare_optional_field("of laco-ls, for each window of layers")


class CompensationDone(FitsDone):
    """Says how the model was repaired."""

    source: ClassVar[str] = "methods.compensation"

    name: Name = declare_optional_field("of the compensation")
    added_parameters: Parameters = declare_optional_field("that it put into the model")
    tokens: Tokens = declare_optional_field("that it was fitted to")


class MergeTried(Layout):
    """Says of one window of layers whether LaCo merged it."""

    source: ClassVar[str] = "methods.depth.laco"

    pointer: LayerNumber = declare_field("layer that the others merge into")
    layers: Layers = declare_optional_field("of the model at that time")
    merged: Layers = declare_optional_field("that would be merged")
    similarity: float | None = declare_field("cosine of the last states to the dense model's")
    accepted: bool = declare_field("whether it was above the threshold")


class WhatWent(FitsDone):
    """Says what went, in the words that all methods share, which reports read."""

    removed_layers: list[LayerNumber] = declare_optional_field("whole layers")
    removed_attention: list[LayerNumber] = declare_optional_field("layers that lost their attention")
    removed_mlp: list[LayerNumber] = declare_optional_field("layers that lost their MLP")
    removed_kv_heads: list[list[Count]] = declare_optional_field(
        "of each layer, numbers of the key/value heads that went"
    )
    removed_channels: list[list[Count]] = declare_optional_field("of each layer, numbers of the MLP channels that went")
    removed_experts: list[list[Count]] = declare_optional_field(
        "of each layer, numbers of the experts that went; none of a single MLP"
    )
    kv_heads: list[Count] = declare_optional_field("of each layer, how many are left")
    channels: list[Count] = declare_optional_field("of each layer, how many are left")
    experts: list[Count] = declare_optional_field("of each layer, how many are left; 0 of a single MLP")
    d: Count = declare_optional_field("residual width that is left")
    width: Positive = declare_optional_field("residual width of the dense model")
    threshold: float | None = declare_optional_field("of laco: the similarity above which layers were merged")
    trace: list[MergeTried] = declare_optional_field("of laco: every window that was tried")
    removal_order: list[str] = declare_optional_field(
        "of a greedy search: what went, the first first; of laco-ls all that is gone by each step, and in what is taken"
    )
    free_removals: Count = declare_optional_field("how many of those another ratio may begin with")
    generations: Count = declare_optional_field("of an evolutionary search: how many were done")
    of_generations: Count = declare_optional_field("how many were asked for; more where its minutes ended it")
    compensation: CompensationDone = declare_optional_field("how the model was repaired")
    calibration: CalibrationDrawn = declare_optional_field("which tokens it was shown")


class EarlierFigures(Layout):
    """Holds what the record of an earlier stage has measured."""

    source: ClassVar[str] = "bench.runs.measure"

    parameters: Parameters = declare_optional_field("stored parameters")
    layers: Layers = declare_field("that are left")
    ratio: Ratio = declare_optional_field("of the dense model's parameters")
    ratio_budget: Ratio = declare_optional_field("what it had to meet")
    pruned_sha256: Sha256 = declare_optional_field("of every tensor")
    prune_seconds: Seconds = declare_optional_field("of pruning")
    healing: dict[str, Any] = declare_optional_field("of training, as in `measured`")


class StageDecided(Layout):
    """Says what became of a stage that the cell goes on from."""

    source: ClassVar[str] = "bench.runs.store"

    label: Name = declare_optional_field("the method with its parameters")
    method: Name = declare_field("its name")
    parameters: dict[str, Any] = declare_optional_field("by name")
    ratio: Ratio | None = declare_optional_field("that was asked for")
    healing: Annotated[Any, LayoutOf(Recipe)] = declare_optional_field("how it was trained")
    decisions: WhatWent = declare_field("what it removed")
    measured: EarlierFigures = declare_field("what was measured of it")


class DecidedAll(WhatWent):
    """Says what the method decided; layers go by their numbers in the model that it was given."""

    earlier: list[StageDecided] = declare_optional_field(
        "what became of each stage before, the first one first", "bench.runs.store"
    )


class BudgetMet(Layout):
    """Says how a budget was met that is no number of parameters."""

    source: ClassVar[str] = "methods.budget"

    of: Annotated[str, OneOf(tuple(QUANTITIES))] = declare_field("which quantity")
    share: Share = declare_field("of the dense model's that may stay")
    stays: Amount = declare_field("share that does stay")
    ratio: Ratio = declare_field("of all parameters, that the method was asked for")
    tried: list[Pair] = declare_optional_field("[ratio, what stays] of each pruning")


class PeakOfDevice(Layout):
    """Holds the highest memory on one GPU."""

    source: ClassVar[str] = "bench.system.memory"

    allocated_bytes: Bytes = declare_optional_field("by tensors")
    reserved_bytes: Bytes = declare_optional_field("held by torch")


class PeakOfStage(PeakOfDevice):
    """Holds the highest memory during one stage of the cell, over all GPUs together or of the process on a CPU."""

    resident_bytes: Bytes = declare_optional_field("of the process, on a CPU")
    anonymous_bytes: Bytes = declare_optional_field("of the process in no file, on a CPU, looked at every 0.02 s")
    each: list[PeakOfDevice] = declare_optional_field("GPU by itself, of several")

    @model_validator(mode="after")
    def _has_a_peak(self) -> Self:
        """Refuse a stage of which nothing is known."""
        if self.model_fields_set.isdisjoint(("allocated_bytes", "resident_bytes")):
            raise ValueError("has neither allocated_bytes nor resident_bytes")
        return self


class LearningPoint(Layout):
    """Says where training stood at a point of the learning curve."""

    source: ClassVar[str] = "bench.healing"

    step: Count = declare_field("of the optimiser")
    tokens: Tokens = declare_field("trained on so far")
    seconds: Seconds = declare_field("of training so far")
    loss: float = declare_optional_field("on the training text since the point before, nats per token")
    heldout_loss: Nats = declare_field("on held-out sequences")
    heldout_loss_low: Nats = declare_field("lower end of its 95 % interval")
    heldout_loss_high: Nats = declare_field("upper end of its 95 % interval")


class RecipeAsRun(Layout):
    """Says what follows from a recipe."""

    steps: Count = declare_optional_field("of the optimiser")


class HealingFound(Layout):
    """Says how the model was trained after pruning."""

    source: ClassVar[str] = "bench.runs.measure"

    recipe: Annotated[Any, LayoutOf(Recipe, RecipeAsRun)] = declare_optional_field(
        "how, with the steps that follow from it", "bench.plan.protocol"
    )
    text_sha256: Sha256 = declare_optional_field("of the tokens")
    start_sha256: Sha256 = declare_optional_field("of the model before training, as pruned_sha256")
    seconds: Seconds = declare_quantity(
        "healed in",
        "of training, over all attempts",
        format_seconds,
        unit="s",
        better="lower",
        name="heal_seconds",
        is_needed=True,
    )
    tokens: Tokens = declare_quantity(
        "healed on",
        "trained on",
        format_count,
        unit="tokens",
        unit_in_cell=False,
        name="heal_tokens",
        is_needed=True,
    )
    tokens_per_second: Amount = declare_optional_field("of training")
    curve: Annotated[list[LearningPoint], Field(min_length=1)] = declare_field("of learning", "bench.healing")


class TextScored(Layout):
    """Says how well the model predicts one text."""

    source: ClassVar[str] = "bench.evaluation.scoring"

    perplexity: Above = declare_quantity(
        "ppl {}",
        "per token",
        format_perplexity,
        better="lower",
        spread="interval",
        average="log mean",
        tested=True,
        is_wide=True,
        is_drawn=True,
        note="",
        title="perplexity on {}",
        is_needed=True,
    )
    perplexity_low: Above = declare_optional_field("lower end of its 95 % interval over windows")
    perplexity_high: Above = declare_optional_field("upper end of its 95 % interval over windows")
    bits_per_byte: Bits = declare_quantity(
        "bits per byte {}", "of the scored text in UTF-8", format_significant, better="lower", shown="", note=""
    )
    byte_perplexity: Above = declare_quantity(
        "byte perplexity {}",
        "per byte of UTF-8",
        format_significant,
        better="lower",
        average="log mean",
        shown="",
        note="",
    )
    word_perplexity: Above = declare_quantity(
        "word perplexity {}",
        "per word; absent where it is beyond what a float holds",
        format_significant,
        better="lower",
        average="log mean",
        shown="",
        note="",
    )
    nll_per_token: Nats = declare_optional_field("mean negative log-likelihood")
    tokens: Tokens = declare_field("that are scored")
    words: Count = declare_optional_field("by white space")
    windows: Count = declare_field("that were read")
    drawn: bool = declare_field(DRAWN)
    window: Tokens = declare_field("of a window")
    stride: Tokens = declare_field("from window to window")
    bos: str = declare_field(
        "every window: each begins with the token that begins texts; none: none does", "bench.data.texts"
    )
    sha256: Sha256 = declare_field("of the windows' tokens and of what is scored of them", "bench.data.texts")
    whole: bool = declare_optional_field("all of the text, and not only every second document", "bench.data.texts")


class TaskMetric(Layout):
    """Holds a metric of a task, in the unit that lm-eval gives it: of an accuracy a share."""

    source: ClassVar[str] = "bench.evaluation.tasks"

    value: float = declare_field("mean over documents, or what lm-eval makes of them")
    stderr: float | None = declare_optional_field(
        "standard error of a mean over documents; null or absent: there is none", ge=0
    )


class TaskAnswered(Layout):
    """Says how a task was answered."""

    source: ClassVar[str] = "bench.evaluation.tasks"

    main: Name = declare_field("which of the metrics stands in tables")
    metrics: dict[str, TaskMetric] = declare_field("of lm-eval by name, with its filter behind a comma")
    version: Scalar = declare_field("of lm-eval's definition of the task")
    documents: Count = declare_field("that were answered")
    available: Count = declare_field("that the task has")
    fewshot: Count = declare_field("examples in front of each question")
    chance: Share = declare_optional_field("accuracy of guesses, of a task with choices", "bench.records.answers")
    answer_bpb: TaskMetric = declare_quantity(
        "bpb {}",
        "bits per byte of the right answer, of a task with choices",
        format_bits,
        source="bench.records.answers",
        better="lower",
        spread="stderr",
        over_tasks=True,
        tested=True,
        note=LIKELIHOOD,
        title="bits per byte of the right answer {}",
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

    kl: Nats = declare_quantity(
        "KL",
        "divergence of the next token from the dense model's; absent for dense",
        format_perplexity,
        unit="nats/token",
        unit_in_cell=False,
        better="lower",
        spread="interval",
        shown="quality",
        note="KL: divergence of the next token from the dense model's on held-out text, in nats per token.",
        topic="kl",
    )
    kl_low: Nats = declare_optional_field("lower end of its 95 % interval")
    kl_high: Nats = declare_optional_field("upper end of its 95 % interval")
    agreement: Share = declare_quantity(
        "agreement",
        "of positions at which the dense model finds the same token the most likely",
        format_percent,
        unit="%",
        unit_in_cell=False,
        better="higher",
        note="",
    )
    copying: Share = declare_quantity(
        "copying",
        "of words that follow when a list is given again",
        format_percent,
        unit="%",
        unit_in_cell=False,
        better="higher",
        reads_text=False,
        note=CONTINUATIONS,
    )
    counting: Share = declare_quantity(
        "counting",
        "of numbers that follow when numbers are counted up",
        format_percent,
        unit="%",
        unit_in_cell=False,
        better="higher",
        reads_text=False,
        note=CONTINUATIONS,
    )
    repetition: Share = declare_quantity(
        "repetition",
        "of the 4-grams of a continuation that it has had before",
        format_percent,
        unit="%",
        unit_in_cell=False,
        note=CONTINUATIONS,
    )
    distinct_1: Share = declare_quantity(
        "distinct words",
        "distinct words per word over all continuations",
        format_percent,
        unit="%",
        unit_in_cell=False,
        shown="",
        note="",
    )
    distinct_2: Share = declare_quantity(
        "distinct 2-grams",
        "distinct pairs per pair over all continuations",
        format_percent,
        unit="%",
        unit_in_cell=False,
        note=CONTINUATIONS,
    )
    drawn: bool = declare_optional_field(DRAWN)


class ModelSaved(Layout):
    """Says where the pruned model was saved; perplexity, tasks, speed and checks are of what loads there again."""

    source: ClassVar[str] = "bench.runs.saving"

    folder: str = declare_optional_field("below the run's")
    bytes: Bytes = declare_optional_field("of its files")
    loads_with: str = declare_optional_field("transformers or prunebench", "methods.checkpoint")
    reason: str | None = declare_optional_field("why not transformers alone, or null", "methods.checkpoint")
    dtype: str = declare_optional_field("of the weights on disk")
    rounding: dict[str, Any] = declare_optional_field(
        "{dtype, tokens, logit_difference, kl} of the stored model against the given one"
    )


class SamplesKept(Layout):
    """Names a file of samples."""

    source: ClassVar[str] = "bench.runs.store"

    rows: Count = declare_optional_field("documents or windows in it")
    sha256: Sha256 = declare_field("of the Parquet file")


class MeasuredAll(Layout):
    """Holds the figures of a cell."""

    source: ClassVar[str] = "bench.runs.measure"

    parameters: Parameters = declare_quantity(
        "params",
        "unique stored parameters after pruning; in every record that is ok",
        format_count,
        source="methods.model",
        title="parameters in millions",
        scale=1e-6,
        read_out=" million",
    )
    active_parameters: Parameters = declare_quantity(
        "active",
        "with which one token is computed: all but those of experts that it is not routed to",
        format_count,
        source="methods.model",
    )
    parameters_without_embeddings: Parameters = declare_quantity(
        "parameters without embeddings",
        "without embedding, position table and head",
        format_significant,
        source="methods.model",
    )
    dense_parameters: SomeParameters = declare_optional_field("of the model before pruning", "methods.model")
    dense_parameters_without_embeddings: SomeParameters = declare_optional_field(
        "of the model before pruning", "methods.model"
    )
    ratio: Ratio = declare_quantity(
        "removed", "1 - parameters / dense_parameters", format_percent, unit="%", part="amount"
    )
    ratio_without_embeddings: Ratio = declare_quantity(
        "of decoder", "the same without embeddings", format_percent, unit="%"
    )
    ratio_budget: Ratio = declare_optional_field(
        "what every method of the run had to meet; absent if none was asked", "bench.plan"
    )
    budget: BudgetMet = declare_optional_field("in place of ratio_budget where the budget was no number of parameters")
    layers: Layers = declare_quantity("layers", "that are left", format_count, source="methods.model")
    dense_layers: SomeLayers = declare_optional_field("of the model before pruning", "methods.model")
    weight_bytes: Bytes = declare_quantity(
        "weights",
        "of the parameters in the model's dtype",
        format_bytes,
        source="methods.model",
        better="lower",
        shown="cost",
    )
    kv_bytes_per_token: Bytes = declare_quantity(
        "KV cache per token",
        "of the key-value cache",
        format_bytes,
        source="methods.model",
        better="lower",
        shown="cost",
    )
    macs_per_token: Macs = declare_quantity(
        "macs per token",
        "per token in a sequence of macs_context tokens",
        format_significant,
        source="methods.model",
    )
    macs_context: Tokens = declare_quantity(
        "macs context", "over which they are averaged", format_significant, source="methods.model"
    )
    weights_sha256: Sha256 = declare_optional_field("of the dense model's weight files", "bench.data.pretrained")
    pruned_sha256: Sha256 = declare_optional_field(
        "of every tensor of the model that was measured", "bench.runs.inputs"
    )
    prune_seconds: Seconds = declare_quantity(
        "pruned in",
        "of pruning, with what earlier cells spent on removals or statistics that this one used; absent for dense",
        format_seconds,
        unit="s",
        better="lower",
        part="cost",
        shown="summary",
        note="",
    )
    search_seconds: list[Seconds] = declare_optional_field(
        "of a greedy search, until each of its free_removals was found, by whichever cell",
        "bench.runs.searches",
    )
    weights_in: str = declare_optional_field(
        "files, where the weights lay in files and not in memory (docs/guides/memory.md)"
    )
    states_in: str = declare_optional_field(
        "files, where states that waited while it pruned had a folder for them (--offload)"
    )
    peak_memory: dict[str, PeakOfStage] = declare_optional_field(
        "by stage of `seconds`; `together`: of all stages from pruning on, where they were not told apart",
        "bench.system.memory",
    )
    calibration_memory_mib: Mebibytes = declare_optional_field(
        "for the states of a micro-batch, where that followed from the memory that was free; absent for dense"
    )
    healing: HealingFound = declare_optional_field("how it was trained; absent unless healed")
    perplexity: dict[str, TextScored] = declare_optional_field("by text")
    tasks: dict[str, TaskAnswered] = declare_optional_field("by task")
    speed: SpeedFound = declare_optional_field("absent unless asked for, and of several draws in all but the first")
    checks: ChecksFound = declare_optional_field(
        "what the model says of itself; less of it without a text or with weights in files"
    )
    saved: ModelSaved = declare_optional_field("where the pruned model was saved; absent unless it was")
    threads: dict[str, Count] = declare_optional_field(
        "by stage of `seconds`: the fewest that torch had, where --threads auto left cores to other programs",
        "bench.system.threads",
    )
    seconds: dict[str, Seconds] = declare_optional_field(
        "by stage: load, prune, heal, save, perplexity, tasks, speed, checks; what an interrupted attempt had finished "
        "takes none"
    )
    samples: dict[str, SamplesKept] = declare_optional_field("by file name without its ending", "bench.runs.store")

    @model_validator(mode="after")
    def _says_of_what(self) -> Self:
        """Refuse a budget of a model whose size is not there."""
        sizes = ("dense_parameters", "dense_parameters_without_embeddings")
        if missing := [name for name in sizes if name not in self.model_fields_set and self.ratio_budget is not None]:
            raise ValueError(f"has ratio_budget, and no {missing[0]} beside it")
        return self
