"""Defines `measured` of a record: values with their unit in the name. One that was not measured is absent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, MinLen

from bench.plan.kinds import (
    DRAWN,
    Above,
    Amount,
    Bits,
    Bytes,
    Count,
    Layers,
    Macs,
    Mebibytes,
    Name,
    Nats,
    OneOf,
    Pair,
    Parameters,
    Ratio,
    Scalar,
    Seconds,
    Sha256,
    Share,
    SomeLayers,
    SomeParameters,
    Tokens,
    declare_field,
    declare_optional_field,
)
from bench.plan.protocol import Recipe
from bench.records.layout import LayoutOf
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
from bench.records.speed_results import PointTiming, Speed
from methods.counted import QUANTITIES

CONTINUATIONS = "copying, counting, repetition, distinct 2-grams: of greedy continuations."
LIKELIHOOD = (
    "bpb: bits per byte of the right answer, ± one standard error, every document and every task weighing alike; how "
    "likely that answer is, which follows perplexity more than what is chosen."
)
BY_POSITION = (
    "ppl TEXT:FIRST-END: per token, of the tokens at these positions of long windows. A later range has more context, "
    "and other tokens too: only beside the dense model at the same range does it say what pruning does."
)
ANSWER_BPB = "answer_bpb"  # the metric of the right answer's bits per byte
ACCURACY = re.compile(r"(^|_)acc(_|$)")


def is_accuracy_metric(metric: str) -> bool:
    """Say whether a metric is the share of documents that were answered right."""
    name = metric.partition(",")[0]  # lm-eval names a filter behind a comma
    return name in ("exact_match", "em", "mc1", "mc2", "pass_at_1") or ACCURACY.search(name) is not None


@dataclass(frozen=True, kw_only=True)
class BudgetMet:
    """Says how a budget was met that is no number of parameters."""

    SOURCE: ClassVar[str] = "methods.budget"

    of: Annotated[str, OneOf(tuple(QUANTITIES))] = declare_field("which quantity")
    share: Share = declare_field("of the dense model's that may stay")
    stays: Amount = declare_field("share that does stay")
    ratio: Ratio = declare_field("of all parameters, that the method was asked for")
    tried: tuple[Pair, ...] | None = declare_optional_field("[ratio, what stays] of each pruning")


@dataclass(frozen=True, kw_only=True)
class PeakOfDevice:
    """Holds the highest memory on one GPU."""

    SOURCE: ClassVar[str] = "bench.system.memory"

    allocated_bytes: Bytes | None = declare_optional_field("by tensors")
    reserved_bytes: Bytes | None = declare_optional_field("held by torch")


@dataclass(frozen=True, kw_only=True)
class PeakOfStage(PeakOfDevice):
    """Holds the highest memory during one stage of the cell, over all GPUs together or of the process on a CPU."""

    resident_bytes: Bytes | None = declare_optional_field("of the process, on a CPU")
    anonymous_bytes: Bytes | None = declare_optional_field(
        "of the process in no file, on a CPU, looked at every 0.02 s"
    )
    each: tuple[PeakOfDevice, ...] | None = declare_optional_field("GPU by itself, of several")

    def refuse_misfit(self) -> None:
        """Raise ValueError for a stage without any peak."""
        if self.allocated_bytes is None and self.resident_bytes is None:
            raise ValueError("has neither allocated_bytes nor resident_bytes")


@dataclass(frozen=True, kw_only=True)
class PointScore:
    """Says how well the model in training predicted a text of the run."""

    SOURCE: ClassVar[str] = "bench.runs.measure"

    perplexity: Above = declare_field("per token")
    perplexity_low: Above | None = declare_optional_field("lower end of its 95 % interval over windows")
    perplexity_high: Above | None = declare_optional_field("upper end of its 95 % interval over windows")


@dataclass(frozen=True, kw_only=True)
class LearningPoint:
    """Says where training stood at a point of the learning curve."""

    SOURCE: ClassVar[str] = "bench.healing"

    step: Count = declare_field("of the optimiser")
    tokens: Tokens = declare_field("trained on so far")
    seconds: Seconds = declare_field("of training so far")
    loss: float | None = declare_optional_field("on the training text since the point before, nats per token")
    heldout_loss: Nats = declare_field("on held-out sequences")
    heldout_loss_low: Nats = declare_field("lower end of its 95 % interval")
    heldout_loss_high: Nats = declare_field("upper end of its 95 % interval")
    texts: dict[str, PointScore] | None = declare_optional_field("of the run by name, where the recipe measures them")
    answers: dict[str, TaskMetric] | None = declare_optional_field(
        "bits per byte of the right answer by task, where the recipe measures them"
    )


@dataclass(frozen=True, kw_only=True)
class RecipeAsRun:
    """Says what follows from a recipe."""

    steps: Count | None = declare_optional_field("of the optimiser")


@dataclass(frozen=True, kw_only=True)
class Healing:
    """Says how the model was trained after pruning."""

    SOURCE: ClassVar[str] = "bench.runs.measure"

    recipe: Annotated[Any, LayoutOf(Recipe, RecipeAsRun)] | None = declare_optional_field(
        "how, with the steps that follow from it", "bench.plan.protocol"
    )
    text_sha256: Sha256 | None = declare_optional_field("of the tokens")
    start_sha256: Sha256 | None = declare_optional_field("of the model before training, as pruned_sha256")
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
    tokens_per_second: Amount | None = declare_optional_field("of training")
    outside_top: Share | None = declare_optional_field(
        "probability that the dense model gives to tokens that kl does not tell apart, a mean over tokens"
    )
    curve: Annotated[tuple[LearningPoint, ...], MinLen(1)] = declare_field("of learning", "bench.healing")


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Says how well the model predicts the windows of a text, however they were drawn."""

    SOURCE: ClassVar[str] = "bench.evaluation.scoring"

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
    perplexity_low: Above | None = declare_optional_field("lower end of its 95 % interval over windows")
    perplexity_high: Above | None = declare_optional_field("upper end of its 95 % interval over windows")
    bits_per_byte: Bits | None = declare_quantity(
        "bits per byte {}", "of the scored text in UTF-8", format_significant, better="lower", view_columns="", note=""
    )
    byte_perplexity: Above | None = declare_quantity(
        "byte perplexity {}",
        "per byte of UTF-8",
        format_significant,
        better="lower",
        average="log mean",
        view_columns="",
        note="",
    )
    word_perplexity: Above | None = declare_quantity(
        "word perplexity {}",
        "per word; absent where it is beyond what a float holds",
        format_significant,
        better="lower",
        average="log mean",
        view_columns="",
        note="",
    )
    nll_per_token: Nats | None = declare_optional_field("mean negative log-likelihood")
    tokens: Tokens = declare_field("that are scored")
    words: Count | None = declare_optional_field("by white space")
    windows: Count = declare_field("that were read")
    drawn: bool = declare_field(DRAWN)


