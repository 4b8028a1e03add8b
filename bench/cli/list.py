"""The commands list, fetch and doctor: what there is, and whether this machine gives right numbers."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli import NOT_AS_SAID, OK
from bench.doctor import CHECKS
from bench.plan.protocol import PROFILES, Protocol, protocol_for_cuda, protocol_of_profile
from methods.console import say
from methods.errors import UserError

if TYPE_CHECKING:
    from methods.cards import Card


MEASURED = Path(__file__).parents[1] / "schedule" / "measured_costs.json"  # written by docs/generate.py
CONDITIONS = (
    "SmolLM2-135M in float32, 0.2 of the decoder, 64 x 256 tokens of calibration, one run. It had one core of two of "
    "an {cpu}, which other work shared. The memory is that of the process in no file, with the model. A method without "
    "such a line was not measured so"
)
WHAT = ("methods", "models", "families", "tasks", "texts", "profiles", "specs", "formats")


def add_list(commands: Any) -> None:
    """Add the commands list and fetch."""
    listing = commands.add_parser("list", help="show what there is")
    listing.add_argument("what", choices=WHAT)
    listing.add_argument(
        "--verbose", action="store_true", help="parameters and checks of methods, fields of profiles, subjects"
    )
    listing.set_defaults(command=_list)
    fetch = commands.add_parser("fetch", help="download models, texts and tasks ahead of time")
    fetch.add_argument("names", nargs="*", metavar="NAME", help="only these; by default smollm2-135m, text and tasks")
    fetch.add_argument("--accept-terms", action="store_true", help="accept the terms of use of what is named")
    fetch.set_defaults(command=_fetch)


def _list(arguments: argparse.Namespace) -> int:
    lines = {"methods": _methods, "models": _models, "tasks": _tasks, "texts": _texts, "profiles": _profiles}
    lines |= {"families": _families, "specs": _specs, "formats": _formats}
    print("\n".join(lines[arguments.what](arguments.verbose)))
    return OK


def _methods(verbose: bool) -> list[str]:
    import methods

    cards, packages, lines = methods.cards_of_methods(), methods.installed_methods(), list[str]()
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    took = measured["methods"]
    names = [card.name for card in cards] + [name for name, _ in packages]
    wide = 2 + max(map(len, names))
    for card in cards:
        without = f"; not {', '.join(card.without)}" if card.without else ""
        cost = f", {card.cost}" if card.cost else ""
        lines += [f"{card.name:<{wide}}{card.summary}", f"{'':<{wide}}looks at {card.needs}{cost}{without}"]
        if card.name in took:
            cost_here = took[card.name]
            spent = f"{cost_here['seconds']:,.5g} s and {cost_here['gib']:g} GiB"
            lines.append(f"{'':<{wide}}took {spent} to prune the default model*")
        lines += [f"{'':<{wide}}{line}" for line in _paper(card)]
        if verbose:
            lines += [f"    {name} = {default:<12}{meaning}" for name, default, meaning in card.parameters]
            lines += _authors(card)
    lines += [f"{name:<{wide}}of the installed package {package}" for name, package in packages]
    lines.append("A compensation follows a method behind a plus, as in shortgpt+ghost:ghost.ridge=0.1")
    for card in methods.cards_of_compensations():
        lines.append(f"{f'+{card.name}':<{wide}}{card.summary}")
        lines += [f"{'':<{wide}}{line}" for line in _paper(card)]
        if verbose:
            lines += [f"    {card.name}.{name} = {default:<12}{meaning}" for name, default, meaning in card.parameters]
            lines += _authors(card)
    lines.append(f"* {CONDITIONS.format(cpu=measured['cpu'].replace('(R)', ''))}")
    return lines


def _paper(card: Card) -> list[str]:
    """Return lines on what the ratio of a method's paper is a share of, and on what its authors read."""
    ratio = [f"its paper's ratio is of {card.paper_ratio}"] if card.paper_ratio else []
    return [*ratio, f"its authors read {card.paper_reads}"] if card.paper_reads else ratio


def _authors(card: Card) -> list[str]:
    """Return lines on how a method compares with its authors' code, and where its module departs from that."""
    from methods.cards import departures_of, read_comparisons

    lines, check = [], read_comparisons().get(card.module.rpartition(".")[2])
    if check and card.name in check.methods:
        code = " and ".join(f"{name} at {commit[:7]}" if commit else name for name, commit in check.code)
        whose = "the authors' code" if check.by_the_authors else "other people's code"
        lines.append(f"    checked against {whose} ({code}), runs: {check.runs}; {check.compared}")
        lines.append(f"        largest differences: {check.apart}")
        lines += [f"        put in for that: {sentence}" for sentence in check.put_in]
        lines += [
            f"        speed: theirs {own.theirs:.2f} s, ours {own.ours:.2f} s, {own.times} times as fast ({own.work})"
            for own in check.speed
        ]
    return lines + [f"    departure: {sentence}" for sentence in departures_of(card.module)]


