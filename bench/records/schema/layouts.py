"""Describes whole records: that of a cell, and what an inference engine made of a cell's model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import model_validator

from bench.records.record import FAILED, REFUSED, SCHEMA, STATUSES
from bench.records.schema.asked import CellAsked
from bench.records.schema.decided import DecidedAll
from bench.records.schema.kinds import (
    DRAWN,
    Above,
    Bytes,
    Count,
    Layout,
    Name,
    OneOf,
    Parameters,
    Positive,
    Ratio,
    Sha256,
    Tokens,
    Whole,
    absent,
    needed,
)
from bench.records.schema.machine import Environment, MachineMeanwhile
from bench.records.schema.measured import MeasuredAll
from bench.records.schema.speed import MemoryAlone, PointTimed
from bench.records.served import SCHEMA as SERVED_SCHEMA
from bench.records.served import STATUSES as SERVED_STATUSES


class RecordLayout(Layout):
    """Describes a record: the outcome of one cell."""

    source: ClassVar[str] = "bench.run.job"

    number: Annotated[int, OneOf((SCHEMA,))] = needed("number of this layout", alias="schema")
    cell: CellAsked = needed("what was asked for")
    status: Annotated[str, OneOf(STATUSES)] = needed(
        f"{', '.join(REFUSED)}: what the method cannot do, which are outcomes; {', '.join(FAILED)}: failures, of which "
        "lost is of a machine that went away again and again"
    )
    error: str | None = needed("why the status is not ok, else null")
    environment: Environment = needed("where it was measured")
    decisions: DecidedAll = needed("what the method decided")
    measured: MeasuredAll = needed("what was measured")

    @model_validator(mode="after")
    def _layers_are_there(self) -> Self:
        """Refuse layers that the model did not have."""
        layers = self.measured.dense_layers
        for name in ("removed_layers", "removed_attention", "removed_mlp") if layers else ():
            if beyond := [number for number in getattr(self.decisions, name) or () if number >= layers]:
                raise ValueError(f"has {beyond[0]} in decisions.{name}, and measured.dense_layers is {layers}")
        return self


class EngineAsked(Layout):
    """Says what an inference engine was asked, of every model alike."""

    source: ClassVar[str] = "bench.plan.served"

    engine: Name = needed("llama.cpp, vllm or sglang")
    engine_python: str = absent("interpreter that has vllm or sglang")
    engine_args: str = absent("words for those")
    prefill: list[Tokens] = absent("prompt lengths that are timed")
    decode: list[Tokens] = absent("depths of context behind which tokens are generated")
    batches: list[Positive] = absent("sequences at once")
    steps: Positive = needed("tokens that a pass generates for each sequence")
    rounds: Positive = needed("of dense against pruned")
    text: str = needed("that the engine scores")
    windows: Count = needed("of that text")
    window: Tokens = needed("of each window")
    silence: Count = absent("seconds without a word after which the engine is ended")
    version: str = needed("of the engine")
    threads: Count = needed("of the engine")


class ModelServed(Layout):
    """Says which model was served."""

    source: ClassVar[str] = "bench.served.rows"

    pruned_sha256: Sha256 | None = absent("of the cell's record")
    name: str = needed("of the dense model for a reader")
    label: Name = needed("the method with its parameters")
    method: Name = needed("its name")
    dtype: Name = absent("of its cell, which is that of the dense model beside it")
    seed: Whole = absent("of its cell")
    requested_ratio: Ratio | None = needed("that was asked for; null for dense, and where parameters alone decide")
    ratio_of: Name = needed("what that is a share of")
    ratio: Ratio | None = needed("of the dense model's parameters that went")
    parameters: Parameters | None = needed("that are left")


class TextServed(Layout):
    """Says how well an engine predicts the text with the model."""

    source: ClassVar[str] = "bench.export.engine_check"

    text: Name = needed("its name")
    sha256: Sha256 = needed("of the windows' tokens")
    windows: Count = absent("that were read")
    drawn: bool = needed(DRAWN)
    window: Tokens = needed("of each window")
    tokens: Tokens = absent("that are scored")
    nll: list[float] = needed("nats of each window")
    perplexity: Above = needed("per token")
    perplexity_low: Above = absent("lower end of its 95 % interval over windows")
    perplexity_high: Above = absent("upper end of its 95 % interval over windows")


class EngineFound(Layout):
    """Describes the engine."""

    source: ClassVar[str] = "bench.serving"

    name: str = absent("llama.cpp, vllm or sglang")
    version: str = absent("of its package")
    commit: str = absent("of its source")
    system: str = absent("instructions of the processor that it uses")
    threads: Count = absent("with which it computes")


class ServedFound(Layout):
    """Holds what was found of a served model; what was not is absent."""

    source: ClassVar[str] = "bench.served.rows"

    format: str = absent("gguf or hf", "bench.export.formats")
    bytes: Bytes = absent("of the weights' files, with the vocabulary where it is in them")
    checks: list[list[Any]] = absent("[name, passed, found] of the engine's answers against this suite's")
    perplexity: TextServed = absent("by the engine")
    engine: EngineFound = absent("which it was")
    memory: MemoryAlone = absent("of the engine's process with this model alone")
    points: list[PointTimed] = absent(
        "each size; dense is the dense model in the type `base`, pruned this one; prefill at batch 1 is the time to "
        "the first token"
    )
    machine: MachineMeanwhile = absent("what else the machine did while both were timed")


class ServedLayout(Layout):
    """Describes a served record: what an inference engine made of one cell's model in one type of weights."""

    source: ClassVar[str] = "bench.served.rows"

    number: Annotated[int, OneOf((SERVED_SCHEMA,))] = needed("number of this layout", alias="schema")
    key: Name = needed("of the cell whose model it is")
    type: Name = needed("of its matrices in the file: float32, bfloat16, float16, q8_0 or q4_0")
    base: Name = needed("type of the dense model that it was timed beside")
    protocol: EngineAsked = needed("how the engine was asked")
    model: ModelServed = needed("which it is")
    status: Annotated[str, OneOf(SERVED_STATUSES)] = needed(
        "unsupported: no format of the engine holds the model; error: the model is not made again, or a check did not "
        "pass, and nothing was timed"
    )
    error: str | None = needed("why the status is not ok, else null")
    environment: Environment = needed("where it was served")
    measured: ServedFound = needed("what was found")