@dataclass(frozen=True, kw_only=True)
class TextScore(Perplexity):
    """Says how well the model predicts one text."""

    window: Tokens = declare_field("of a window")
    stride: Tokens = declare_field("from window to window")
    bos: str = declare_field(
        "every window: each begins with the token that begins texts; none: none does", "bench.data.texts"
    )
    sha256: Sha256 = declare_field("of the windows' tokens and of what is scored of them", "bench.data.texts")
    whole: bool | None = declare_optional_field(
        "all of the text, and not only every second document", "bench.data.texts"
    )


@dataclass(frozen=True, kw_only=True)
class RangeScore:
    """Says how well the model predicts the tokens at a range of positions of a text's long windows."""

    SOURCE: ClassVar[str] = "bench.evaluation.scoring"

    perplexity: Above = declare_quantity(
        "ppl {}",
        "per token at a range of positions of long windows",
        format_perplexity,
        name="position_perplexity_{}",
        better="lower",
        spread="interval",
        average="log mean",
        tested=True,
        note=BY_POSITION,
        title="perplexity on {}",
        is_needed=True,
    )
    perplexity_low: Above | None = declare_optional_field("lower end of its 95 % interval over windows")
    perplexity_high: Above | None = declare_optional_field("upper end of its 95 % interval over windows")
    nll_per_token: Nats = declare_field("mean negative log-likelihood")
    tokens: Tokens = declare_field("that are scored")
    windows: Count = declare_field("that were read, the same for all ranges of a text")
    drawn: bool = declare_field(DRAWN)
    window: Tokens = declare_field("of a long window")
    within: bool = declare_field("whether each window lies in one document, or else in joined ones", "bench.data.texts")
    bos: str = declare_field("as of a text", "bench.data.texts")
    sha256: Sha256 = declare_field("of the windows and of the range")

    @property
    def stride(self) -> int:
        """Return the tokens from window to window, which share none."""
        return self.window


