"""How many cells a second the driver of a run can start, take in and write, with a made-up cluster of 256 slots.

tox -e bench -- tests/benchmarks/test_driver.py
PRUNEBENCH_CELLS=10000 tox -e bench -- tests/benchmarks/test_driver.py          as many as the figures in README.md have
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
from made_cells import made_cell, made_inputs

from bench.engines.engine import RunConditions
from bench.plan.cell import Cell
from bench.plan.protocol import protocol_of_profile
from bench.runs import runner, store
from bench.runs.plan import SimulatedSession
from bench.schedule.estimate import Estimate
from bench.system.memory import resident_bytes_of_process

CELLS = int(os.environ.get("PRUNEBENCH_CELLS", "1000"))
SLOTS = 256
FILLER = [[7 * number for number in range(2000)] for _ in range(2)]  # a record of a width method has as many numbers


def grid(count: int) -> list[Cell]:
    """Cells of searches of five ratios each, of other methods, and of other seeds."""
    quick = protocol_of_profile("quick", speed_rounds=0)
    made = made_cell("sleb", 0.1, quick, parameters={"tokens": 64})
    return [
        replace(made, method=method, ratio=ratio / 10, seed=seed, inputs=made_inputs())
        for seed in range(count // 10)
        for ratio in range(1, 6)
        for method in ("sleb", "flap")
    ]


@pytest.mark.parametrize("count", [CELLS // 4, CELLS])
def test_driver(count, tmp_path, benchmark, capsys, monkeypatch):
    monkeypatch.setattr(runner, "refuse_misfits", lambda *_, **__: None)  # there is no such model
    cells = grid(count)
    searches = {cell.key for cell in cells if cell.method == "sleb"}
    seconds = {cell.key: 60.0 + number % 7 for number, cell in enumerate(cells)}
    estimates = {key: Estimate({"prune": one, "tasks": one}, "") for key, one in seconds.items()}

    def found(key):
        order = {"removal_order": ["layer 3"], "free_removals": 1} if key in searches else {}
        measured = {"parameters": 1, "dense_parameters": 2, "prune_seconds": 1.0, "seconds": {"prune": 1.0}}
        status = {"status": "ok", "error": None, "environment": {"cpu": "x"}}
        return status | {"measured": measured, "decisions": order | {"removed_channels": FILLER}}

    session = SimulatedSession(SLOTS, seconds, outcome_of=found)
    conditions, earlier = RunConditions(tmp_path), runner.EarlierCells({}, dict.fromkeys(seconds, ""))
    peaks = []
    next_result = session.next_result

    def watched():
        if len(peaks) * 100 < len(session.spans):
            peaks.append(resident_bytes_of_process())
        return next_result()

    session.next_result = watched
    before = time.process_time()
    loop = runner.CellLoop(cells, session, conditions, earlier, estimates)
    with store.lock_folder(tmp_path):
        records = benchmark.pedantic(loop.measure_all, rounds=1)
    spent = time.process_time() - before
    assert len(records) == len(cells)
    benchmark.extra_info |= {
        "cells": len(cells),
        "simulated_seconds": session.now,
        "resident_mib_while_it_ran": [round(size / 2**20) for size in (peaks[0], peaks[len(peaks) // 2], peaks[-1])],
        "resident_mib_with_all_records": round(resident_bytes_of_process() / 2**20),
        "processor_ms_for_each_cell": round(1e3 * spent / len(cells), 2),
    }
    with capsys.disabled():
        print(benchmark.extra_info)
