"""Describes `cell` of a record: what was asked for (bench.plan.cell.Cell), and what the answer stands on."""

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
    absent,
    needed,
)


class HealingRecipe(Layout):
    """Says how a model is trained after pruning."""

    source: ClassVar[str] = "bench.plan.protocol"

    kind: Name = needed("lora: adapters; full: every weight")
    text: Name = needed("whose calibration half is trained on")
    tokens: Tokens = needed("that are trained on, repeats of a pass counted")
    loss: Name = needed("next-token, or kl from the dense model")
    passes: Positive = needed("over the text")
    learning_rate: float | None = needed("the highest; null in `cell` where the usual one of the kind was left", ge=0)
    batch: Positive = needed("sequences of a step")
    length: Tokens = needed("of a sequence")
    rank: Positive = needed("of the adapters")
    points: Positive = needed("of the learning curve, besides the one before training")
    seed: Whole = needed("of the draw of text, of its order, and of the adapters")
    steps: Count = absent("of the optimiser, in `measured` alone")


class StageAsked(Layout):
    """Says what was done to a model before a cell that goes on from others."""

    source: ClassVar[str] = "bench.plan.cell"

    method: Name = needed("name of the method, with +NAME of a compensation")
    parameters: dict[str, Any] = needed("of the method by name, defaults too", "methods")
    ratio: Ratio | None = needed("that was asked for, of the dense model; null where parameters alone decide")
    given: list[str] = absent("names of the parameters that were given, which are in the label")
    healing: HealingRecipe | None = absent("how it was trained; null or absent: it was not")

    @model_validator(mode="after")
    def _given_is_there(self) -> Self:
        """Refuse a name that the label needs and no parameter has."""
        if missing := [name for name in self.given or () if name not in self.parameters]:
            raise ValueError(f"gives {missing[0]!r}, and its parameters have none of that name")
        return self


class MeasuringProtocol(Layout):
    """Says how every cell of a run is measured."""

    source: ClassVar[str] = "bench.plan.protocol"

    profile: Name = needed("name of the set of settings that the others changed, as in quick")
    tasks: list[str] = needed("that are answered")
    documents: Count = absent("of each task; 0: all")
    texts: list[str] = needed("whose perplexity is measured")
    window: Tokens = needed("of a perplexity window")
    stride: Tokens = needed("from window to window")
    windows: Count = absent("of each text; 0: all")
    windows_drawn: bool = absent("whether they are drawn from the text; else they are the first ones")
    calibration: Name = needed("text that methods look at")
    calibration_sequences: Positive = needed("of that text")
    calibration_length: Tokens = needed("of each sequence")
    prefill: list[Tokens] = needed("prompt lengths that are timed")
    decode: list[Tokens] = needed("depths of context behind which steps are timed")
    batches: list[Positive] = needed("sequences at once, the first for the main table", min_length=1)
    speed_rounds: Count = needed("of dense against pruned; 0: nothing is timed")
    decode_steps: Positive = absent("steps of a pass, each a token for every sequence")
    max_batch: Count = absent("largest batch of a sweep over 1, 2, 4, ...; 0: no sweep")
    cache: Name = needed("dynamic: grows with every token; static: allocated once")
    compile: bool = needed("whether torch.compile is used for timing")
    mode: Name = absent("graph: decode steps are captured once and replayed; eager: they are not")
    pin: list[Count] = absent("numbers of the cores that are timed on; none: all")
    speed_limit: Seconds = absent("of silence after which timing is given up")
    calibration_memory_mib: Mebibytes = absent("for the states of a micro-batch; 0: an eighth of what is free")
    batch_tokens: Tokens = absent("of one forward when scoring")
    scorer: Name = absent("shared: every common prefix once; stock: lm-eval's own backend")
    fewshot: Count = absent("examples in front of each question; 0: as many as the task says")
    task_data: list[list[str]] = absent("[task, path, sha256] of tasks whose documents are local files")
    checks: bool = absent("whether text is generated and compared with the dense model's")
    save_dtype: str = absent("dtype in which pruned models are saved before they are measured; empty: not saved")


