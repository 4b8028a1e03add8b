"""Describes what a served record holds of a model under load, beside the dense one: every request, and what follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt, Len

from bench.plan.kinds import Amount, Milliseconds, Name, Positive, Seconds, Sha256, Times, Unit, Whole, declare_field
from bench.plan.kinds import declare_optional_field as declare_optional

Percentiles = Annotated[list[float], Len(3, 3), Unit("ms")]
PER_SECOND = "per second, over the time of all turns"


@dataclass(frozen=True, kw_only=True)
class LoadAsked:
    """Says how servers were loaded."""

    SOURCE: ClassVar[str] = "bench.plan.load"

    concurrency: tuple[Positive, ...] = declare_field("requests that wait at once, a level each")
    rate: tuple[Amount, ...] = declare_field("requests a second, which arrive at random, a level each")
    requests_sha256: Sha256 | None = declare_optional("of the file of requests; absent where they are drawn")
    requests_per_turn: Positive = declare_field("that a turn of a model sends")
    prompt_tokens: Name | None = declare_optional("of a drawn request: a number or a range")
    output_tokens: Name | None = declare_optional("of a drawn request: a number or a range")
    limits: dict[str, Milliseconds] = declare_field("of a request's ttft, tpot and latency, which goodput counts by")
    load_seed: Whole = declare_field("of the draw of requests and of their arrivals")


@dataclass(frozen=True, kw_only=True)
class TurnUnderLoad:
    """Holds each request of one turn, in the order in which they ended."""

    SOURCE: ClassVar[str] = "bench.inference.load_client"

    seconds: Seconds = declare_field("from the first sending to the last answer")
    ttft_ms: tuple[Milliseconds, ...] = declare_field("time to the first token")
    latency_ms: tuple[Milliseconds, ...] = declare_field("from sending to the last token")
    tokens: tuple[Positive, ...] = declare_field("of the answer")


@dataclass(frozen=True, kw_only=True)
class ModelUnderLoad:
    """Says how one model was served at one level; three numbers are the 50th, 95th and 99th percentile of requests."""

    SOURCE: ClassVar[str] = "bench.serving.load"

    turns: tuple[TurnUnderLoad, ...] = declare_field("every turn, in the order of the rounds")
    ttft_ms: Percentiles = declare_field("time to the first token")
    tpot_ms: Percentiles | None = declare_optional("time per token behind the first; absent for answers of one token")
    itl_ms: Percentiles | None = declare_optional("between two pieces of an answer, over all pieces of all requests")
    latency_ms: Percentiles = declare_field("from sending to the last token")
    tokens_per_second: Amount = declare_field(f"generated, of all requests, {PER_SECOND}")
    requests_per_second: Amount = declare_field(f"that were answered, {PER_SECOND}")
    goodput: Amount | None = declare_optional(f"requests within all limits, {PER_SECOND}")


@dataclass(frozen=True, kw_only=True)
class LevelTiming:
    """Holds one level of load: both models in turns, and how many times as fast the pruned one is."""

    SOURCE: ClassVar[str] = "bench.serving.load"

    concurrency: Positive | None = declare_optional("requests that wait at once")
    rate: Annotated[float, Gt(0)] | None = declare_optional("requests a second")
    dense: ModelUnderLoad = declare_field("the dense model in the type `base`")
    pruned: ModelUnderLoad = declare_field("this model")
    times_as_fast: dict[str, tuple[Times, Times, Times]] = declare_field(
        "by tokens_per_second, ttft (time to the first token) and tpot (per token behind it): the ratio of the turns "
        "of each round, and both ends of its 95 % interval"
    )
    by_process: dict[str, tuple[tuple[Times, Times, Times], ...]] | None = declare_optional(
        "the same in each process that read its model anew; each ratio above is then their geometric mean, and its "
        "interval the range of theirs",
        "bench.stats.intervals",
    )
    flags: tuple[str, ...] = declare_field(
        "noisy: turns of a model differ by more than their limit; processes_disagree: their intervals of tokens per "
        "second share nothing"
    )

    @property
    def name(self) -> str:
        """Return the level in words: '4 at once'."""
        return f"{self.concurrency} at once" if self.concurrency else f"{self.rate:g} per second"
