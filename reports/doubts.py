"""What is in doubt about a cell: a flag is a fixed word with a fixed sentence, and a doubt is a flag of one cell."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.records.columns import MISS, STAGES, missed
from bench.records.comparability import dense_peer, other_versions
from bench.records.fits import SMALL, misfits
from bench.records.record import Record, ratio_of, requested_ratio
from methods.counted import QUANTITIES
from reports.metrics import METRICS


@dataclass(frozen=True)
class Flag:
    """A fixed word for a doubt about a cell.

    sentence  what it means, with places for the cell's name and values
    mark      what stands at the figures that are in doubt, where anything does
    """

    word: str
    sentence: str
    mark: str = ""


@dataclass(frozen=True)
class Doubt:
    """A flag of a cell, which its table calls `name`, with the values for the flag's sentence."""

    flag: Flag
    name: str
    values: Mapping[str, Any]

    @property
    def sentence(self) -> str:
        """Return the flag's sentence about this cell."""
        return self.flag.sentence.format(name=self.name, **self.values)


MISSED = Flag("missed", "* {name} misses the {miss}.", mark="*")
MISFIT = Flag(
    "misfit",
    "{name}: a fit does not hold on calibration sequences that it has not seen: {where} it misses {held_out:.2g} of "
    "the squared states of {tokens} there, and {fitted:.2g} where it was fitted{more}.",
)
ENDED_EARLY = Flag(
    "ended_early",
    "{name}: its search ended with {generations} of {planned} generations{after}; another machine may get further.",
)
LATENCY_TABLE = Flag("latency_table", "{name}: its table of latencies is in doubt: {reason}")
LATENCY_OFF = Flag("latency_off", "{name}: {stays} of the milliseconds per token by the table, timed {timed}.")
OTHER_VERSIONS = Flag("other_versions", "{name}: measured with other versions than the dense model: {versions}.")
NOT_TIMED = Flag("not_timed", "{name}: speed: {failure}")
ALONE = Flag(
    "alone",
    "{name}: timed alone, since the dense model had no room, so that there is no speed-up; 'by work' is what the "
    "removed work alone would bring: {points}.",
)
COMPLAINTS = {  # of timed points, see bench.records.schema.speed
    "noisy": "single calls vary much",
    "not_warm": "the calls before the first that counts had not become steady",
    "clocks_disagree": "the clocks disagree",
    "slowed": "heat or power held the GPU's clocks down",
    "launch_bound": "the host launches kernels more slowly than the GPU runs them, which captured steps show",
    "low_bandwidth": "less than 40 % of the GPU's bandwidth and of its matrix rate are used",
    "low_matrix_rate": "less than 40 % of the GPU's matrix rate are used: launches, or small matrices, take the time",
    "in_blocks": "both models do not fit together, so that one was timed after the other",
}
MACHINE = {  # of the machine that timed
    "busy": "timed while other work took {other_cores:.1f} cores and {stolen_cores:.1f} were withheld.",
    "shared_gpu": "timed while {other_gpu_processes} other processes used the GPU.",
    "slowed": "timed while the machine was slowed down, for heat, power or a limit of processor time.",
}
OF_POINTS = {word: Flag(word, f"{{name}}: {meaning}: {{points}}.") for word, meaning in COMPLAINTS.items()}
OF_MACHINE = {word: Flag(word, f"{{name}}: {meaning}") for word, meaning in MACHINE.items()}


def doubts_of_cell(record: Record, name: str, stages: Collection[str] = ()) -> Iterator[Doubt]:
    """Yield each doubt about a cell. `stages` are those of generation whose speed a table shows."""
    if record.status == "ok" and missed(record):
        yield Doubt(MISSED, name, {"miss": _miss(record)})
    yield from _misfits(record, name)
    yield from _ended_early(record, name)
    yield from _of_latency(record, name)
    if stages:
        yield from doubts_of_speed(record, name, stages)


def _miss(record: Record) -> str:
    """Return 'ratio: requested 30.0 %, budget 28.9 %, achieved 28.1 %', or how much of a budget's quantity stays."""
    show, measured, of = METRICS["ratio"].show, record.measured, ratio_of(record.cell)
    requested = requested_ratio(record)
    if budget := measured.get("budget"):
        wanted = "" if requested is None else f"requested {show(1 - requested)}, "
        allowed = f"budget {show(budget['share'])} of {QUANTITIES[of]}"
        return f"budget: {wanted}{allowed}, achieved {show(budget['stays'])}"
    counted = "" if of == "all" else f" of the {of}"
    wanted = "" if requested is None else f"requested {show(requested)}{counted}, "
    return f"ratio: {wanted}budget {show(measured['ratio_budget'])}, achieved {show(measured['ratio'])}"