def _models(verbose: bool) -> list[str]:
    from bench.data import assets

    lines = [_offer(name, offer) for name, offer in assets.MODELS.items()]
    return [*lines, "A folder in Hugging Face layout, a .gguf file and a hub name work too."]


def _families(verbose: bool) -> list[str]:
    from methods.model import architectures

    (_, *rows), lines = architectures.table_of_families(), []
    wide = 2 + max(len(name) for name, _, _ in rows)
    for name, axes, reasons in rows:
        lines.append(f"{name:<{wide}}{axes}")
        lines += [f"{'':<{wide}}not {reason}" for reason in reasons.split("; ") if reason]
    return [*lines, "A method that cuts along an axis which a model cannot lose says so before any work."]


def _texts(verbose: bool) -> list[str]:
    from bench.data import assets

    lines = [_offer(name, offer) for name, offer in assets.TEXTS.items()]
    return [
        *lines,
        "A UTF-8 file and hub:DATASET[:CONFIG[:SPLIT]] work too. Tokens are counted by smollm2-135m's tokenizer.",
        "For --calibration alone: task:NAME, the questions of a task that are not scored; self and self:NAME, what the "
        "dense model writes, behind such questions; mixtures by shares, as c4:0.5,wiki:0.3,code:0.2.",
    ]


def _offer(name: str, offer: Any) -> str:
    from bench.data import assets

    asset = assets.ASSETS[offer.asset]
    return f"{name:<20}{offer.title}: {offer.description} ({asset.source}, {asset.licence})"


def _series_of_name(name: str) -> str:
    """Return the name of the series that a task by skill is of, as in mt_mbpp_*; of any other task its own."""
    from bench.data.skills import SERIES

    series = SERIES.match(name)
    return f"{series[0]}*" if series else name


def _tasks(verbose: bool) -> list[str]:
    from bench.data import programs, skills
    from bench.data import task_sources as tasks
    from bench.data.task_descriptions import describe_task

    source_by_task = dict[str, str]()
    for name in (*tasks.OFFLINE, *tasks.HUB):
        groups = [group for group, members in tasks.GROUPS.items() if name in members]
        source = [] if name in tasks.OFFLINE else [f"from the hub, or --task-data {name}=PATH"]
        if verbose or not ({"mmlu", "cmmlu"} & set(groups) or name in (*skills.SOURCES, *programs.SOURCES)):
            places = "; ".join(filter(None, [", ".join(groups), *source]))
            source_by_task[name] = describe_task(name) + f" ({places})" * bool(places)
    if not verbose:
        source_by_task["mmlu"] = f"{len(tasks.GROUPS['mmlu'])} subjects, by name with --verbose; laco"
        source_by_task["cmmlu"] = f"{len(tasks.GROUPS['cmmlu'])} subjects, from the hub; laco"
        source_by_task["skills"] = f"{len(skills.QUICK_SKILLS)} tasks of all skills, by name with --verbose"
        source_by_task["written"] = f"{len(skills.WRITTEN)} tasks with a written answer: {', '.join(skills.WRITTEN)}"
        source_by_task["programs"] = f"tasks whose answers are executed: {', '.join(programs.SOURCES)}"
        for group, names in skills.NAMES_BY_GROUP.items():
            words = dict.fromkeys(map(_series_of_name, names))
            source_by_task[group] = f"{len(skills.SKILLS[group])} tasks: {', '.join(words)}"
    wide = 2 + max(map(len, source_by_task))
    return [
        *(f"{name:<{wide}}{about}".rstrip() for name, about in source_by_task.items()),
        "quick, commonsense, laco, mmlu, cmmlu, skills, written, programs, needle and skill-* are groups, and names "
        "for --tasks as well.",
        "Tasks by skill end in their form: boolq_rc and boolq_mc (an answer's text, its letter), squad_bpb (a text), "
        "squad_gen (the model writes).",
        "Any other task of lm-eval works too, with its data from the hub or from --task-data.",
    ]


