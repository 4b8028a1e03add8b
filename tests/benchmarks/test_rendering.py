"""How long a report takes: six methods at eight ratios with five tasks each, forty-nine cells.

tox -e bench -- tests/benchmarks/test_rendering.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_reports import DENSE, LACO

from bench.record import load_run, save
from reports.table import csv, markdown, terminal

METHODS, RATIOS = 6, 8
CELLS = [
    replace(LACO, cell=LACO.cell | {"method": f"method-{number}", "ratio": ratio / 10})
    for ratio in range(1, RATIOS + 1)
    for number in range(METHODS)
]


@pytest.mark.parametrize("render", [terminal, markdown, csv])
def test_rendering(render, benchmark):
    text = benchmark(render, [DENSE, *CELLS])
    assert text.count("method-5") >= RATIOS


def test_reading_a_run(benchmark, tmp_path):
    for number, record in enumerate([DENSE, *CELLS]):
        save(record, tmp_path / "cells" / f"{number}.json")
    assert len(benchmark(load_run, tmp_path)) == 1 + METHODS * RATIOS
