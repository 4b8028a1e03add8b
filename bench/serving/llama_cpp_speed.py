"""Times two GGUF files beside each other in llama.cpp, both in one process and in turns, as bench.speed times models.

prefill  llama_decode of whole prompts on an empty cache; the last position of each has logits
decode   llama_decode of one token for each sequence behind `tokens` of context, to which each pass returns

Keys and values are in float16 and the other settings are the engine's own, since that is how it is used. The pruned
file is loaded first, and its memory is measured while it is alone. Token ids are random and the same for both files.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.serving import llama_cpp
from bench.speed import timing
from bench.speed.summary import is_narrow, summary
from bench.speed.timing import WallClock, Workload
from bench.speed.workloads import TimedPoint
from bench.system import environment, worker
from bench.system.failures import Failure, reason
from bench.system.process_memory import resident_bytes

KV_BYTES = 2  # of a number in the cache


def time(
    dense: Path,
    pruned: Path,
    points: Sequence[TimedPoint],
    *,
    steps: int,
    rounds: int,
    threads: int,
    minutes: float = llama_cpp.MINUTES,
    hear: Callable[[dict[str, Any]], object] = lambda news: None,
) -> tuple[dict[str, Any], Failure | None]:
    """Time both files at every point and return what bench.records.served calls engine, memory, points and machine.

    steps    tokens for each sequence in a pass of decode
    rounds   of dense against pruned, half of them where these are enough, as in bench.speed
    minutes  without a word after which the engine is ended
    hear     is given each piece as it comes

    What was told before a Failure stands.
    """
    found: dict[str, Any] = {"points": []}

    def merge(news: dict[str, Any]) -> None:
        hear(news)
        found["points"] += news.pop("points", [])
        found.update(news)

    task = {"dense": str(dense), "pruned": str(pruned), "points": list(points), "steps": steps, "rounds": rounds}
    failure = llama_cpp.run_alone(_time, task | {"threads": threads}, minutes, merge)
    return found, failure


def _time(line: worker.Line, task: dict[str, Any], complaints: str) -> None:
    """Do all of it in the engine's process."""
    engine = llama_cpp.Library(complaints)
    line.tell({"engine": engine.described | {"threads": task["threads"], "cache": "float16", "ubatch": engine.ubatch}})
    before, resident = environment.state(), resident_bytes()
    line.alive("while llama.cpp read the pruned file")
    files = {"pruned": engine.load(task["pruned"])}
    told: dict[str, Any] = {"resident_before_bytes": resident, "points": []}
    for point in task["points"]:
        line.alive(f"while it measured the memory of {point}")
        try:
            taken: dict[str, Any] = {"resident_bytes": _resident_at(engine, files["pruned"], point, task)}
        except ValueError as error:  # the engine's own word on this point
            taken = {"failed": reason(error)}
        told["points"].append(point.named | taken)
    line.tell({"memory": told})
    line.alive("while llama.cpp read the dense file")
    files = {"dense": engine.load(task["dense"]), **files}
    for point in task["points"]:
        try:
            timed = _in_turns(line, engine, files, point, task)
        except ValueError as error:  # the engine's own word on this point
            timed = {"failed": reason(error)}
        line.tell({"points": [point.named | timed]})
    line.tell({"machine": environment.between(before, environment.state())})


def _resident_at(engine: llama_cpp.Library, file: Any, point: TimedPoint, task: dict[str, Any]) -> int | None:
    """Return the bytes that the process has resident once a point was computed. Raises ValueError as the engine."""
    run = TimedFile(engine, file, point, task["steps"], task["threads"])
    try:
        _once(run.workload)
        return resident_bytes()
    finally:
        run.close()


def _once(work: Workload) -> None:
    work.reset()
    for _ in range(work.steps):
        work.step()


def _in_turns(
    line: worker.Line, engine: llama_cpp.Library, files: dict[str, Any], point: TimedPoint, task: dict[str, Any]
) -> dict[str, Any]:
    """Warm both files up at a point, time them in turns, and return the figures of bench.speed.summary."""
    runs = {name: TimedFile(engine, model, point, task["steps"], task["threads"]) for name, model in files.items()}
    works, clock = {name: run.workload for name, run in runs.items()}, WallClock()
    try:
        warm = {}
        for name, work in works.items():
            line.alive(f"while it warmed up the {name} file, {point}")
            warm[name] = timing.warm_up(work, clock)
        passes = timing.passes_per_turn(works, warm, task["rounds"])
        turns = timing.rounds(
            works, clock, task["rounds"], passes, lambda: line.alive(f"while it timed {point}"), enough=is_narrow
        )
        return summary(turns, warm)
    finally:
        for run in runs.values():
            run.close()


class TimedFile:
    """Holds a context of the engine for one file and point, and makes its workload of `ids` (batch, tokens)."""

    def __init__(self, engine: llama_cpp.Library, model: Any, point: TimedPoint, steps: int, threads: int) -> None:
        self.engine, self.point, self.depth = engine, point, point.tokens
        count = steps if point.kind == "decode" else 0
        length = point.tokens + count
        self.context = engine.context(model, length=length, sequences=point.batch, threads=threads)
        draw, V = random.Random(0), engine.vocabulary(model)
        self.ids = [[draw.randrange(V) for _ in range(length)] for _ in range(point.batch)]
        self.prompt = engine.batch([row[: self.depth] for row in self.ids], 0)
        self.steps = [engine.batch([row[at : at + 1] for row in self.ids], at) for at in range(self.depth, length)]
        self.at, self.filled = 0, False

    @property
    def workload(self) -> Workload:
        """Return what is timed."""
        if self.point.kind == "prefill":
            return Workload(lambda: self.engine.decode(self.context, self.prompt), self._empty)
        return Workload(self._step, self._rewind, len(self.steps))

    def _empty(self) -> None:
        self.engine.forget(self.context)

    def _rewind(self) -> None:
        """Bring the cache back to the prompt: cut behind it, or fill it anew where the engine cannot cut."""
        self.at = 0
        if not (self.filled and self.engine.cut(self.context, self.point.batch, self.depth)):
            self._empty()
            self.engine.decode(self.context, self.prompt)
            self.filled = True

    def _step(self) -> None:
        self.engine.decode(self.context, self.steps[self.at])
        self.at += 1

    def close(self) -> None:
        """Give back what the engine holds."""
        for batch in (self.prompt, *self.steps):
            self.engine.drop(batch)
        self.engine.close(self.context)
