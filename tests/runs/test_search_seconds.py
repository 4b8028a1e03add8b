"""What a pruning has cost is what it would have cost without other cells, whichever search it goes on from."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
from tiny_methods import calibration

from bench.cli.main import main
from bench.plan.kinds import to_plain
from bench.records.run_folder import load_run
from bench.runs import searches
from bench.runs.searches import SearchTimes
from methods.model.calibration import Calibration

NONE = (), ()
METHODS = ("sleb+ghost", "laco-puzzle:steps=2,tokens=48,best=2,collapsed=0.9")


def pruned(run) -> dict[float, tuple[dict, dict]]:
    """Decisions and figures by ratio."""
    assert {r.status for r in load_run(run)} == {"ok"}
    return {r.cell.ratio: (r.decisions, to_plain(r.measured)) for r in load_run(run) if r.cell.method != "dense"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratios", ["0.3,0.6", "0.6,0.3"])
def test_a_cell_inherits_the_seconds_of_the_removals_that_it_shares(method, ratios, base, tmp_path):
    run = [*base[:-4], *base[-2:], "--no-isolate", "--methods", method]
    assert main([*run, "--ratio", ratios, "--out", str(tmp_path / "both")]) == 0
    both = pruned(tmp_path / "both")
    first, second = map(float, ratios.split(","))
    assert main([*run, "--ratio", str(second), "--out", str(tmp_path / "alone")]) == 0
    ((decided, alone),) = pruned(tmp_path / "alone").values()
    donor, behind = both[first], both[second]
    assert alone["prune_seconds"] == alone["seconds"]["prune"]
    assert behind[0]["removal_order"] == decided["removal_order"]
    order, free = donor[0]["removal_order"], donor[0]["free_removals"]
    shared = next((n for n in range(free, 0, -1) if order[:n] == decided["removal_order"][:n]), 0)
    assert shared > 0
    until = donor[1]["search_seconds"]
    assert len(until) == free
    assert list(until) == sorted(until)
    assert until[-1] < donor[1]["prune_seconds"]  # which has what follows the search as well
    inherited = behind[1]["prune_seconds"] - behind[1]["seconds"]["prune"]
    assert inherited == pytest.approx(until[shared - 1])
    assert len(behind[1]["search_seconds"]) == behind[0]["free_removals"]
    same = min(shared, behind[0]["free_removals"])
    assert behind[1]["search_seconds"][:same] == until[:same]


@dataclass(frozen=True)
class Known:
    """What bench.runs.searches looks at of Datasets."""

    calibration: Calibration
    search_seconds: tuple[float, ...] = ()
    statistics: None = None


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set."""
    now = [100.0]
    monkeypatch.setattr(searches.time, "perf_counter", lambda: now[0])
    return now


def test_removals_are_noted_with_the_seconds_of_those_before(clock, tmp_path):
    file = tmp_path / "kept.json"
    times = SearchTimes((("a", "b", "c"), (1.0, 3.0, 9.0)), NONE, file)
    clock[0] += 5
    times.note(["a", "b", "x"])
    clock[0] += 2
    times.note(["a", "b", "x", "y"])
    decided = {"removal_order": ["a", "b", "x", "y"], "free_removals": 3}
    assert times.inherited_seconds(decided) == 3.0  # c is of no use to it
    assert times.seconds_until_each(decided) == (1.0, 3.0, 8.0)
    assert times.inherited_seconds({}) == 0.0  # of a method that names no order
    kept = {"order": ["a", "b", "x", "y"], "seconds": [1.0, 3.0, 8.0, 10.0], "inherited": 3}
    assert json.loads(file.read_text()) == kept
    found = ("a", "b", "x", "y"), (1.0, 3.0, 8.0, 10.0)
    assert searches._read_order(file) == (found, 3)

    again = SearchTimes((("a",), (1.0,)), found, file)  # as if it had begun with the first alone
    clock[0] += 60
    for count in (2, 3, 4):
        again.note(["a", "b", "x", "y"][:count])
    assert json.loads(file.read_text()) == kept
    assert again.seconds_until_each(decided) == (1.0, 3.0, 8.0)
    assert again.inherited_seconds(decided) == 1.0  # the log of the search knows what the others have cost
    clock[0] += 4
    again.note(["a", "b", "x", "y", "z"])
    assert json.loads(file.read_text())["seconds"][-1] == 14.0


def test_another_try_of_a_budget_counts_no_removal_of_the_first(clock, tmp_path):
    times = SearchTimes(NONE, NONE, tmp_path / "kept.json")
    clock[0] += 1
    times.note(["a"])
    clock[0] += 50
    times.note(["a", "finally z"])
    clock[0] += 2
    times.note(["a", "b"])
    assert times.seconds_until_each({"removal_order": ["a", "b", "c"], "free_removals": 2}) == (1.0, 3.0)


def test_a_file_without_the_seconds_of_each_removal_counts_as_none(tmp_path):
    (tmp_path / "kept.json").write_text(json.dumps({"order": ["a", "b"], "seconds": 7.0}))
    assert searches._read_order(tmp_path / "kept.json") == (NONE, 0)


@pytest.mark.parametrize(("others", "begins"), [("ab", "ab"), ("", "ab"), ("abxy", "ab"), ("abxyz", "abxyz")])
def test_a_search_goes_on_with_what_it_began_with_unless_others_have_found_more(others, begins, tmp_path):
    times = SearchTimes((tuple("ab"), (1.0, 2.0)), NONE, tmp_path / "partial" / "key" / "prune" / searches.REMOVALS)
    for found in ("abx", "abxy"):
        times.note(list(found))
    known = Known(replace(calibration(), order=tuple(others)), search_seconds=tuple(map(float, range(len(others)))))
    resumed, _ = searches.resume_search(known, tmp_path, "key")
    assert resumed.calibration.order == tuple(begins)
    assert len(resumed.search_seconds) == len(begins)
