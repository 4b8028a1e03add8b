"""What the nodes of a cluster can take, by what they say of themselves; test_ray.py asks real ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.engines.engine import Machine, SessionNeeds
from bench.engines.ray_nodes import (
    Ask,
    Look,
    Node,
    divide_nodes,
    find_suitable_nodes,
    find_timing_nodes,
    node_from_plain,
    refuse_unlike,
)
from bench.system import versions
from methods.errors import UserError

ROOT = Path(__file__).parents[2]
BIG = Node("b", "big", cpus=16, gpus=4, accelerators=("H100",), timing=True)
SMALL = Node("s", "small", cpus=4, gpus=1, timing=True)
BARE = Node("c", "bare", cpus=8, gpus=0)


def test_a_task_imports_no_torch_to_look_at_its_node():
    code = "import sys, bench.engines.ray; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_node_is_what_ray_says_of_it():
    plain = {"NodeID": "0123456789", "NodeManagerHostname": "host"}
    offers = {"CPU": 2.0, "GPU": 1.0, "accelerator_type:L4": 1.0, "timing": 1.0, "memory": 3.0}
    assert node_from_plain(plain | {"Resources": offers}) == Node("0123456789", "host (01234567)", 2, 1, ("L4",), True)
    assert node_from_plain(plain | {"Resources": {}}) == Node("0123456789", "host (01234567)", 0, 0)


@pytest.mark.parametrize(
    ("nodes", "ask", "slots", "given", "expected"),
    [
        ([BIG, SMALL], Ask(gpus=1), None, None, (4, 5)),  # one on each GPU, as many threads for all
        ([BIG, SMALL], Ask(gpus=1), 3, None, (4, 3)),
        ([BIG], Ask(gpus=2), None, None, (8, 2)),
        ([BIG], Ask(gpus=1, threads=8), None, 8, (8, 2)),  # whose threads are more than the GPUs' share
        ([BARE, BARE], Ask(), None, None, (8, 2)),  # one on each node
        ([BARE, BARE], Ask(), 4, None, (4, 4)),
        ([BARE, SMALL], Ask(), None, None, (4, 3)),
        ([BARE, BARE], Ask(threads=1), None, 1, (1, 16)),
        ([BARE], Ask(), 100, None, (1, 8)),
    ],
)
def test_cpus_are_divided_among_the_cells_that_a_node_takes(nodes, ask, slots, given, expected):
    ask, found = divide_nodes(nodes, ask, slots, given)
    assert (ask.threads, found) == expected


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (Ask(gpus=8), "--gpus-per-cell 8 is more than a node has; the largest has 4"),
        (Ask(gpus=1, accelerator="A100"), "--accelerator A100: no node has it; the cluster has H100 "),
        (Ask(threads=17), "a cell of 17 threads is more than a node has; the largest has 16"),
        (Ask(gpus=5, accelerator="H100"), "--gpus-per-cell 5 is more than a node has"),
    ],
)
def test_an_ask_that_none_can_meet_is_refused_with_what_there_is(ask, said):
    with pytest.raises(UserError, match=said):
        find_suitable_nodes([BIG, SMALL, BARE], ask)


def test_what_no_node_has_at_once_is_refused_too():
    with pytest.raises(UserError, match="no node of the cluster has a GPU; say --device cpu"):
        find_suitable_nodes([BARE], Ask(gpus=1))
    other = Node("o", "other", cpus=2, gpus=8)
    with pytest.raises(UserError, match="no node has 4 CPUs, 8 GPUs and"):
        find_suitable_nodes([BIG, other], Ask(gpus=8, threads=4))
    assert find_suitable_nodes([BIG, SMALL, BARE], Ask(gpus=1)) == [BIG, SMALL]


def test_cells_are_timed_on_nodes_that_are_alike(capsys):
    looks = {"b": Look({}, True, 0, "EPYC", 16), "s": Look({}, True, 0, "EPYC", 4), "c": Look({}, True)}
    assert find_timing_nodes([BIG, BARE], looks, Ask(), None) == ((BIG,), Machine("EPYC", 16, 0))
    assert find_timing_nodes([BIG, SMALL], looks, Ask(gpus=1, threads=2), None)[1] == Machine("EPYC", 2)
    assert find_timing_nodes([BIG], looks, Ask(threads=3), 3)[1].threads == 3
    assert (
        find_timing_nodes([BIG], looks | {"b": Look({}, True, 0, "EPYC", 6)}, Ask(), None)[1].threads == 6
    )  # usable cores
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="unlike processors: big has EPYC and 16 CPUs; small has EPYC and 4 CPUs; say"):
        find_timing_nodes([BIG, SMALL], looks, Ask(), None)
    with pytest.raises(UserError, match="no node has the resource `timing`, by which"):
        find_timing_nodes([BARE], looks, Ask(), None)
    with pytest.raises(UserError, match="big does not say on which processor cells are timed: no driver"):
        find_timing_nodes([BIG], {"b": Look({}, True, failure="no driver")}, Ask(gpus=1), None)
    find_timing_nodes([BIG], {"b": Look({}, True, 15, "EPYC", 16)}, Ask(), None)
    assert "timed with niceness 15" in capsys.readouterr().err


def test_nodes_have_the_versions_of_the_run_and_see_what_it_keeps():
    def session_needs(models: bool) -> SessionNeeds:
        return SessionNeeds(Path("run"), "cpu", False, False, None, models, work=print, measure=print)

    here = versions.installed_versions()
    refuse_unlike([BARE], {"c": Look(here, False)}, session_needs(models=False))
    with pytest.raises(UserError, match="cells keep models in run, which bare does not see"):
        refuse_unlike([BARE], {"c": Look(here, False)}, session_needs(models=True))
    other = f"bare has torch 1.0.0 and not {here['torch']}".replace("+", r"\+")
    with pytest.raises(UserError, match=other):
        refuse_unlike([BARE], {"c": Look(here | {"torch": "1.0.0"}, True)}, session_needs(models=False))