@dataclass(frozen=True, kw_only=True)
class TaskMetric:
    """Holds a metric of a task, in the unit that lm-eval gives it: of an accuracy a share."""

    SOURCE: ClassVar[str] = "bench.evaluation.tasks"

    value: float = declare_field("mean over documents, or what lm-eval makes of them")
    stderr: Annotated[float, Ge(0)] | None = declare_optional_field(
        "standard error of a mean over documents; null or absent: there is none", null=True
    )


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Says how a task was answered."""

    SOURCE: ClassVar[str] = "bench.evaluation.tasks"

    main: Name = declare_field("which of the metrics stands in tables; answer_bpb where there is no other")
    metrics: dict[str, TaskMetric] = declare_field("of lm-eval by name, with its filter behind a comma")
    version: Scalar = declare_field("of lm-eval's definition of the task")
    documents: Count = declare_field("that were answered")
    available: Count = declare_field("that the task has")
    fewshot: Count = declare_field("examples in front of each question")
    chance: Share | None = declare_optional_field(
        "accuracy of guesses, of a task with choices", "bench.records.answers"
    )
    answer_bpb: TaskMetric | None = declare_quantity(
        "bpb {}",
        "bits per byte of the right answer, of a task with choices or one reference",
        format_bits,
        source="bench.records.answers",
        better="lower",
        spread="stderr",
        over_tasks=True,
        tested=True,
        note=LIKELIHOOD,
        title="bits per byte of the right answer {}",
    )

    def every_metric(self) -> dict[str, TaskMetric]:
        """Return the metrics by name, with the right answer's bits per byte where they are known."""
        return self.metrics | ({ANSWER_BPB: self.answer_bpb} if self.answer_bpb else {})

    @property
    def main_metric(self) -> TaskMetric:
        """Return the metric that tables show."""
        return self.every_metric()[self.main]

    @property
    def is_accuracy(self) -> bool:
        """Say whether the main metric is an accuracy. Accuracies alone are averaged over tasks."""
        return is_accuracy_metric(self.main)

    def is_answered_like(self, score: TaskScore | None) -> bool:
        """Say whether a score is by the same main metric, on as many documents behind as many examples."""
        names = ("main", "version", "documents", "fewshot")
        return score is not None and all(getattr(self, name) == getattr(score, name) for name in names)

    def refuse_misfit(self) -> None:
        """Raise ValueError for a task without its main metric, and for an accuracy that is no share."""
        if self.main not in self.metrics and not (self.main == ANSWER_BPB and self.answer_bpb is not None):
            raise ValueError(f"has the main metric {self.main!r}, and no figure of that name")
        for name, metric in self.metrics.items():
            if is_accuracy_metric(name) and not 0 <= metric.value <= 1:
                raise ValueError(f"has {name} {metric.value:g}, and an accuracy is a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Holds what moves before accuracy does."""

    SOURCE: ClassVar[str] = "bench.evaluation.checks"

    kl: Nats | None = declare_quantity(
        "KL",
        "divergence of the next token from the dense model's; absent for dense",
        format_perplexity,
        unit="nats/token",
        unit_in_cell=False,
        better="lower",
        spread="interval",
        view_columns="quality",
        note="KL: divergence of the next token from the dense model's on held-out text, in nats per token.",
        topic="kl",
    )
    kl_low: Nats | None = declare_optional_field("lower end of its 95 % interval")
    kl_high: Nats | None = declare_optional_field("upper end of its 95 % interval")
    agreement: Share | None = declare_quantity(
        "agreement",
        "of positions at which the dense model finds the same token the most likely",
        format_percent,
        unit="%",
        unit_in_cell=False,
        better="higher",
        note="",
    )
    copying: Share | None = declare_quantity(
        "copying",
        "of words that follow when a list is given again",
        format_percent,
        unit="%",
        unit_in_cell=False,
        better="higher",
        reads_text=False,
        note=CONTINUATIONS,
    )
    counting: Share | None = declare_quantity(
        "counting",
        "of numbers that follow when numbers are counted up",
        format_percent,
        unit="%",
        unit_in_cell=False,
        better="higher",
        reads_text=False,
        note=CONTINUATIONS,
    )
    repetition: Share | None = declare_quantity(
        "repetition",
        "of the 4-grams of a continuation that it has had before",
        format_percent,
        unit="%",
        unit_in_cell=False,
        note=CONTINUATIONS,
    )
    distinct_1: Share | None = declare_quantity(
        "distinct words",
        "distinct words per word over all continuations",
        format_percent,
        unit="%",
        unit_in_cell=False,
        view_columns="",
        note="",
    )
    distinct_2: Share | None = declare_quantity(
        "distinct 2-grams",
        "distinct pairs per pair over all continuations",
        format_percent,
        unit="%",
        unit_in_cell=False,
        note=CONTINUATIONS,
    )
    drawn: bool | None = declare_optional_field(DRAWN)


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """Says where the pruned model was saved; perplexity, tasks, speed and checks are of what loads there again."""

    SOURCE: ClassVar[str] = "bench.runs.saving"

    folder: str | None = declare_optional_field("below the run's")
    bytes: Bytes | None = declare_optional_field("of its files")
    loads_with: str | None = declare_optional_field("transformers or prunebench", "methods.checkpoint")
    reason: str | None = declare_optional_field("why not transformers alone, or null", "methods.checkpoint", null=True)
    dtype: str | None = declare_optional_field("of the weights on disk")
    rounding: dict[str, Any] | None = declare_optional_field(
        "{dtype, tokens, logit_difference, kl} of the stored model against the given one"
    )


@dataclass(frozen=True, kw_only=True)
class SampleFile:
    """Names a file of samples."""

    SOURCE: ClassVar[str] = "bench.runs.store"

    rows: Count | None = declare_optional_field("documents or windows in it")
    sha256: Sha256 = declare_field("of the Parquet file")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Says how far the log-likelihoods of a server are from this suite's own, on a sample of what the cell scored."""

    SOURCE: ClassVar[str] = "bench.evaluation.agreement"

    tokens: Tokens = declare_field("of the sample")
    mean: Nats = declare_field("of the differences, each without its sign; of an answer that of its sum")
    largest: Nats = declare_field("of the differences at single tokens of windows, and in the mean of each answer")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Holds the figures of a cell."""

    SOURCE: ClassVar[str] = "bench.runs.measure"

    parameters: Parameters | None = declare_quantity(
        "params",
        "unique stored parameters after pruning; in every record that is ok",
        format_count,
        source="methods.model",
        title="parameters in millions",
        scale=1e-6,
        read_out=" million",
    )
    active_parameters: Parameters | None = declare_quantity(
        "active",
        "with which one token of text is computed: none of experts that it is not routed to, none of a vision tower",
        format_count,
        source="methods.model",
    )
    parameters_without_embeddings: Parameters | None = declare_quantity(
        "parameters without embeddings",
        "without embedding, position table, head and vision tower",
        format_significant,
        source="methods.model",
    )
    dense_parameters: SomeParameters | None = declare_optional_field("of the model before pruning", "methods.model")
    dense_parameters_without_embeddings: SomeParameters | None = declare_optional_field(
        "of the model before pruning", "methods.model"
    )
    ratio: Ratio | None = declare_quantity(
        "removed", "1 - parameters / dense_parameters", format_percent, unit="%", part="amount"
    )
    ratio_without_embeddings: Ratio | None = declare_quantity(
        "of decoder", "the same without embeddings and vision tower", format_percent, unit="%"
    )
    ratio_budget: Ratio | None = declare_optional_field(
        "what every method of the run had to meet; absent if none was asked", "bench.plan"
    )
    budget: BudgetMet | None = declare_optional_field(
        "in place of ratio_budget where the budget was no number of parameters"
    )
    layers: Layers | None = declare_quantity("layers", "that are left", format_count, source="methods.model")
    dense_layers: SomeLayers | None = declare_optional_field("of the model before pruning", "methods.model")
    weight_bytes: Bytes | None = declare_quantity(
        "weights",
        "of the parameters in the model's dtype",
        format_bytes,
        source="methods.model",
        better="lower",
        view_columns="cost",
    )
    kv_bytes_per_token: Bytes | None = declare_quantity(
        "KV cache per token",
        "of the key-value cache",
        format_bytes,
        source="methods.model",
        better="lower",
        view_columns="cost",
    )
    state_bytes: Bytes | None = declare_quantity(
        "states",
        "of what mixers carry from token to token in a sequence; absent without mixers",
        format_bytes,
        source="methods.model",
        better="lower",
        view_columns="cost",
    )
    macs_per_token: Macs | None = declare_quantity(
        "macs per token",
        "per token in a sequence of macs_context tokens",
        format_significant,
        source="methods.model",
    )
    macs_context: Tokens | None = declare_quantity(
        "macs context", "over which they are averaged", format_significant, source="methods.model"
    )
    weights_sha256: Sha256 | None = declare_optional_field("of the dense model's weight files", "bench.data.pretrained")
    pruned_sha256: Sha256 | None = declare_optional_field(
        "of every tensor of the model that was measured", "bench.runs.inputs"
    )
    prune_seconds: Seconds | None = declare_quantity(
        "pruned in",
        "of pruning, with what earlier cells spent on removals or statistics that this one used; absent for dense",
        format_seconds,
        unit="s",
        better="lower",
        part="cost",
        view_columns="summary",
        note="",
    )
    search_seconds: tuple[Seconds, ...] | None = declare_optional_field(
        "of a greedy search, until each of its free_removals was found, by whichever cell",
        "bench.runs.searches",
    )
    weights_in: str | None = declare_optional_field(
        "files, where the weights lay in files and not in memory (docs/guides/large-models.md)"
    )
    states_in: str | None = declare_optional_field(
        "files, where states that waited while it pruned had a folder for them (--offload)"
    )
    peak_memory: dict[str, PeakOfStage] | None = declare_optional_field(
        "by stage of `seconds`; `together`: of all stages from pruning on, where they were not told apart",
        "bench.system.memory",
    )
    calibration_memory_mib: Mebibytes | None = declare_optional_field(
        "for the states of a micro-batch, where that followed from the memory that was free; absent for dense"
    )
    healing: Healing | None = declare_optional_field("how it was trained; absent unless healed")
    agreement: Agreement | None = declare_optional_field("with the server that scored; absent where this suite did")
    perplexity: dict[str, TextScore] | None = declare_optional_field("by text")
    positions: dict[str, RangeScore] | None = declare_optional_field(
        "by range of positions of a text's long windows, TEXT:FIRST-END"
    )
    tasks: dict[str, TaskScore] | None = declare_optional_field("by task")
    speed: Speed | None = declare_optional_field("absent unless asked for, and of several draws in all but the first")
    checks: Checks | None = declare_optional_field(
        "what the model says of itself; less of it without a text or with weights in files"
    )
    saved: SavedModel | None = declare_optional_field("where the pruned model was saved; absent unless it was")
    threads: dict[str, Count] | None = declare_optional_field(
        "by stage of `seconds`: the fewest that torch had, where --threads auto left cores to other programs",
        "bench.system.threads",
    )
    seconds: dict[str, Seconds] | None = declare_optional_field(
        "by stage: load, prune, heal, save, agreement, perplexity, tasks, speed, checks; what an interrupted attempt "
        "had finished takes none"
    )
    samples: dict[str, SampleFile] | None = declare_optional_field(
        "by file name without its ending", "bench.runs.store"
    )

    @property
    def text_scores(self) -> dict[str, TextScore]:
        """Return the scores of texts by name; empty where none was measured."""
        return self.perplexity or {}

    @property
    def range_scores(self) -> dict[str, RangeScore]:
        """Return the scores of ranges of positions by name, as in 'wiki:512-1024'; empty where none was measured."""
        return self.positions or {}

    @property
    def scores_of_windows(self) -> dict[str, TextScore | RangeScore]:
        """Return the scores of texts, and of ranges of positions, by name: all that has a sample for each window."""
        return {**self.text_scores, **self.range_scores}

    @property
    def task_scores(self) -> dict[str, TaskScore]:
        """Return the scores of tasks by name; empty where none was measured."""
        return self.tasks or {}

    @property
    def timed_points(self) -> tuple[PointTiming, ...]:
        """Return the sizes at which the model was timed; empty where it was not."""
        return (self.speed.points or ()) if self.speed else ()

    def refuse_misfit(self) -> None:
        """Raise ValueError for a budget of a model whose size is not there."""
        sizes = ("dense_parameters", "dense_parameters_without_embeddings")
        missing = [name for name in sizes if getattr(self, name) is None]
        if missing and self.ratio_budget is not None:
            raise ValueError(f"has ratio_budget, and no {missing[0]} beside it")
