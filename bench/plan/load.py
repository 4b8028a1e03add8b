"""Says how the server of an inference engine is loaded: how many requests there are, how long, and within which limits.

A level of load is `concurrency`, requests that wait at once, each followed by the next; or `rate`, requests that arrive
at random times, so many a second (a Poisson process), whether or not earlier ones have been answered.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from bench.plan.fields import check_fields, option
from methods.errors import UserError

UNITS = {"ms": 1.0, "s": 1000.0}
ALONE = ("prefill", "decode", "batches")  # fields of ServedProtocol that say what is timed without a load
LIMITED = ("ttft", "tpot", "latency")  # times of a request that may have a limit


@dataclass(frozen=True)
class LoadLevel:
    """Holds `concurrency`, requests that wait at once, or `rate`, requests a second."""

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.concurrency} at once" if self.concurrency else f"{self.rate:g} per second"


@dataclass(frozen=True)
class LoadProtocol:
    """Says how servers are loaded, all alike. Raises UserError for values that cannot be.

    A turn sends `requests_per_turn` requests, drawn by `load_seed` with lengths from both ranges, or read from the
    file `requests`. `slo` are limits of a request's times.
    """

    concurrency: tuple[int, ...] = option(
        (), "requests that wait at once, as in 1,4,16: the engine's own server is timed under load", "LIST", least=1
    )
    rate: tuple[float, ...] = option(
        (),
        "requests a second, which arrive at random, as in 0.5,2",
        "LIST",
        least=1e-9,
        right_value="a list of positive numbers",
    )
    requests: str = option("", "of requests in place of drawn ones: JSON lines with prompt and output_tokens", "FILE")
    requests_per_turn: int = option(16, "that a turn of a model sends, by default {default}", "N", least=2)
    prompt_tokens: str = option("64-192", "of a drawn request, evenly spread, by default {default}", "RANGE")
    output_tokens: str = option("16-48", "of a drawn request, evenly spread, by default {default}", "RANGE")
    slo: tuple[str, ...] = option(
        (), "limits for goodput, as in ttft=500ms,tpot=50ms; also latency, from sending to the last token", "LIST"
    )
    load_seed: int = option(0, "of the draw of requests and of their arrivals, by default {default}", "N")

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.levels:
            raise UserError("a load needs --concurrency or --rate")
        _ = self.prompt_range, self.output_range, self.limits

    @property
    def levels(self) -> list[LoadLevel]:
        """Return the levels in their order, by concurrency and then by rate."""
        closed = [LoadLevel(concurrency=each) for each in self.concurrency]
        return [*closed, *(LoadLevel(rate=each) for each in self.rate)]

    @property
    def prompt_range(self) -> tuple[int, int]:
        """Return the fewest and the most tokens of a drawn prompt."""
        return parse_range("--prompt-tokens", self.prompt_tokens)

    @property
    def output_range(self) -> tuple[int, int]:
        """Return the fewest and the most tokens of a drawn answer."""
        return parse_range("--output-tokens", self.output_tokens)

    @property
    def limits(self) -> dict[str, float]:
        """Return the milliseconds of each limit of a request: {'ttft': 500.0}."""
        return dict(map(parse_limit, self.slo))


def parse_range(flag: str, text: str) -> tuple[int, int]:
    """Return the ends of a range of tokens: '64-192' -> (64, 192), '128' -> (128, 128). Raises UserError."""
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise UserError(f"{flag} is a number of tokens, or a range as in 64-192; got {text!r}")
    return low, high


def parse_limit(word: str) -> tuple[str, float]:
    """Return the name and the milliseconds of a limit: 'ttft=0.5s' -> ('ttft', 500.0). Raises UserError."""
    match = re.fullmatch(r"(\w+)=(\d+(?:\.\d+)?)(ms|s)", word.strip())
    ms = float(match[2]) * UNITS[match[3]] if match else 0.0
    if not match or match[1] not in LIMITED or not 0 < ms < math.inf:
        raise UserError(f"--slo is a list of limits for {', '.join(LIMITED)}, as in ttft=500ms,tpot=50ms; got {word!r}")
    return match[1], ms
