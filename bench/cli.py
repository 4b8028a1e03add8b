"""The command line. Imports nothing heavy, so that --help and list answer at once."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench import flags
from bench.errors import UserError
from bench.spec import PROFILES, SAVE_DTYPES, Protocol, parse_methods, parse_ratios, slug

OK, NOT_AS_SAID, FAILED_CELLS, USAGE, INTERRUPTED = 0, 1, 3, 2, 130
TASK_DATA = (
    "a task's documents from local files, with the columns of the hub's: an .arrow, .parquet or .jsonl file of what "
    "is evaluated, or a folder of such, where files named by split (test-0.parquet) are taken by split"
)


class Parser(argparse.ArgumentParser):
    """Takes flags by their full names only, and turns a usage error into one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 not as said, 2 a mistake, 3 a cell failed, 130 interrupted."""
    # Threads that spin while they wait make a shared machine several times slower; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        arguments = _parser().parse_args(argv)
        code: int = arguments.command(arguments)
        return code
    except UserError as error:
        print(f"prunebench: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("prunebench: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED


def _parser() -> Parser:
    parser = Parser(prog="python -m bench", description="Prune language models, measure them, compare them fairly.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    _add_run(commands)
    _add_speed(commands)
    report = commands.add_parser("report", help="draw the tables of finished runs")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, as in results/2026-01-31-laco-model")
    report.add_argument("--format", choices=("terminal", "markdown", "csv"), default="terminal")
    report.set_defaults(command=_report)
    listing = commands.add_parser("list", help="show what there is")
    listing.add_argument("what", choices=("methods", "models", "tasks", "texts", "profiles"))
    listing.add_argument("--verbose", action="store_true", help="parameters of methods, fields of profiles")
    listing.set_defaults(command=_list)
    fetch = commands.add_parser("fetch", help="download the default model, texts and tasks ahead of time")
    fetch.add_argument("names", nargs="*", metavar="NAME", help="only these; by default all")
    fetch.set_defaults(command=_fetch)
    _add_export(commands)
    _add_verify(commands)
    return parser


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="take a pruned model out of a run",
        description="Write a cell's model as a folder or a GGUF file: the saved one, or one made anew from its record.",
    )
    export.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    export.add_argument("cell", metavar="CELL", help="a file of its cells/ without .json, the start of one, or a label")
    export.add_argument("--to", type=Path, metavar="DIR", help="a new folder for the model")
    export.add_argument("--gguf", type=Path, metavar="FILE", help="a new GGUF file, for Llama-like models of one width")
    export.add_argument("--save-dtype", metavar="DTYPE", help="auto (the base's), float32, bfloat16 or float16")
    export.add_argument("--pad-to-uniform", action="store_true", help="fill layers up with zeros to the same widths")
    export.add_argument("--shard-mb", type=int, default=5000, metavar="MB", help="the most of a weight file, in MB")
    export.add_argument("--device", default="auto", help="to make the model anew on; auto: as in the record")
    export.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a Python file with methods")
    export.set_defaults(command=_export)


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="check a saved model",
        description="Compare a saved model with its manifest and try it: files, hashes, shapes, logits, cache.",
    )
    verify.add_argument("folder", type=Path, metavar="DIR", help="a folder that --save-models or export wrote")
    verify.set_defaults(command=_verify)


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="prune and measure",
        description="Prune a model with each method at each ratio and measure it; finished cells are skipped.",
    )
    what = run.add_argument_group("what to prune")
    what.add_argument(
        "--methods", required=True, metavar="LIST", help="as in laco,slicegpt or laco:C=3,T=0.7; all for all"
    )
    what.add_argument("--model", default="smollm2-135m", help="see `list models`; a folder, .gguf file or hub name")
    flags.add_pruning(what)
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
    flags.add_calibration(how)
    how.add_argument("--batch-tokens", type=int, metavar="TOKENS", help="tokens of one forward when scoring")
    how.add_argument("--no-checks", action="store_false", default=None, dest="checks", help="no generation, no KL")
    how.add_argument("--scorer", choices=("shared", "stock"), help="stock: lm-eval's own backend, for checking")
    flags.add_timing(run.add_argument_group("how to time (by default as the profile says)"), "--speed-rounds")
    where = run.add_argument_group("where")
    flags.add_place(where)
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
    flags.add_pruning(what)
    flags.add_calibration(what)
    flags.add_timing(speed.add_argument_group("how to time"), "--rounds")
    flags.add_place(speed.add_argument_group("where"))
    speed.set_defaults(command=_run, view="speed", profile="speed", local_data=[], save_models=False, save_dtype=None)


def _run(arguments: argparse.Namespace) -> int:
    methods_and_parameters = _with_settings(parse_methods(arguments.methods), arguments.set)
    ratios = parse_ratios(arguments.ratio) if arguments.ratio else []
    if arguments.save_models and arguments.save_dtype is None:
        arguments.save_dtype = "auto"
    protocol = _protocol(arguments)
    kind = "speed-" if arguments.view == "speed" else ""
    folder = arguments.out or _default_folder(kind, methods_and_parameters, arguments.model)
    from bench import preflight

    cells = preflight.cells(methods_and_parameters, ratios, protocol, arguments)
    preflight.check_folder(folder)
    from bench import runner
    from reports import speed, table

    start = time.perf_counter()
    records = runner.run(cells, folder, retry_failed=arguments.retry_failed)
    table.write(folder, records)
    print({"main": table.terminal, "speed": speed.terminal}[arguments.view](records), end="")
    print(f"{folder}: report.md, report.csv; {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return FAILED_CELLS if any(record.status in runner.FAILED for record in records) else OK


def _with_settings(chosen: list[tuple[str, dict[str, Any]]], settings: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Apply each --set METHOD.NAME=VALUE to every mention of METHOD that does not say otherwise itself."""
    for setting in settings:
        left, equals, value = setting.partition("=")
        method, dot, name = left.partition(".")
        if not (equals and dot and value):
            raise UserError(f"--set is written METHOD.NAME=VALUE, as in laco.T=0.7; got {setting!r}")
        mentioned = [parameters for known, parameters in chosen if known == method]
        if not mentioned:
            raise UserError(f"--set {setting} speaks of {method}, which --methods does not name")
        for parameters in mentioned:
            parameters.setdefault(name, value)
    return chosen


