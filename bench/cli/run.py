"""The commands run, speed and cell: from flags or a spec file to records and the report.

The command cell measures one cell of a run into a job folder, for the engines of other machines.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli
from bench.cli import FAILED_CELLS, OK, measurements
from bench.plan import run_spec
from bench.plan.protocol import LLAMA_CPP, ServedProtocol
from bench.plan.run_spec import RunSpec, flags_of_run, spec_from_flags
from methods.errors import UserError
from reports.tracking import TRACKERS

if TYPE_CHECKING:
    from bench.records.record import Record
    from reports.tracking.tracker import RunTracking


SPEC = "flags from YAML, see `list specs`; those given here win"
SERVED = "serve the models by it afterwards, as serve-speed does by default, and print its table too"
THIS_MACHINE, GPUS = "here", ("h100", "h200", "a100", "l40s")  # of bench.schedule.data_sheets, which loads torch
PLAN = (
    f"print the cells, what each will take in time and memory, and when all end; run nothing; with {', '.join(GPUS)}: "
    "on a machine with that GPU, by its data sheet"
)
TRACK = (
    "log every cell as a run of a tracker, with its parameters, metrics, learning curve and page; mlflow, trackio and "
    "wandb write where their own environment variables say, see docs/reference/runs.md"
)
MODEL = flags_of_run()["model"].default
HEADINGS = {
    "what": "what to prune",
    "heal": "how to heal: train a little after pruning, every method alike",
    "measure": "how to measure (by default as the profile says)",
    "time": "how to time (by default as the profile says)",
    "where": "where",
    "engine": "which machines, and how many cells at once",
}


def add_run(commands: Any) -> None:
    """Add the commands run and speed."""
    run = commands.add_parser(
        "run",
        help="prune and measure",
        description="Prune a model with each method at each ratio and measure it; finished cells are skipped.",
    )
    for name, heading in HEADINGS.items():
        group = run.add_argument_group(heading)
        if name == "what":
            group.add_argument("--spec", metavar="NAME|FILE", help=SPEC)
        cli.add_flags(group, [option for option in flags_of_run().values() if option.group == name])
        if name == "time":
            group.add_argument("--engine-speed", choices=(LLAMA_CPP,), help=SERVED)
        if name == "engine":
            group.add_argument(
                "--plan", nargs="?", const=THIS_MACHINE, choices=(THIS_MACHINE, *GPUS), metavar="GPU", help=PLAN
            )
        if name == "where":
            group.add_argument("--track", choices=TRACKERS, help=TRACK)
    run.set_defaults(command=_run)
    speed = commands.add_parser(
        "speed",
        help="time and weigh, and nothing else",
        description=(
            "Time pruned models beside the dense one, in turns, and take their memory; no tasks, no texts. Without "
            "--methods the dense model is timed against itself, which shows how far the machine can be trusted."
        ),
    )
    group = speed.add_argument_group("what to time")
    group.add_argument("model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help=f"by default {MODEL}")
    left_out = ("model", "then", "save-models", "save-dtype")
    options = [option for option in flags_of_run().values() if option.flag not in left_out]
    cli.add_flags(
        group, [option for option in options if option.group == "what" or option.flag.startswith("calibration")]
    )
    cli.add_flags(
        speed.add_argument_group("how to time"),
        [option for option in options if option.group == "time"],
        speed_rounds="--rounds",
    )
    cli.add_flags(speed.add_argument_group("where"), [option for option in options if option.group == "where"])
    speed.set_defaults(command=_speed)


def _run(arguments: argparse.Namespace) -> int:
    from bench.plan import named

    given = cli.given_flags(arguments, flags_of_run().values())
    spec = run_spec.load_spec(arguments.spec, given) if arguments.spec else spec_from_flags(given)
    folder = spec.folder()  # computed once: the date may be another one at the end
    named.refuse_missing(spec, folder)
    protocol = ServedProtocol(engine=arguments.engine_speed) if arguments.engine_speed else None
    if arguments.track:
        from reports.tracking import tracker

        tracker.require(arguments.track)
    if protocol:
        measurements.require_engine(protocol)
    if arguments.plan:
        return _print_plan(spec, None if arguments.plan == THIS_MACHINE else arguments.plan)
    code = _measure_and_print(spec, folder, _text_of_records, arguments.track)
    if not protocol:
        return code
    from bench.plan.trust import Trust
    from bench.runs import runner
    from bench.system import interrupt

    with interrupt.keep_prompt(runner.words_for_folder(spec, folder)):
        return max(code, measurements.serve(Trust.of_run(spec, folder), protocol))


def _speed(arguments: argparse.Namespace) -> int:
    from bench.plan import named
    from reports.report import speed_to_terminal

    spec = spec_from_flags(
        {"methods": "dense", "profile": "speed"} | cli.given_flags(arguments, flags_of_run().values())
    )
    folder = spec.folder()
    named.refuse_missing(spec, folder)
    return _measure_and_print(spec, folder, lambda spec, records, _: speed_to_terminal(records, explain=False))


def _measure_and_print(
    spec: RunSpec, folder: Path, describe: Callable[[RunSpec, list[Record], Path], str], track: str | None = None
) -> int:
    """Run the cells, send each to the tracker `track` if there is one, and print `describe` of the records."""
    from bench.records.record import FAILED
    from bench.runs import runner
    from reports import report

    start = time.perf_counter()
    tracking = _tracking(track, folder) if track else None
    ended = tracking.cell if tracking else runner.ignore_end
    records = runner.run_spec(spec, report=report.write_report, ended=ended, folder=folder)
    if tracking:
        tracking.finish()
    print(describe(spec, records, folder), end="")
    cli.say_next(folder)
    print(f"{folder}: report.md, report.csv; {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return FAILED_CELLS if any(record.status in FAILED for record in records) else OK


def _tracking(name: str, folder: Path) -> RunTracking:
    """Open a tracker for a run, before any work. Raises UserError."""
    from methods.console import say
    from reports.tracking import tracker

    return tracker.RunTracking(name, tracker.open_tracker(name), folder, say)


def _print_plan(spec: RunSpec, card: str | None) -> int:
    """Print what a run would do and take, here or on a card, and run nothing."""
    from bench.runs.plan import plan_spec
    from reports import plan
    from reports.formats import terminal

    planned = plan_spec(spec, card)
    print(terminal.render(plan.tables_of_plan(planned, spec, card)), end="")
    for remark in planned.remarks:
        print(remark, file=sys.stderr)
    return OK


def _text_of_records(spec: RunSpec, records: list[Record], folder: Path) -> str:
    """Return the output of a run, of a sweep one factor against another, with few notes: `report` has them all."""
    from bench.plan import grid
    from reports.formats import terminal
    from reports.report import samples_of_run, to_terminal
    from reports.tables import views

    swept = grid.is_sweep(replace(spec, seeds=spec.seeds[:1]))  # seeds alone are the draws of a mean
    factors = views.build_view("ablation", records) if swept else []
    if factors:
        return terminal.render(factors, explain=False)
    return to_terminal(records, samples_of_run(folder, records), explain=False)


def add_cell(commands: Any) -> None:
    """Add the command cell."""
    cell = commands.add_parser(
        "cell",
        help="measure one cell that a run has written down",
        description=(
            "Measure the cell of a job, as `run --engine slurm` writes it, into a run folder of its own, unless its "
            "record is there. `merge` joins such parts. A job holds the code of its plugins, and what it names is "
            "loaded as its run allowed it: measure none that you would not run."
        ),
    )
    cell.add_argument("job", type=Path, metavar="JOB.json", help="a job of a run")
    cell.add_argument("--out", required=True, type=Path, metavar="PART", help="the folder of the part")
    cell.set_defaults(command=_cell)


def _cell(arguments: argparse.Namespace) -> int:
    from bench.engines.engine import Job
    from bench.records.record import FAILED
    from bench.runs import job, store
    from bench.system import interrupt

    try:
        order = Job.from_json(arguments.job.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{arguments.job} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with interrupt.keep_prompt(leave=partial(store.clear_folder, arguments.out)):
        record = job.run_remote_job(order, arguments.out)
    print(f"{arguments.out}: {order.key}, {record.status}")
    return FAILED_CELLS if record.status in FAILED else OK
