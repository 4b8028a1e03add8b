"""The commands run and speed: flags to cells to records to the report."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli import FAILED_CELLS, OK, options
from bench.plan import chain, grid
from bench.plan.cell import slug
from bench.plan.parse import names, parse_methods, parse_ratios
from bench.plan.protocol import PROFILES, Protocol
from bench.records.record import FAILED, Record
from bench.system import interrupt
from methods.errors import UserError
from reports.report import speed_terminal

if TYPE_CHECKING:
    from bench.system import worker

TASK_DATA = (
    "a task's documents from local files, with the columns of the hub's: an .arrow, .parquet or .jsonl file of what "
    "is evaluated, or a folder of such, where files named by split (test-0.parquet) are taken by split"
)

THEN = (
    "prune every cell further, to ratio R of the dense model in total; given again, behind the one before. With --heal "
    "a healed cell is pruned further, then healed again, and the next --then goes on from there"
)


def add(commands: Any) -> None:
    _add_run(commands)
    _add_speed(commands)


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="prune and measure",
        description="Prune a model with each method at each ratio and measure it; finished cells are skipped.",
    )
    what = run.add_argument_group("what to prune")
    what.add_argument("--spec", metavar="NAME|FILE", help="flags from YAML, see `list specs`; those given here win")
    what.add_argument(
        "--methods", required=True, metavar="LIST", help="as in laco,slicegpt or laco:C=3,T=0.7; all for all"
    )
    what.add_argument("--model", default="smollm2-135m", help="see `list models`; a folder, .gguf file or hub name")
    options.add_pruning(what)
    what.add_argument("--then", action="append", default=[], metavar="METHOD:ratio=R[,NAME=VALUE]", help=THEN)
    options.add_healing(run.add_argument_group("how to heal: train a little after pruning, every method alike"))
    how = run.add_argument_group("how to measure (by default as the profile says)")
    how.add_argument("--profile", default="quick", help=f"{', '.join(PROFILES)}; see `list profiles`")
    how.add_argument("--tasks", metavar="LIST", help="tasks or groups of `list tasks`; none for no task")
    how.add_argument("--documents", type=int, metavar="N", help="documents per task; 0 for all")
    how.add_argument("--fewshot", type=int, metavar="N", help="examples in front of each question; by default none")
    how.add_argument("--task-data", action="append", default=[], dest="local_data", metavar="TASK=PATH", help=TASK_DATA)
    how.add_argument("--texts", metavar="LIST", help="texts for perplexity, see `list texts`; none for no text")
    how.add_argument("--window", type=int, metavar="TOKENS", help="tokens of a perplexity window")
    how.add_argument("--stride", type=int, metavar="TOKENS", help="tokens from window to window; by default the window")
    how.add_argument("--windows", type=int, metavar="N", help="perplexity windows; 0 for all")
    options.add_calibration(how)
    how.add_argument("--batch-tokens", type=int, metavar="TOKENS", help="tokens of one forward when scoring")
    how.add_argument("--no-checks", action="store_false", default=None, dest="checks", help="no generation, no KL")
    how.add_argument("--scorer", choices=("shared", "stock"), help="stock: lm-eval's own backend, for checking")
    options.add_timing(run.add_argument_group("how to time (by default as the profile says)"), "--speed-rounds")
    where = run.add_argument_group("where")
    options.add_place(where)
    where.add_argument("--save-models", action="store_true", help="save pruned models, measure them as they load again")
    where.add_argument("--save-dtype", metavar="DTYPE", help="auto (the base's), float32, bfloat16, float16; saves too")
    run.set_defaults(command=_run, view="main")


def _add_speed(commands: Any) -> None:
    speed = commands.add_parser(
        "speed",
        help="time and weigh, and nothing else",
        description=(
            "Time pruned models beside the dense one, in turns, and take their memory; no tasks, no texts. Without "
            "--methods the dense model is timed against itself, which shows how far the machine can be trusted."
        ),
    )
    what = speed.add_argument_group("what to time")
    what.add_argument("model", nargs="?", default="smollm2-135m", metavar="MODEL", help="by default %(default)s")
    what.add_argument("--methods", default="dense", metavar="LIST", help="as in laco,slicegpt or drop:layers=10-20")
    options.add_pruning(what)
    options.add_calibration(what)
    options.add_timing(speed.add_argument_group("how to time"), "--rounds")
    options.add_place(speed.add_argument_group("where"))
    speed.set_defaults(command=_run, view="speed", profile="speed", spec=None, local_data=[])
    speed.set_defaults(save_models=False, save_dtype=None)
    speed.set_defaults(then=[], heal=None, **dict.fromkeys([f"heal_{name}" for name in options.HEALING]))


def _run(arguments: argparse.Namespace) -> int:
    chosen = _chosen(arguments)
    ratios = parse_ratios(arguments.ratio) if arguments.ratio else []
    if arguments.save_models and arguments.save_dtype is None:
        arguments.save_dtype = "auto"
    swept, looks, limits = grid.is_one(arguments), grid.looks(arguments), _limits(arguments)
    arguments, protocols = looks[0], [(_protocol(one), one.seed) for one in looks]
    folder = arguments.out or _default_folder(arguments, chosen)
    from bench.plan import validate

    cells = validate.cells(chosen, ratios, protocols, arguments)
    if swept:
        grid.refuse_more_than(arguments.max_cells, len(cells), at_least=False)
    validate.check_folder(folder)
    from bench.run import runner
    from reports import report

    start = time.perf_counter()
    with interrupt.prompt():
        records = runner.run(
            cells,
            folder,
            retry_failed=arguments.retry_failed,
            isolate=arguments.isolate,
            limits=limits,
            report=report.write,
        )
    print(_told(records, arguments.view, swept=swept), end="")
    print(f"{folder}: report.md, report.csv; {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return FAILED_CELLS if any(record.status in FAILED for record in records) else OK


def _told(records: list[Record], view: str, *, swept: bool) -> str:
    """What a run prints: of a sweep one factor against another, where there are several."""
    from reports import report
    from reports.formats import terminal
    from reports.tables import views

    factors = views.view("ablation", records) if swept and view == "main" else []
    if factors:
        return terminal.render(factors)
    return {"main": report.terminal, "speed": speed_terminal}[view](records)


def _chosen(arguments: argparse.Namespace) -> grid.Chosen:
    """The methods with their parameters, one for each combination of what --set sweeps."""
    chosen = _compensated(parse_methods(arguments.methods), arguments.compensate)
    then = [chain.parse(text)[0] for text in arguments.then]
    return grid.methods(chosen, arguments.set, arguments.max_cells, then)


def _limits(arguments: argparse.Namespace) -> worker.Limits:
    """Of each cell's process; 0 is none."""
    from bench.system import worker

    found: dict[str, float] = {}
    for name, flag, unit in (("memory", "cell_memory_mib", 2**20), ("seconds", "cell_minutes", 60)):
        value = getattr(arguments, flag)
        if not 0 <= value < math.inf:
            raise UserError(f"--{flag.replace('_', '-')} is 0 for no limit, or positive; got {value:g}")
        if value and arguments.isolate is False:
            raise UserError(f"--{flag.replace('_', '-')} needs a process of its own; leave --no-isolate out")
        found |= {name: value * unit} if value else {}
    return worker.Limits(**found)


