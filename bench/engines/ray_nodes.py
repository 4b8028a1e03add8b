"""Says which nodes of a Ray cluster can take a run's cells, how many at once, and what they must have in common.

The connection says what nodes offer, so that needs that no node can meet are refused at once. A look at each node says
the rest: a task reports which versions are installed there, whether it sees the run's folder, and, where cells are
timed, its processor.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.engines.engine import VISIBLE, Machine, SessionNeeds, Workplace
from bench.system import versions, worker
from bench.system.worker import Channel
from methods.console import say
from methods.errors import UserError

TIMING = "timing"  # the resource of which a node has one, for what is timed there
HOW_TIMING = "--resources='{\"timing\": 1}'"
HOW_FIRST = "RAY_worker_niceness=0"  # by default 15
MARKER = ".seen"  # a folder in the run's, whose file TEXT holds a text that no other run knows
TEXT = "text"
NAMING = 60.0  # seconds for the name of a processor


@dataclass(frozen=True)
class Ask:
    """Says what each cell needs. accelerator: as Ray names the GPU; gpus: 0 on the CPU."""

    gpus: int = 0
    accelerator: str | None = None
    threads: int = 1


@dataclass(frozen=True)
class Node:
    """Describes what a node offers. timing: whether it has the resource for timed cells."""

    id: str
    name: str
    cpus: int
    gpus: int
    accelerators: tuple[str, ...] = ()
    timing: bool = False

    def holds(self, ask: Ask) -> int:
        """Return how many cells the node takes at once."""
        if ask.accelerator and ask.accelerator not in self.accelerators:
            return 0
        return min(self.cpus // ask.threads, self.gpus // ask.gpus if ask.gpus else self.cpus)


@dataclass(frozen=True)
class Site:
    """Tells a task where the run is: its folder, the text in the folder MARKER there, and the directory where it began.

    on_cpu  whether cells run on the CPU, and have to see no GPU
    fresh   whether every cell gets a process of its own
    """

    folder: str
    text: str
    directory: str
    on_cpu: bool
    fresh: bool

    @staticmethod
    @contextmanager
    def make(folder: Path, on_cpu: bool, fresh: bool) -> Iterator[Site]:
        """Write a new text into MARKER of the folder, yield the site, and remove the text at the end."""
        marker = folder.resolve() / MARKER  # the next run uses the same name, if this one is killed
        shutil.rmtree(marker, ignore_errors=True)
        marker.mkdir()
        text = secrets.token_hex(16)
        (marker / TEXT).write_text(text, encoding="utf-8")
        try:
            yield Site(str(marker.parent), text, str(Path.cwd()), on_cpu, fresh)
        finally:
            shutil.rmtree(marker, ignore_errors=True)

    def is_visible(self) -> bool:
        """Say whether this process sees the run's folder, and not another one of the same name."""
        try:
            return (Path(self.folder) / MARKER / TEXT).read_text(encoding="utf-8") == self.text
        except (OSError, ValueError):
            return False

    def place_of(self, node: str) -> Workplace:
        """Return the workplace of a node. Processes of the node share its folder where they see the run's."""
        return Workplace(Path(self.folder) / MARKER / node if self.is_visible() else None)


@dataclass(frozen=True)
class Look:
    """Holds what a node says: its versions, whether it sees the run's folder, and the processor of timed cells.

    niceness of its tasks: 0 unless others on the node go before them
    failure  why the node could not name its processor
    """

    versions: Mapping[str, str]
    sees: bool
    niceness: int = 0
    processor: str | None = None
    cores: int = 0
    failure: str | None = None


@dataclass(frozen=True)
class Share:
    """Says what each cell gets.

    ask      what it needs
    slots    how many run at once
    timing   the nodes where cells are timed, which are alike
    machine  what these are
    """

    ask: Ask
    slots: int
    timing: tuple[Node, ...]
    machine: Machine


def node_from_plain(plain: Mapping[str, Any]) -> Node:
    """Return a node as `ray.nodes` describes it."""
    offers = plain["Resources"]
    kinds = tuple(name.partition(":")[2] for name in offers if name.startswith("accelerator_type:"))
    name = f"{plain['NodeManagerHostname']} ({plain['NodeID'][:8]})"
    return Node(
        plain["NodeID"], name, int(offers.get("CPU", 0)), int(offers.get("GPU", 0)), kinds, offers.get(TIMING, 0) >= 1
    )