def _protocol(arguments: argparse.Namespace) -> Protocol:
    """The profile with what the flags change."""
    if arguments.profile not in PROFILES:
        raise UserError(f"no profile {arguments.profile!r}; there are {', '.join(PROFILES)}")
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(Protocol):
        value = getattr(arguments, field.name, None)
        if value is not None and field.name != "profile":
            is_list = field.name in ("tasks", "texts")
            changes[field.name] = flags.names(value) if is_list else value
    if "window" in changes:
        changes.setdefault("stride", changes["window"])
    return dataclasses.replace(PROFILES[arguments.profile], **changes)


def _default_folder(kind: str, chosen: list[tuple[str, dict[str, Any]]], model: str) -> Path:
    names = kind + "-".join(dict.fromkeys(name for name, _ in chosen))
    return Path("results") / f"{time.strftime('%Y-%m-%d')}-{slug(names)}-{slug(model.rstrip('/').rsplit('/', 1)[-1])}"


def _report(arguments: argparse.Namespace) -> int:
    from bench.record import InvalidRecord, load_run
    from reports import table

    records = []
    for run in arguments.runs:
        try:
            found = load_run(Path(run))
        except InvalidRecord as error:
            raise UserError(str(error)) from None
        if not found:
            raise UserError(f"{run} is no run folder: it has no cells/*.json")
        records += found
    renderers = {"terminal": table.terminal, "markdown": table.markdown, "csv": table.csv}
    print(renderers[arguments.format](records), end="")
    return OK


def _export(arguments: argparse.Namespace) -> int:
    if not (arguments.to or arguments.gguf):
        raise UserError("say where the model goes: --to DIR, --gguf FILE or both")
    if arguments.shard_mb < 1:
        raise UserError(f"shard-mb is a number of megabytes, at least 1; got {arguments.shard_mb}")
    if arguments.save_dtype not in (None, *SAVE_DTYPES[1:]):
        raise UserError(f"save-dtype is {', '.join(SAVE_DTYPES[1:])}; got {arguments.save_dtype!r}")
    import methods
    from bench import export

    try:
        methods.load(arguments.plugin)
    except ValueError as error:
        raise UserError(str(error)) from None
    lines = export.write(
        export.find(arguments.run, arguments.cell),
        arguments.run,
        to=arguments.to,
        gguf=arguments.gguf,
        pad=arguments.pad_to_uniform,
        dtype=arguments.save_dtype,
        most=arguments.shard_mb * 10**6,
        device=arguments.device,
    )
    print("\n".join(lines))
    return OK