def _misfits(record: Record, name: str) -> Iterator[Doubt]:
    """Yield the worst of the fits that do not hold on calibration sequences that they have not seen."""
    if every := list(misfits(record)):
        where, tokens, fitted, held_out = max(every, key=lambda misfit: misfit[3] / max(misfit[2], SMALL))
        more = f", and {len(every) - 1} more" if len(every) > 1 else ""
        values = {"where": where, "tokens": tokens, "fitted": fitted, "held_out": held_out, "more": more}
        yield Doubt(MISFIT, name, values)


def _ended_early(record: Record, name: str) -> Iterator[Doubt]:
    """Yield how much of a search was done where its minutes were over before its end."""
    generations, planned = (record.decisions.get(key) for key in ("generations", "of_generations"))
    if generations is not None and planned is not None and generations < planned:
        minutes = record.cell["parameters"].get("minutes")
        after = f", after {minutes:g} min" if minutes else ""
        yield Doubt(ENDED_EARLY, name, {"generations": generations, "planned": planned, "after": after})


def _of_latency(record: Record, name: str) -> Iterator[Doubt]:
    """Yield what is in doubt about the table of a budget of latency, and a timing that says something else than it."""
    budget = record.measured.get("budget")
    if not budget or budget["of"] != "latency":
        return
    about = record.cell["latency"]["about"]
    for reason in doubts_of_latencies(about):
        yield Doubt(LATENCY_TABLE, name, {"reason": f"{reason[0].lower()}{reason[1:]}"})
    show, stays = METRICS["ratio"].show, budget["stays"]
    for point in record.measured.get("speed", {}).get("points", []):
        is_of_table = point["kind"] == "decode" and (point["context"], point["batch"]) == (about["depth"], 1)
        if is_of_table and "speedup" in point:
            low, high = 1 / point["speedup_high"], 1 / point["speedup_low"]
            if not low - MISS <= stays <= high + MISS:
                timed = f"{show(1 / point['speedup'])}, 95 % interval {show(low)} to {show(high)}"
                yield Doubt(LATENCY_OFF, name, {"stays": show(stays), "timed": timed})


def doubts_of_speed(record: Record, name: str, stages: Collection[str] = tuple(STAGES)) -> Iterator[Doubt]:
    """Yield why the speed of a cell at some stages of generation is missing or should be taken with care."""
    speed = record.measured.get("speed", {})
    points = [point for point in speed.get("points", []) if point["kind"] in stages]
    failures = [speed["failed"]] if "failed" in speed else []
    failures += dict.fromkeys(point["failed"] for point in points if "failed" in point)
    for failure in failures:
        yield Doubt(NOT_TIMED, name, {"failure": failure})
    if alone := [f"{point['kind']} at batch {point['batch']}" for point in points if _is_alone(point)]:
        yield Doubt(ALONE, name, {"points": ", ".join(dict.fromkeys(alone))})
    for word, flag in OF_POINTS.items():
        if flagged := [_point(point, word) for point in points if word in point.get("flags", ())]:
            yield Doubt(flag, name, {"points": ", ".join(dict.fromkeys(flagged))})
    machine = speed.get("machine", {})
    for word in machine.get("flags", ()):
        yield Doubt(OF_MACHINE[word], name, machine)


def _is_alone(point: Mapping[str, Any]) -> bool:
    """Say whether the pruned model alone was timed."""
    return "dense" in point.get("out_of_memory", ()) and "pruned_ms" in point


def _point(point: Mapping[str, Any], word: str) -> str:
    """Return 'decode at batch 8', and where a timing is noisy by how much the less steady model varies."""
    widest = max((value for name, value in point.items() if name.endswith("_cv")), default=0.0)
    beside = f" (± {METRICS['kept'].show(widest)})" if word == "noisy" else ""
    mode = f", {point['mode']}" if "mode" in point and point["kind"] == "decode" else ""
    return f"{point['kind']} at batch {point['batch']}{mode}{beside}"


def doubts_of_latencies(about: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a table of latencies should be taken with care, by what it says of how it was measured."""
    copies = about.get("copies", ())
    words = [word for copy in copies for word in copy.get("flags", ())]
    for word in dict.fromkeys(words):
        yield f"{words.count(word)} of {len(copies)} copies: {COMPLAINTS[word]}."
    machine = about.get("machine", {})
    for word in machine.get("flags", ()):
        yield f"The copies were {MACHINE[word].format(**machine)}"


def differing_versions(record: Record, records: Sequence[Record]) -> str:
    """Return which packages the dense model beside a cell had in other versions: 'torch 2.13.0, not 2.12.0'."""
    versions = other_versions(record, dense_peer(record, records))
    return ", ".join(f"{package} {its}, not {dense}" for package, (its, dense) in versions.items())