def _profiles(verbose: bool) -> list[str]:
    usual: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Protocol)}
    lines = []
    for name, changes in PROFILES.items():
        of = usual | changes | {"profile": name}
        documents = f"{of['documents']} documents each" if of["documents"] else "all documents"
        windows = f"{of['windows']} windows" if of["windows"] else "all windows"
        tasks = f"{', '.join(of['tasks'])}, {documents}" if of["tasks"] else "no tasks"
        texts = f"perplexity of {', '.join(of['texts'])}, {windows} of {of['window']} tokens"
        lines.append(f"{name:<16}{tasks}; {texts if of['texts'] else 'no texts; speed alone'}")
        if verbose:
            lines += [f"    {field} = {value}" for field, value in of.items()]
            on_cuda = dataclasses.asdict(protocol_for_cuda(protocol_of_profile(name), (), None))
            lines += [f"    {field} = {value} on CUDA" for field, value in on_cuda.items() if value != of[field]]
    return lines


def _specs(verbose: bool) -> list[str]:
    from bench.plan import run_spec

    specs = run_spec.shipped_specs()
    wide = 2 + max(map(len, specs))
    lines = [f"{name:<{wide}}{description}" for name, description in specs.items()]
    return [*lines, "`run --spec` takes these names, and a YAML file whose keys are the flags of `run`."]


def _formats(verbose: bool) -> list[str]:
    from bench.export import formats

    rows = formats.table_of_formats()
    columns = [column for at, column in enumerate(zip(*rows, strict=True)) if at != 1]
    widths = [2 + max(map(len, column)) for column in columns]
    lines = []
    for removed, by, *holds in rows:
        lines.append("".join(f"{text:<{wide}}" for text, wide in zip((removed, *holds), widths, strict=True)).rstrip())
        lines += [f"    {by}"] if (removed, by) != rows[0][:2] else []
    return [*lines, *(f"{name} is read by {who}" for name, who in formats.READ_BY.items())]


def _fetch(arguments: argparse.Namespace) -> int:
    from bench.data import assets

    unknown = [name for name in arguments.names if name not in assets.ASSETS]
    if unknown:
        raise UserError(f"nothing is called {unknown[0]!r}; there are {', '.join(assets.ASSETS)}")
    if arguments.accept_terms:
        _accept_terms(arguments.names)
    for name, folder in assets.fetch_assets(arguments.names or assets.DEFAULT).items():
        print(f"{name:<20}{folder}")
    return OK


def _accept_terms(names: list[str]) -> None:
    """Show and accept the terms of the assets that are named."""
    from bench.data import assets

    under = {name: asset.terms for name, asset in assets.ASSETS.items() if asset.terms is not None}
    if not under.keys() & set(names):
        raise UserError(f"--accept-terms: name what comes under terms: {', '.join(under)}")
    for name in names:
        if name in under:
            say(f"{name} comes {under[name].notice}: accepted")
            under[name].accept(assets.folder_of_cache())


def add_doctor(commands: Any) -> None:
    """Add the command doctor."""
    doctor = commands.add_parser(
        "doctor",
        help="say whether this machine gives right numbers",
        description=(
            "Look at this machine: its speed, every method on a tiny model beside stored results, the scorer beside "
            "lm-eval's, a model timed against itself, and saved models. On a GPU look at its memory and its copies "
            "too. Prints one table; the exit code is 1 where something is wrong. Nothing is fetched, and nothing is "
            "left behind."
        ),
    )
    doctor.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    doctor.add_argument("--only", default="", metavar="LIST", help=f"of {', '.join(CHECKS)}; by default all")
    doctor.add_argument(
        "--engine", choices=("vllm",), help="check instead whether it computes pruned models of every shape, in minutes"
    )
    doctor.add_argument(
        "--engine-python", default="", metavar="PATH", help="that has the engine, as in /opt/vllm/bin/python"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON for a bug report instead of the table")
    doctor.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from bench.data import pretrained
    from bench.doctor import examination, finding, machine, serving
    from methods.console import say

    device = pretrained.resolve_device(arguments.device)
    only = [name for name in arguments.only.split(",") if name]
    if arguments.only and not only:
        raise UserError(f"--only is given nothing; name one of {', '.join(CHECKS)} or several")
    if arguments.engine and only:
        raise UserError("--only names checks of this machine, and --engine checks an engine alone")
    findings = (
        list(serving.check_vllm(arguments.engine_python)) if arguments.engine else examination.examine(device, only)
    )
    if arguments.json:
        print(json.dumps(finding.document_of_findings(findings, machine.describe(device)), indent=1, allow_nan=False))
    else:
        print(finding.format_findings(findings))
    wrong = examination.names_of_wrong(findings)
    where = f"with {arguments.engine}" if arguments.engine else "on this machine"
    say(f"wrong {where}: {'; '.join(wrong)}" if wrong else f"nothing is wrong {where}")
    return NOT_AS_SAID if wrong else OK
