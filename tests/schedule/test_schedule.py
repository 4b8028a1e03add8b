"""Which cell of a run starts next, and which one waits for another."""

from __future__ import annotations

from dataclasses import replace

from made_cells import made_cell, made_inputs

from bench.plan.cell import Cell, Stage
from bench.plan.protocol import protocol_of_profile
from bench.records.measured import Measured
from bench.records.record import Record
from bench.schedule.order import CellEnd, Schedule

UNTIMED = protocol_of_profile("smoke", speed_rounds=0)


def cell(method: str, ratio: float | None = None, **changes) -> Cell:
    made = made_cell(method, ratio, UNTIMED, parameters={"tokens": 64}, inputs=made_inputs())
    return replace(made, **changes)


def record(of: Cell, status: str = "ok", **decisions) -> Record:
    return Record(of, status, {}, decisions, Measured(parameters=1), None if status == "ok" else "no")


def startable(schedule: Schedule) -> list[Cell]:
    """Start every cell that may start now, and return them in their order."""
    found = []
    while one := schedule.next(lambda _: True):
        schedule.start(one.key)
        found.append(one)
    return found


def test_a_search_goes_on_from_the_one_in_front_of_it_and_no_other_cell_waits_for_it():
    searches = [cell("sleb", 0.1), cell("sleb+ghost", 0.1), cell("sleb", 0.2)]
    other, seed = cell("finercut", 0.1), cell("sleb", 0.1, seed=1)
    schedule = Schedule([cell("dense"), *searches, other, seed])
    assert startable(schedule) == [cell("dense"), searches[0], other, seed]
    assert schedule.progress() == "0 of 6 cells done, 4 running, 2 waiting, 0 failed"
    assert schedule.progress(queues=True) == "0 of 6 cells done, 4 in the queue or running, 2 waiting, 0 failed"
    schedule.finish(searches[0].key, CellEnd.of(record(searches[0], removal_order=["layer 1"], free_removals=1)))
    assert startable(schedule) == [searches[1]]
    schedule.finish(searches[1].key, CellEnd.of(record(searches[1], "crashed")))
    assert startable(schedule) == [searches[2]]
    assert schedule.may_search(searches[2].key)
    assert schedule.progress() == "2 of 6 cells done, 4 running, 0 waiting, 1 failed"


def test_the_ratios_of_a_method_that_does_not_search_run_at_once_when_the_first_has_shown_that():
    cells = [cell("shortgpt", ratio) for ratio in (0.1, 0.2, 0.3)]
    schedule = Schedule(cells)
    assert startable(schedule) == cells[:1]
    schedule.finish(cells[0].key, CellEnd.of(record(cells[0], removed_layers=[3])))
    assert startable(schedule) == cells[1:]
    assert not schedule.may_search(cells[1].key)


def test_a_first_cell_that_has_failed_shows_nothing():
    cells = [cell("sleb", ratio) for ratio in (0.1, 0.2, 0.3)]
    schedule = Schedule(cells)
    startable(schedule)
    schedule.finish(cells[0].key, CellEnd.of(record(cells[0], "out_of_memory")))
    assert startable(schedule) == cells[1:2]


def test_a_chained_cell_waits_for_its_parent_alone():
    parent, beside = cell("shortgpt", 0.1), cell("magnitude", 0.1)
    stage = Stage("shortgpt", {"tokens": 64}, 0.1)
    child = cell("laco", 0.3, earlier=(stage,), inputs=made_inputs(parent=parent.key))
    schedule = Schedule([parent, child, beside])
    assert startable(schedule) == [parent, beside]
    schedule.finish(parent.key, CellEnd.of(record(parent)))
    assert startable(schedule) == [child]


def test_a_timed_cell_that_has_no_room_holds_up_no_other():
    timed, untimed = cell("dense", protocol=protocol_of_profile("smoke")), cell("shortgpt", 0.1)
    assert startable(Schedule([timed, untimed])) == [timed, untimed]
    waits = Schedule([timed, untimed])
    assert waits.next(lambda is_timed: not is_timed) == untimed  # as a cluster says whose nodes are all being timed on


def test_of_many_cells_each_starts_once_and_waits_for_what_it_must():
    cells = [
        cell(method, ratio, seed=seed) for seed in range(20) for ratio in (0.1, 0.2) for method in ("sleb", "flap")
    ]
    seconds = {one.key: float(number % 11) for number, one in enumerate(cells)}
    schedule, started = Schedule(cells, seconds), list[str]()
    while one := schedule.next(lambda _: True):
        started.append(one.key)
        schedule.start(one.key)
        order = {"removal_order": ["layer 1"], "free_removals": 1} if one.method == "sleb" else {}
        schedule.finish(one.key, CellEnd.of(record(one, **order)))
    assert sorted(started) == sorted(one.key for one in cells)
    places = {key: place for place, key in enumerate(started)}
    by_seed = {(one.method, one.ratio, one.seed): places[one.key] for one in cells}
    for seed in range(20):
        assert by_seed["sleb", 0.1, seed] < by_seed["sleb", 0.2, seed]
    ways = {key: seconds[key] for key in seconds}
    for one in cells:
        if one.ratio == 0.1:
            ways[one.key] += seconds[replace(one, ratio=0.2).key]
    assert ways[started[0]] == max(ways.values())
