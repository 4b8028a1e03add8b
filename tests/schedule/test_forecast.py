"""When a run ends is right to a third after its first cells, however wrong the estimates were."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_cells import made_cell

from bench.plan.cell import Cell
from bench.plan.protocol import protocol_of_profile
from bench.records.measured import Measured
from bench.records.record import Record
from bench.runs.plan import SimulatedSession
from bench.schedule.estimate import Estimate, Forecast, format_duration
from bench.schedule.order import CellEnd, Schedule, drive

UNTIMED = protocol_of_profile("smoke", speed_rounds=0)
BESIDE = 2.0  # seconds of a cell that none of its stages has
ANY = made_cell("flap", None, UNTIMED)


def cells(count: int) -> list[Cell]:
    made = made_cell("flap", None, UNTIMED, parameters={"tokens": 64})
    return [replace(made, method=("flap", "sleb", "laco")[at % 3], seed=at) for at in range(count)]


@pytest.mark.parametrize(
    ("slots", "timed", "off_by"),
    [
        (1, False, 1.0),
        (2, False, 1.0),
        (2, True, 1.0),
        (8, False, 60.0),  # half of the longest cell: which of the last ones come together is not known
    ],
)
def test_the_end_is_right_to_a_third_after_the_first_cells(slots, timed, off_by):
    every = cells(60)
    said = {one.key: {"prune": 10.0, "tasks": 20.0} for one in every}
    off = {"flap": 0.3, "sleb": 6.0, "laco": 1.0}
    took = {one.key: {"prune": 10.0 * off[one.method], "tasks": 50.0} for one in every}
    if timed:
        for at, one in enumerate(every):
            if at % 4 == 0:
                said[one.key]["speed"], took[one.key]["speed"] = 10.0, 25.0
    schedule = Schedule(every)
    alone = {key: one.get("speed", 0.0) for key, one in took.items()}
    session = SimulatedSession(slots, {key: BESIDE + sum(one.values()) for key, one in took.items()}, alone)
    estimates = {key: Estimate(stages, "") for key, stages in said.items()}
    forecast, expected = Forecast(estimates, slots, now=lambda: session.now), []
    for one in every:
        forecast.add(one)
    assert forecast.line() == ""

    def begin(cell: Cell) -> None:
        session.begin(cell.key)
        schedule.start(cell.key)
        forecast.begin(cell.key)

    def end(result) -> None:
        schedule.finish(result.key, CellEnd("ok"))
        measured = Measured(parameters=1, seconds=took[result.key])
        forecast.end(schedule.cells[result.key], Record(ANY, "ok", {}, {}, measured))
        expected.append((session.now, session.now + forecast.seconds()))

    drive(schedule, session, begin, end)
    assert session.now == max(end for _, _, end in session.spans.values())
    for now, said_end in expected[max(6, slots) :]:
        assert said_end - now == pytest.approx(session.now - now, rel=1 / 3, abs=off_by)
    assert expected[-1][1] == pytest.approx(session.now)


def test_a_cell_that_never_ran_counts_no_more():
    first, second, third = cells(3)
    clock = [0.0]
    forecast = Forecast(
        {one.key: Estimate({"tasks": 10.0}, "") for one in (first, second, third)}, 1, now=lambda: clock[0]
    )
    for one in (first, second, third):
        forecast.add(one)
    forecast.begin(first.key)
    clock[0] = 10.0
    forecast.end(first, Record(ANY, "ok", {}, {}, Measured(parameters=1, seconds={"tasks": 10.0})))
    assert forecast.seconds() == pytest.approx(20.0)
    forecast.end(second, Record(ANY, "error", {}, error="its parent failed"))
    assert forecast.seconds() == pytest.approx(10.0)
    assert forecast.line(clock=lambda: 0.0).endswith(", in 10 s")


def test_cells_that_wait_in_a_queue_have_no_end_that_anyone_knows():
    """All are submitted at once and the cluster runs four at a time, so that a wait is no work."""
    every, clock = cells(60), [0.0]
    estimates = {one.key: Estimate({"tasks": 10.0}, "") for one in every}
    forecast = Forecast(estimates, 1000, one_machine=False, queues=True, now=lambda: clock[0])
    for one in every:
        forecast.add(one)
        forecast.begin(one.key)
    for number, one in enumerate(every):
        clock[0] = 10.0 * (number // 4 + 1)
        forecast.end(one, Record(ANY, "ok", {}, {}, Measured(parameters=1, seconds={"tasks": 10.0})))
        assert (forecast.seconds(), forecast.line()) == (None, "")


def test_a_duration_is_short():
    assert [format_duration(seconds) for seconds in (0, 40, 89, 90, 720, 7200, 200_000)] == [
        *("0 s", "40 s", "89 s", "2 min", "12 min", "2.0 h", "2.3 days"),
    ]
