"""A cell made again from its record: the question is the same to the last character."""

from pathlib import Path

import pytest

from bench.plan.cell import asked
from bench.records import run_folder
from bench.records.record import label
from bench.run.fingerprint import of_today
from bench.run.reproduce import cell_of

RESULTS = Path(__file__).parents[2] / "docs/results"


@pytest.mark.parametrize("run", sorted(path.name for path in RESULTS.iterdir() if path.is_dir()))
def test_the_cell_of_a_record_asks_what_the_record_was_asked(run):
    for record in run_folder.records(RESULTS / run).values():
        cell = cell_of(record)
        assert asked(cell) == asked(of_today(record.cell))
        assert cell.label == label(of_today(record.cell))
        assert cell.inputs == {}
