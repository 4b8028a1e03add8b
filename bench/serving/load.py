"""Times two models under load, each behind the engine's own server: many requests at once, dense and pruned in turns.

A turn sends as many requests to one server, while the other one waits idle. Both models have the same requests in the
same round, others in the next. The ratio of a round's turns is paired, as all speed-ups are (bench.speed.timing). A
turn that does not count comes before each level. All this is done in several processes, each of which reads its model
anew: the interval of a ratio reaches over theirs (bench.stats.intervals.join_ratios).

Percentiles are over all requests of a model (numpy's, linear). Goodput counts the requests within every limit, per
second (Y. Zhong et al., "DistServe", OSDI 2024, section 2.2; `--goodput` of vLLM's benchmark of serving).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.inference.engine_process import EngineFailed
from bench.inference.load_client import LoadRequest, RequestTiming, send_all
from bench.inference.server import ServerProcess
from bench.plan.kinds import to_plain
from bench.plan.load import LoadLevel, LoadProtocol
from bench.plan.protocol import ServedProtocol
from bench.records.load_results import LevelTiming, LoadAsked, ModelUnderLoad, TurnUnderLoad
from bench.serving.adapters import ExportedModel, NotServed, ServingEngine
from bench.speed import timing
from bench.speed.benchmark import is_narrow, widen_interval
from bench.speed.timing import ClockOfEngine, Pass, Workload
from bench.stats.intervals import is_inconsistent, join_ratios, paired_ratio
from bench.system import environment
from methods.errors import UserError

PERCENTILES = (50, 95, 99)
MOST_SLOTS = 16  # of llama.cpp's server where requests arrive at a rate


@dataclass(frozen=True)
class LoadPass(Pass):
    """Holds a turn: `ms` are the latencies of its requests."""

    requests: tuple[RequestTiming, ...]


TurnsByModel = Mapping[str, Sequence[LoadPass]]  # of the dense and of the pruned model, in the order of the rounds


@dataclass(frozen=True)
class RequestSource:
    """Makes the requests of each turn: those of a file one after the other, or drawn ones.

    vocabulary  number of tokens that prompts are drawn from
    """

    load: LoadProtocol
    vocabulary: int
    from_file: tuple[LoadRequest, ...] = ()

    def make_turn(self, level: LoadLevel, number: int) -> list[LoadRequest]:
        """Return the requests of a turn, the same for both models."""
        load, count = self.load, self.load.requests_per_turn
        draw = random.Random(f"{load.load_seed} {number}")
        if self.from_file:
            requests = [self.from_file[(number * count + each) % len(self.from_file)] for each in range(count)]
        else:
            requests = [self._draw_request(draw) for _ in range(count)]
        if level.rate is None:
            return requests
        arrivals = [0.0]
        for _ in requests[1:]:
            arrivals.append(arrivals[-1] + draw.expovariate(level.rate))
        return [LoadRequest(each.prompt, each.output_tokens, at) for each, at in zip(requests, arrivals, strict=True)]

    def _draw_request(self, draw: random.Random) -> LoadRequest:
        length, tokens = draw.randint(*self.load.prompt_range), draw.randint(*self.load.output_range)
        return LoadRequest(tuple(draw.choices(range(self.vocabulary), k=length)), tokens)

    @property
    def context(self) -> int:
        """Return the most tokens of a request: of its prompt and its answer together."""
        if self.from_file:
            return max(len(each.prompt) + each.output_tokens for each in self.from_file)
        return self.load.prompt_range[1] + self.load.output_range[1]

    @property
    def slots(self) -> int:
        """Return how many requests wait at once, of arriving ones as many as a server without a queue would need."""
        arriving = min(self.load.requests_per_turn, MOST_SLOTS) if self.load.rate else 1
        return max(arriving, *self.load.concurrency, 1)


def read_requests(path: Path, tokenizer: Any) -> tuple[LoadRequest, ...]:
    """Return the requests of a file of JSON lines: `prompt`, a text or token ids, and `output_tokens`.

    Raises UserError for a file or a line that is none.
    """
    requests = []
    for number, line in enumerate(_read_file(path).splitlines(), start=1):
        try:
            facts = json.loads(line)
            prompt, tokens = facts["prompt"], facts["output_tokens"]
            ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
            if not ids or not all(type(each) is int and 0 <= each < len(tokenizer) for each in ids):
                raise ValueError
            if type(tokens) is not int or tokens < 1:
                raise ValueError
        except (ValueError, LookupError, TypeError):
            form = 'as in {"prompt": "text or token ids", "output_tokens": 16}'
            raise UserError(f"--requests {path}: line {number} is no request {form}") from None
        requests.append(LoadRequest(tuple(ids), tokens))
    if not requests:
        raise UserError(f"--requests {path} is empty")
    return tuple(requests)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"--requests {path} cannot be read: {error.strerror}") from None


def describe_load(load: LoadProtocol) -> LoadAsked:
    """Return what a record says of a load, whose file of requests goes by its hash. Raises UserError."""
    drawn = not load.requests
    return LoadAsked(
        concurrency=load.concurrency,
        rate=load.rate,
        requests_sha256=None if drawn else hashlib.sha256(_read_file(Path(load.requests))).hexdigest(),
        requests_per_turn=load.requests_per_turn,
        prompt_tokens=load.prompt_tokens if drawn else None,
        output_tokens=load.output_tokens if drawn else None,
        limits=load.limits,
        load_seed=load.load_seed,
    )


def time_under_load(
    engine: ServingEngine,
    dense: ExportedModel,
    exported: ExportedModel,
    protocol: ServedProtocol,
    requests: RequestSource,
    *,
    hear: Callable[[str], object],
) -> dict[str, Any]:
    """Return `engine`, `load` and `machine` of bench.records.served, of a model beside the dense one.

    hear  gets a line on each level once it is timed

    Raises NotServed, with the levels that were timed, where a server fails or does not answer.
    """
    about = {"name": engine.name, "version": engine.version, "threads": engine.threads, "slots": requests.slots}
    measured: dict[str, Any] = {"engine": about}
    levels = requests.load.levels
    turns_of_processes: dict[LoadLevel, list[TurnsByModel]] = {level: [] for level in levels}
    before = environment.state_of_machine()
    try:
        for number in range(1, protocol.processes + 1):
            with ExitStack() as kept:
                servers = dict[str, ServerProcess]()
                for name, model in (("dense", dense), ("pruned", exported)):
                    servers[name] = kept.enter_context(engine.make_server(model, requests.context, requests.slots))
                for level in levels:
                    turns = time_level(servers, protocol, requests, level)
                    turns_of_processes[level].append(turns)
                    process = f"process {number}: " if protocol.processes > 1 else ""
                    hear(f"{process}{_words_of_level(summarise_level(level, requests.load.limits, [turns]))}")
    except EngineFailed as error:
        trouble: EngineFailed | None = error
    else:
        trouble = None
    timed = [summarise_level(level, requests.load.limits, each) for level, each in turns_of_processes.items() if each]
    measured |= {"load": to_plain(timed)}
    if trouble:
        raise NotServed(trouble.status, str(trouble), measured)
    return measured | {"machine": environment.load_between_states(before, environment.state_of_machine())}


def time_level(
    servers: Mapping[str, ServerProcess], protocol: ServedProtocol, requests: RequestSource, level: LoadLevel
) -> TurnsByModel:
    """Return the turns of both models at a level, behind one that does not count. Raises EngineFailed."""
    works = {}
    for name, server in servers.items():
        sending = _send_turns(server, requests, level, protocol.silence)
        next(sending)
        works[name] = Workload(sending.__next__, lambda: None)
    rounds: dict[str, Any] = dict(timing.time_rounds(works, ClockOfEngine(), protocol.rounds, 1, enough=is_narrow))
    return {name: list(chain.from_iterable(each)) for name, each in rounds.items()}


def _send_turns(server: ServerProcess, requests: RequestSource, level: LoadLevel, seconds: float) -> Iterator[LoadPass]:
    """Yield one turn after the other as they are sent."""
    number = 0
    while True:
        turn = requests.make_turn(level, number)
        timings, ms = send_all(server, turn, level.concurrency or len(turn), seconds)
        yield LoadPass([each.latency_ms for each in timings], ms, tuple(timings))
        number += 1


def summarise_level(level: LoadLevel, limits: Mapping[str, float], processes: Sequence[TurnsByModel]) -> LevelTiming:
    """Return what follows from the turns of both models in each process.

    limits  milliseconds of a request's ttft, tpot and latency
    """
    ratios: dict[str, list[tuple[float, float, float]]] = {}
    for turns in processes:
        for name, ratio in _ratios_of_turns(turns).items():
            ratios.setdefault(name, []).append(ratio)
    flags = {
        "noisy": any(map(_is_noisy, processes)),
        "processes_disagree": is_inconsistent(ratios["tokens_per_second"]),
    }
    return LevelTiming(
        concurrency=level.concurrency,
        rate=level.rate,
        dense=summarise_model(limits, list(chain.from_iterable(turns["dense"] for turns in processes))),
        pruned=summarise_model(limits, list(chain.from_iterable(turns["pruned"] for turns in processes))),
        times_as_fast={name: join_ratios(each) for name, each in ratios.items()},
        by_process={name: tuple(each) for name, each in ratios.items()} if len(processes) > 1 else None,
        flags=tuple(name for name, holds in flags.items() if holds),
    )


def _is_noisy(turns: TurnsByModel) -> bool:
    """Say whether the turns of a model in one process differ by more than their limit."""
    rates = [list(map(_rate_of_turn, mine)) for mine in turns.values()]
    return any(timing.variation_of(each) > timing.NOISY for each in rates)


def _ratios_of_turns(turns: TurnsByModel) -> dict[str, tuple[float, float, float]]:
    """Return how many times as fast the pruned model is in one process, each with its interval."""
    rates = {name: list(map(_rate_of_turn, mine)) for name, mine in turns.items()}
    ratios = {"tokens_per_second": widen_interval(*paired_ratio(rates["pruned"], rates["dense"]))}
    for name in ("ttft", "tpot"):
        dense, pruned = (_medians_of_turns(turns[model], name) for model in ("dense", "pruned"))
        if dense and pruned:
            ratios[name] = widen_interval(*paired_ratio(dense, pruned))
    return ratios


def summarise_model(limits: Mapping[str, float], turns: Sequence[LoadPass]) -> ModelUnderLoad:
    """Return the figures of one model over all its turns."""
    requests = list(chain.from_iterable(each.requests for each in turns))
    seconds = sum(each.wall_ms for each in turns) / 1e3
    within = sum(_is_within(each, limits) for each in requests)
    return ModelUnderLoad(
        turns=tuple(map(_describe_turn, turns)),
        ttft_ms=_percentiles(_times_of(requests, "ttft")),
        tpot_ms=_percentiles(_times_of(requests, "tpot")) or None,
        itl_ms=_percentiles(list(chain.from_iterable(each.itl_ms for each in requests))) or None,
        latency_ms=_percentiles(_times_of(requests, "latency")),
        tokens_per_second=_tokens(requests) / seconds,
        requests_per_second=len(requests) / seconds,
        goodput=within / seconds if limits else None,
    )


def _describe_turn(turn: LoadPass) -> TurnUnderLoad:
    return TurnUnderLoad(
        seconds=round(turn.wall_ms / 1e3, 6),
        ttft_ms=tuple(round(each.ttft_ms, 3) for each in turn.requests),
        latency_ms=tuple(round(each.latency_ms, 3) for each in turn.requests),
        tokens=tuple(each.tokens for each in turn.requests),
    )


def _tokens(requests: Sequence[RequestTiming]) -> int:
    return sum(each.tokens for each in requests)


def _times_of(requests: Sequence[RequestTiming], name: str) -> list[float]:
    """Return a time of each request that has it, in milliseconds."""
    times = [getattr(each, f"{name}_ms") for each in requests]
    return [each for each in times if each is not None]


def _rate_of_turn(turn: LoadPass) -> float:
    """Return the tokens per second of a turn."""
    return 1e3 * _tokens(turn.requests) / turn.wall_ms


def _medians_of_turns(turns: Sequence[LoadPass], name: str) -> list[float]:
    """Return the median of a time of requests for each turn; empty where a turn has no such time."""
    times = [_times_of(turn.requests, name) for turn in turns]
    return list(map(median, times)) if all(times) else []


def _percentiles(values: Sequence[float]) -> list[float]:
    """Return the percentiles of values; empty without values."""
    return [float(each) for each in np.percentile(values, PERCENTILES)] if values else []


def _is_within(request: RequestTiming, limits: Mapping[str, float]) -> bool:
    """Say whether a request keeps every limit; an answer of one token keeps that of tokens behind the first."""
    return all((getattr(request, f"{name}_ms") or 0.0) <= limit for name, limit in limits.items())


def _words_of_level(level: LevelTiming) -> str:
    """Return what came of a level in words, for the user."""
    pruned, faster = level.pruned, level.times_as_fast["tokens_per_second"][0]
    rate = f"{pruned.tokens_per_second:,.1f} tokens/s, {faster:.2f} times the dense model's"
    return f"{level.name}: {rate}, first token after {pruned.ttft_ms[0]:,.0f} ms"
