"""Describes `cell` of a record: the cell (bench.plan.cell.Cell), and the inputs that its answer stands on."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from bench.plan.kinds import (
    Count,
    Layout,
    Mebibytes,
    Name,
    Pair,
    Positive,
    Ratio,
    Scalar,
    Seconds,
    Sha256,
    Tokens,
    Whole,
    declare_field,
    declare_optional_field,
)


class HealingRecipe(Layout):
    """Says how a model is trained after pruning."""

    source: ClassVar[str] = "bench.plan.protocol"

    kind: Name = declare_field("lora: adapters; full: every weight")
    text: Name = declare_field("whose calibration half is trained on")
    tokens: Tokens = declare_field("that are trained on, repeats of a pass counted")
    loss: Name = declare_field("next-token, or kl from the dense model")
    passes: Positive = declare_field("over the text")
    learning_rate: float | None = declare_field(
        "the highest; null in `cell` where the usual one of the kind was left", ge=0
    )
    batch: Positive = declare_field("sequences of a step")
    length: Tokens = declare_field("of a sequence")
    rank: Positive = declare_field("of the adapters")
    points: Positive = declare_field("of the learning curve, besides the one before training")
    seed: Whole = declare_field("of the draw of text, of its order, and of the adapters")
    steps: Count = declare_optional_field("of the optimiser, in `measured` alone")


class StageAsked(Layout):
    """Says what was done to a model before a cell that goes on from others."""

    source: ClassVar[str] = "bench.plan.cell"

    method: Name = declare_field("name of the method, with +NAME of a compensation")
    parameters: dict[str, Any] = declare_field("of the method by name, defaults too", "methods")
    ratio: Ratio | None = declare_field("that was asked for, of the dense model; null where parameters alone decide")
    given: list[str] = declare_optional_field("names of the parameters that were given, which are in the label")
    healing: HealingRecipe | None = declare_optional_field("how it was trained; null or absent: it was not")

    @model_validator(mode="after")
    def _given_is_there(self) -> Self:
        """Refuse a name that the label needs and no parameter has."""
        if missing := [name for name in self.given or () if name not in self.parameters]:
            raise ValueError(f"gives {missing[0]!r}, and its parameters have none of that name")
        return self


class MeasuringProtocol(Layout):
    """Says how every cell of a run is measured."""

    source: ClassVar[str] = "bench.plan.protocol"

    profile: Name = declare_field("name of the set of settings that the others changed, as in quick")
    tasks: list[str] = declare_field("that are answered")
    documents: Count = declare_optional_field("of each task; 0: all")
    texts: list[str] = declare_field("whose perplexity is measured")
    window: Tokens = declare_field("of a perplexity window")
    stride: Tokens = declare_field("from window to window")
    windows: Count = declare_optional_field("of each text; 0: all")
    windows_drawn: bool = declare_optional_field("whether they are drawn from the text; else they are the first ones")
    calibration: Name = declare_field("text that methods look at")
    calibration_sequences: Positive = declare_field("of that text")
    calibration_length: Tokens = declare_field("of each sequence")
    prefill: list[Tokens] = declare_field("prompt lengths that are timed")
    decode: list[Tokens] = declare_field("depths of context behind which steps are timed")
    batches: list[Positive] = declare_field("sequences at once, the first for the main table", min_length=1)
    speed_rounds: Count = declare_field("of dense against pruned; 0: nothing is timed")
    decode_steps: Positive = declare_optional_field("steps of a pass, each a token for every sequence")
    max_batch: Count = declare_optional_field("largest batch of a sweep over 1, 2, 4, ...; 0: no sweep")
    cache: Name = declare_field("dynamic: grows with every token; static: allocated once")
    compile: bool = declare_field("whether torch.compile is used for timing")
    mode: Name = declare_optional_field("graph: decode steps are captured once and replayed; eager: they are not")
    pin: list[Count] = declare_optional_field("numbers of the cores that are timed on; none: all")
    speed_limit: Seconds = declare_optional_field("of silence after which timing is given up")
    calibration_memory_mib: Mebibytes = declare_optional_field(
        "for the states of a micro-batch; 0: an eighth of what is free"
    )
    batch_tokens: Tokens = declare_optional_field("of one forward when scoring")
    scorer: Name = declare_optional_field("shared: every common prefix once; stock: lm-eval's own backend")
    fewshot: Count = declare_optional_field("examples in front of each question; 0: as many as the task says")
    task_data: list[list[str]] = declare_optional_field("[task, path, sha256] of tasks whose documents are local files")
    checks: bool = declare_optional_field("whether text is generated and compared with the dense model's")
    save_dtype: str = declare_optional_field(
        "dtype in which pruned models are saved before they are measured; empty: not saved"
    )


class TaskInput(Layout):
    """Says which documents of a task are asked."""

    source: ClassVar[str] = "bench.evaluation.tasks"

    version: Scalar = declare_optional_field("of lm-eval's definition of the task")
    sha256: Sha256 = declare_optional_field("of the documents and of how they are asked")


class TimedOn(Layout):
    """Says on what a timed cell is timed."""

    source: ClassVar[str] = "bench.runs.inputs"

    processor: str | None = declare_optional_field("name of the CPU or GPU")
    threads: Count = declare_optional_field("of torch")
    omp_wait_policy: str = declare_optional_field("whether threads spin while they wait")
    gomp_spincount: str = declare_optional_field("for how many turns")


class HealingInput(Layout):
    """Says what the answer of a healed cell stands on beside the pruned model."""

    source: ClassVar[str] = "bench.runs.inputs"

    text_sha256: Sha256 = declare_optional_field("of the tokens")
    revision: str = declare_optional_field("of the code that trains")
    peft: str = declare_optional_field("its version, for LoRA")


class CellInputs(Layout):
    """Says what the answer stands on beyond what was asked for, all of it a part of the cell's key."""

    source: ClassVar[str] = "bench.runs.inputs"

    weights_sha256: Sha256 = declare_optional_field("of the model's weight files")
    config_sha256: Sha256 = declare_optional_field(
        "of its configuration files, and of code that comes with it where that ran; absent for a GGUF file, whose "
        "weights' hash covers it"
    )
    tokenizer_sha256: Sha256 = declare_optional_field("of the tokenizer's vocabulary, rules and special tokens")
    calibration_sha256: Sha256 = declare_optional_field("of the calibration tokens and their mask")
    texts: dict[str, Sha256] = declare_optional_field(
        "by name, of the tokens of the windows and of what is scored of them"
    )
    tasks: dict[str, TaskInput] = declare_optional_field("by name")
    revision: str = declare_optional_field(
        "of the method and of its compensation, as in 1 or 1+1; behind it the sha256 of a plugin, of methods that "
        "differ from their commit, or of earlier code that may have decided otherwise, whose revision is 0"
    )
    versions: dict[str, str] = declare_optional_field("of packages, by name")
    timed_on: TimedOn = declare_optional_field("of a timed cell alone")
    healing: HealingInput = declare_optional_field("of a healed cell alone")
    parent: str = declare_optional_field(
        "key of the cell whose model is pruned further, of a cell that goes on from others alone"
    )