def find_suitable_nodes(nodes: Sequence[Node], ask: Ask) -> list[Node]:
    """Return the nodes that can take a cell. Raises UserError where none can, and says what the cluster has."""
    if suitable := [node for node in nodes if node.holds(ask)]:
        return suitable
    kinds = sorted({kind for node in nodes for kind in node.accelerators})
    if ask.accelerator and ask.accelerator not in kinds:
        kinds_of_cluster = f"the cluster has {', '.join(kinds)}" if kinds else "the cluster names no kind of GPU"
        raise UserError(f"--accelerator {ask.accelerator}: no node has it; {kinds_of_cluster} (see `ray status`)")
    most = max((node.gpus for node in nodes), default=0)
    if ask.gpus and not most:
        raise UserError("no node of the cluster has a GPU; say --device cpu, or start nodes with --num-gpus")
    if ask.gpus > most:
        raise UserError(f"--gpus-per-cell {ask.gpus} is more than a node has; the largest has {most}")
    cpus = max((node.cpus for node in nodes), default=0)
    if ask.threads > cpus:
        raise UserError(f"a cell of {_count(ask.threads, 'thread')} is more than a node has; the largest has {cpus}")
    raise UserError(
        f"no node has {_count(ask.threads, 'CPU')}, {_count(ask.gpus, 'GPU')} and {ask.accelerator or 'what else is'} "
        "asked for at once; see `ray status`"
    )


def divide_nodes(nodes: Sequence[Node], ask: Ask, slots: int | None, given: int | None) -> tuple[Ask, int]:
    """Return the request of a cell with its threads filled in, and how many cells run at once.

    nodes  that can take a cell
    slots  the most that the user wants at once; None: one on each GPU, and on the CPU one on the smallest node
    given  threads of each cell from the user; None: a node's CPUs are divided among the cells that it takes
    """
    if given is None:
        if ask.gpus:
            threads = min(node.cpus // (node.gpus // ask.gpus) for node in nodes)
        else:
            threads = min(node.cpus for node in nodes) // -(-(slots or 1) // len(nodes))
        ask = replace(ask, threads=max(1, threads))
    fits = sum(node.holds(ask) for node in nodes)
    return ask, min(fits, slots or fits)


def find_timing_nodes(
    nodes: Sequence[Node], looks: Mapping[str, Look], ask: Ask, given: int | None
) -> tuple[tuple[Node, ...], Machine]:
    """Return the nodes where cells are timed, one cell on a node, and the machine that they all are.

    given  threads of each cell, as the user set them

    Raises UserError where there is no such node, or where two of them differ.
    """
    timing = tuple(node for node in nodes if node.timing)
    if not timing:
        raise UserError(
            f"no node has the resource `{TIMING}`, by which a timed cell has its node to itself; start nodes with "
            f"`ray start {HOW_TIMING}`, or say --speed-rounds 0"
        )
    kinds = dict[tuple[str | None, int], str]()
    for node in timing:
        look = looks[node.id]
        if look.failure:
            raise UserError(f"{node.name} does not say on which processor cells are timed: {look.failure}")
        kinds.setdefault((look.processor, ask.threads if ask.gpus else node.cpus), node.name)
    if len(kinds) > 1:
        what = "; ".join(f"{name} has {processor} and {count} CPUs" for (processor, count), name in kinds.items())
        raise UserError(f"cells would be timed on unlike processors: {what}; say --accelerator, or --speed-rounds 0")
    if nice := max(looks[node.id].niceness for node in timing):
        say(f"cells are timed with niceness {nice}, behind whatever else their nodes do; start nodes with {HOW_FIRST}")
    ((processor, threads),) = kinds
    usable = [] if ask.gpus else [looks[node.id].cores for node in timing]
    return timing, Machine(processor, given or min([threads, *usable]), ask.gpus)


def refuse_unlike(nodes: Sequence[Node], looks: Mapping[str, Look], needs: SessionNeeds) -> None:
    """Refuse nodes with other versions than this process has, and nodes that need the run's folder and lack it."""
    own_versions = versions.installed_versions()
    for node in nodes:
        versions.refuse_unlike(node.name, looks[node.id].versions, own_versions)
        if needs.models and not looks[node.id].sees:
            raise UserError(
                f"cells keep models in {needs.folder}, which {node.name} does not see; put --out where all nodes "
                "have it, or leave --then and --save-models out"
            )


def look_at_node(site: Site, device: str | None) -> Look:
    """Return the look of a task at its node. device: of timed cells; a process of its own names the processor."""
    installed = versions.installed_versions()
    if device is None:
        return Look(installed, site.is_visible(), os.nice(0))
    facts = dict[str, Any]()
    with worker.Worker({VISIBLE: ""} if site.on_cpu else {}) as process:
        failure = process.run(_name_processor, (device,), limits=worker.Limits(seconds=NAMING), hear=facts.update)
    return Look(installed, site.is_visible(), os.nice(0), **facts, failure=failure.reason if failure else None)


def _name_processor(line: Channel, device: str) -> None:
    """Send the name of a device's processor, and how many cores there are to use."""
    import torch

    from bench.system import environment
    from bench.system.threads import count_usable_cores

    line.send({"processor": environment.name_of_processor(torch.device(device)), "cores": count_usable_cores()})


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