def _verify(arguments: argparse.Namespace) -> int:
    from bench import verify
    from methods.checkpoint import CheckpointError

    passed = True
    try:
        for check in verify.verify(arguments.folder):
            print(check)
            passed &= check.passed
    except CheckpointError as error:
        raise UserError(str(error)) from None
    return OK if passed else NOT_AS_SAID


def _list(arguments: argparse.Namespace) -> int:
    lines = {"methods": _methods, "models": _models, "tasks": _tasks, "texts": _texts, "profiles": _profiles}
    print("\n".join(lines[arguments.what](arguments.verbose)))
    return OK


def _methods(verbose: bool) -> list[str]:
    import methods

    cards, packages, lines = methods.catalogue(), methods.installed(), []
    wide = 2 + max(len(name) for name in [*(card.name for card in cards), *(name for name, _ in packages)])
    for card in cards:
        without = f"; not {', '.join(card.without)}" if card.without else ""
        cost = f", {card.cost}" if card.cost else ""
        lines += [f"{card.name:<{wide}}{card.summary}", f"{'':<{wide}}looks at {card.needs}{cost}{without}"]
        if verbose:
            lines += [f"    {name} = {default:<12}{meaning}" for name, default, meaning in card.parameters]
    return lines + [f"{name:<{wide}}of the installed package {package}" for name, package in packages]


def _models(verbose: bool) -> list[str]:
    from bench import assets

    lines = [_offer(name, offer) for name, offer in assets.MODELS.items()]
    return [*lines, "A folder in Hugging Face layout, a .gguf file and a hub name work too."]


def _texts(verbose: bool) -> list[str]:
    from bench import assets

    lines = [_offer(name, offer) for name, offer in assets.TEXTS.items()]
    return [*lines, "A UTF-8 file and hub:DATASET[:CONFIG[:SPLIT]] work too."]


def _offer(name: str, offer: Any) -> str:
    from bench import assets

    asset = assets.ASSETS[offer.asset]
    return f"{name:<16}{offer.title}: {offer.description} ({asset.requirement}, {asset.licence})"


def _tasks(verbose: bool) -> list[str]:
    from bench import task_table as tasks

    lines = []
    for name in (*tasks.OFFLINE, *tasks.HUB):
        groups = [group for group, members in tasks.GROUPS.items() if name in members]
        source = [] if name in tasks.OFFLINE else [f"from the hub, or --task-data {name}=PATH"]
        if verbose or not {"mmlu", "cmmlu"} & set(groups):
            lines.append(f"{name:<16}{'; '.join(filter(None, [', '.join(groups), *source]))}".rstrip())
    if not verbose:
        lines.append(f"{'mmlu':<16}{len(tasks.GROUPS['mmlu'])} subjects, by name with --verbose; laco")
        lines.append(f"{'cmmlu':<16}{len(tasks.GROUPS['cmmlu'])} subjects, from the hub; laco")
    return [
        *lines,
        "quick, commonsense, laco, mmlu and cmmlu are groups, and names for --tasks as well.",
        "Any other task of lm-eval works too, with its data from the hub or from --task-data.",
    ]


def _profiles(verbose: bool) -> list[str]:
    lines = []
    for name, protocol in PROFILES.items():
        documents = f"{protocol.documents} documents each" if protocol.documents else "all documents"
        windows = f"{protocol.windows} windows" if protocol.windows else "all windows"
        tasks = f"{', '.join(protocol.tasks)}, {documents}" if protocol.tasks else "no tasks"
        texts = f"perplexity of {', '.join(protocol.texts)}, {windows} of {protocol.window} tokens"
        lines.append(f"{name:<16}{tasks}; {texts if protocol.texts else 'no texts; speed alone'}")
        if verbose:
            lines += [f"    {field} = {value}" for field, value in dataclasses.asdict(protocol).items()]
    return lines


def _fetch(arguments: argparse.Namespace) -> int:
    from bench import assets

    unknown = [name for name in arguments.names if name not in assets.ALL]
    if unknown:
        raise UserError(f"nothing is called {unknown[0]!r}; there are {', '.join(assets.ALL)}")
    for name, folder in assets.fetch(arguments.names or assets.ALL).items():
        print(f"{name:<16}{folder}")
    return OK