class LatencyParts(Layout):
    """Says how long a generated token takes in each part of a layer, by its size."""

    source: ClassVar[str] = "bench.speed.latency"

    attention: list[Pair] = declare_optional_field("[parameters, ms] of an attention, rising")
    mlp: list[Pair] = declare_optional_field("[parameters, ms] of an MLP, rising")


class LatencyAsked(Layout):
    """Holds the table by which a budget of latency is told."""

    source: ClassVar[str] = "bench.speed.latency"

    parts: LatencyParts = declare_optional_field("of a layer")
    rest: float = declare_optional_field("milliseconds of all that is no layer")
    about: dict[str, Any] = declare_optional_field(
        "how it was measured: model, machine, rounds, and each model that was timed"
    )


class CellAsked(StageAsked):
    """Says what was asked for; the file's name ends in a hash of it."""

    model: Name = declare_field("name, folder, file or hub address of the dense model")
    display_name: str = declare_optional_field("the model's name for a reader", "bench.data.pretrained")
    label: Name = declare_optional_field("the method and the parameters that were given, as in laco:C=3")
    match: Literal["layers", "exact"] = declare_field(
        "layers: the ratio was rounded to whole layers; exact: it was not"
    )
    ratio_of: Name = declare_optional_field(
        "what the ratio is a share of: all, decoder, layers, macs, kv, bytes, latency"
    )
    seed: Whole = declare_field("of the calibration text, of the documents of tasks, and of what a method draws")
    device: Name = declare_field("cpu, cuda or one of several, as torch calls it")
    dtype: Name = declare_field("in which the model is loaded, as in float32")
    protocol: MeasuringProtocol = declare_field("how it is measured")
    trust_remote_code: bool = declare_optional_field("whether code that comes with the model may run")
    inputs: CellInputs = declare_optional_field("what the answer stands on, filled in by the run")
    earlier: list[StageAsked] = declare_optional_field("what was done to the model before, the first one first")
    latency: LatencyAsked = declare_optional_field(
        "the table by which a budget of latency is told; absent for any other"
    )
