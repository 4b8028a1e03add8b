"""How long a report takes over every method at three ratios: 73 cells with samples, timings and decisions.

Each command runs in an interpreter of its own, from its start to its end. What it took of the processor is in
`extra_info`, where other work on the machine does not count.

tox -e bench -- tests/benchmarks/test_rendering.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import made_grid
import pytest

from bench.records.run_folder import load_run, load_runs
from reports.page.page import render_page

ROOT = Path(__file__).parent.parent.parent
COMMANDS = {
    "terminal": [],
    "every view": ["--view", "all"],
    "latex": ["--view", "all", "--format", "latex"],
    "reference": ["--view", "all", "--reference", "laco"],
    "everything": ["--out", "{out}"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    made_grid.write(folder)
    return folder


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_report(words, run, tmp_path, benchmark):
    command = [sys.executable, "-m", "bench", "report", str(run), *(word.format(out=tmp_path) for word in words)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    rounds = 3
    benchmark.pedantic(lambda: subprocess.run(command, cwd=ROOT, capture_output=True, check=True), rounds=rounds)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    done = rounds if benchmark.enabled else 1
    benchmark.extra_info["processor_seconds"] = round(spent / done, 2)
    if "--out" in words:
        assert len(list((tmp_path / "figures").iterdir())) == 3 * 14
        assert "minitron-width" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_in_one_process(run, benchmark):
    merged = load_runs([run])
    text = benchmark.pedantic(lambda: render_page(merged.records, samples=merged.samples), rounds=3)
    assert len(text.encode()) < 1_500_000


def test_reading_a_run(run, benchmark):
    assert len(benchmark(load_run, run)) == 73