def _compensated(chosen: list[tuple[str, dict[str, Any]]], name: str | None) -> list[tuple[str, dict[str, Any]]]:
    """With +NAME behind every method but the dense one and those that name a compensation themselves."""
    if name is None:
        return chosen
    return [(method if method == "dense" or "+" in method else f"{method}+{name}", given) for method, given in chosen]


def _protocol(arguments: argparse.Namespace) -> Protocol:
    """The profile with what the flags change."""
    if arguments.profile not in PROFILES:
        raise UserError(f"no profile {arguments.profile!r}; there are {', '.join(PROFILES)}")
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(Protocol):
        value = getattr(arguments, field.name, None)
        if value is not None and field.name != "profile":
            is_list = field.name in ("tasks", "texts")
            changes[field.name] = names(value) if is_list else value
    if "window" in changes:
        changes.setdefault("stride", changes["window"])
    return dataclasses.replace(PROFILES[arguments.profile], **changes)


def _default_folder(arguments: argparse.Namespace, chosen: grid.Chosen) -> Path:
    named = Path(arguments.spec).stem if arguments.spec else "-".join(dict.fromkeys(name for name, _ in chosen))
    what = ("speed-" if arguments.view == "speed" else "") + named
    model = slug(arguments.model.rstrip("/").rsplit("/", 1)[-1])
    return Path("results") / f"{time.strftime('%Y-%m-%d')}-{slug(what)}-{model}"