class TaskInput(Layout):
    """Says which documents of a task are asked."""

    source: ClassVar[str] = "bench.evaluation.tasks"

    version: Scalar = absent("of lm-eval's definition of the task")
    sha256: Sha256 = absent("of the documents and of how they are asked")


class TimedOn(Layout):
    """Says on what a timed cell is timed."""

    source: ClassVar[str] = "bench.runs.inputs"

    processor: str | None = absent("name of the CPU or GPU")
    threads: Count = absent("of torch")
    omp_wait_policy: str = absent("whether threads spin while they wait")
    gomp_spincount: str = absent("for how many turns")


class HealingInput(Layout):
    """Says what the answer of a healed cell stands on beside the pruned model."""

    source: ClassVar[str] = "bench.runs.inputs"

    text_sha256: Sha256 = absent("of the tokens")
    revision: str = absent("of the code that trains")
    peft: str = absent("its version, for LoRA")


class CellInputs(Layout):
    """Says what the answer stands on beyond what was asked for, all of it a part of the cell's key."""

    source: ClassVar[str] = "bench.runs.inputs"

    weights_sha256: Sha256 = absent("of the model's weight files")
    config_sha256: Sha256 = absent(
        "of its configuration files, and of code that comes with it where that ran; absent for a GGUF file, whose "
        "weights' hash covers it"
    )
    tokenizer_sha256: Sha256 = absent("of the tokenizer's vocabulary, rules and special tokens")
    calibration_sha256: Sha256 = absent("of the calibration tokens and their mask")
    texts: dict[str, Sha256] = absent("by name, of the tokens of the windows and of what is scored of them")
    tasks: dict[str, TaskInput] = absent("by name")
    revision: str = absent(
        "of the method and of its compensation, as in 1 or 1+1; behind it the sha256 of a plugin, of methods that "
        "differ from their commit, or of earlier code that may have decided otherwise, whose revision is 0"
    )
    versions: dict[str, str] = absent("of packages, by name")
    timed_on: TimedOn = absent("of a timed cell alone")
    healing: HealingInput = absent("of a healed cell alone")
    parent: str = absent("key of the cell whose model is pruned further, of a cell that goes on from others alone")


class LatencyParts(Layout):
    """Says how long a generated token takes in each part of a layer, by its size."""

    source: ClassVar[str] = "bench.speed.latency"

    attention: list[Pair] = absent("[parameters, ms] of an attention, rising")
    mlp: list[Pair] = absent("[parameters, ms] of an MLP, rising")


class LatencyAsked(Layout):
    """Holds the table by which a budget of latency is told."""

    source: ClassVar[str] = "bench.speed.latency"

    parts: LatencyParts = absent("of a layer")
    rest: float = absent("milliseconds of all that is no layer")
    about: dict[str, Any] = absent("how it was measured: model, machine, rounds, and each model that was timed")


class CellAsked(StageAsked):
    """Says what was asked for; the file's name ends in a hash of it."""

    model: Name = needed("name, folder, file or hub address of the dense model")
    display_name: str = absent("the model's name for a reader", "bench.data.pretrained")
    label: Name = absent("the method and the parameters that were given, as in laco:C=3")
    match: Literal["layers", "exact"] = needed("layers: the ratio was rounded to whole layers; exact: it was not")
    ratio_of: Name = absent("what the ratio is a share of: all, decoder, layers, macs, kv, bytes, latency")
    seed: Whole = needed("of the calibration text, of the documents of tasks, and of what a method draws")
    device: Name = needed("cpu, cuda or one of several, as torch calls it")
    dtype: Name = needed("in which the model is loaded, as in float32")
    protocol: MeasuringProtocol = needed("how it is measured")
    trust_remote_code: bool = absent("whether code that comes with the model may run")
    inputs: CellInputs = absent("what the answer stands on, filled in by the run")
    earlier: list[StageAsked] = absent("what was done to the model before, the first one first")
    latency: LatencyAsked = absent("the table by which a budget of latency is told; absent for any other")
