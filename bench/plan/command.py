"""Writes the command that measures a cell again.

A record says everything that can change a number. Of it the command says what differs from the defaults of `run`, and
always seed, device and dtype, since the last two follow from the machine.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any

import methods
from bench.data import programs
from bench.plan.cell import Cell, Stage
from bench.plan.fields import options_of_class, to_word
from bench.plan.protocol import PROFILES, Protocol, Recipe, protocol_of_profile
from methods.cards import cards_of_compensations, cards_of_methods
from methods.counted import QUANTITIES

PROGRAM = ("python", "-m", "bench", "run")
FROM_MACHINE = (  # fields of a protocol that have other defaults on a GPU
    *("prefill", "decode", "batches", "decode_steps", "speed_rounds", "max_batch", "cache", "mode"),
    "calibration_memory_mib",
)


def command_of_cell(cell: Cell, seeds: Collection[int] = ()) -> str | None:
    """Return the command that measures a cell again, with its parents, and for a random method every draw.

    seeds  those of several cells that differ in the seed alone; by default the cell's own

    None where the answer stands on what a record does not hold: files of tasks or methods, a table of latencies, a
    server. None too where no flags of this version give the method, the protocol or the recipe.
    """
    protocol = cell.protocol
    needs_more = protocol.task_data or protocol.task_files or protocol.is_served or cell.latency
    if needs_more or protocol.profile not in PROFILES or not all(map(_is_of_this_version, cell.stages)):
        return None
    recipes = list(dict.fromkeys(stage.healing for stage in cell.stages if stage.healing))
    parts = [_words_of_protocol(protocol, on_gpu=cell.device != "cpu"), *map(_words_of_recipe, recipes)]
    if None in parts or len(recipes) > 1:
        return None
    first, *later = cell.stages
    words = [*PROGRAM, "--methods", _word_of_stage(first), "--model", cell.model]
    words += _words_of_amount(first.ratio, cell.ratio_of)
    words += ["--match", cell.match] if cell.match != "layers" else []
    for stage in later:
        words += ["--then", _word_of_stage(stage, f"ratio={stage.ratio}")]
    for part in parts:
        words += part or []
    words += [f"--{programs.FLAG}"] if any(task in programs.SOURCES for task in protocol.tasks) else []
    words += ["--trust-remote-code"] if cell.trust_remote_code else []
    every = dict.fromkeys([*(recipe.seed for recipe in recipes), *(seeds or [cell.seed])])  # a recipe has the first
    words += ["--seed", ",".join(map(str, every)), "--device", cell.device, "--dtype", cell.dtype]
    return shlex.join(words)


@functools.cache
def _built_in_names() -> frozenset[str]:
    return frozenset(card.name for card in (*cards_of_methods(), *cards_of_compensations()))


def _is_of_this_version(stage: Stage) -> bool:
    """Say whether a method of this suite has these parameters, as it is made from those that were given."""
    if not _built_in_names().issuperset(stage.method.split("+")):
        return False
    try:
        pruner = methods.make(stage.method, {name: to_word(stage.parameters[name]) for name in stage.given})
    except ValueError:
        return False
    every = (methods.parameters_of_pruner(pruner), stage.without_draw.parameters)
    of_pruner, of_record = (methods.find_changed_parameters(stage.method, parameters) for parameters in every)
    return of_pruner == of_record


def _word_of_stage(stage: Stage, *more: str) -> str:
    """Return a stage as --methods takes it, or --then with a ratio: 'laco:C=3,T=0.7'."""
    given = ",".join([*more, *(f"{name}={to_word(stage.parameters[name])}" for name in stage.given)])
    return f"{stage.method}:{given}" if given else stage.method


def _words_of_amount(ratio: float | None, ratio_of: str) -> list[str]:
    if ratio is None:
        return []
    if ratio_of in QUANTITIES:
        return ["--budget", f"{ratio_of}={round(1 - ratio, 12)}"]
    return ["--ratio", str(ratio), *([] if ratio_of == "all" else ["--ratio-of", ratio_of])]


def _words_of_protocol(protocol: Protocol, *, on_gpu: bool) -> list[str] | None:
    """Return the profile and what differs from it, as flags; None where none give it."""
    base = protocol_of_profile(protocol.profile)
    if protocol.window != base.window:
        base = replace(base, window=protocol.window, stride=protocol.window)  # which follows the window
        always: Collection[str] = ("window",)
    else:
        always = ()
    words = _words_of_changes(protocol, base, (*always, *(FROM_MACHINE if on_gpu else ())))
    return words if words is None or protocol.profile == Protocol.profile else ["--profile", protocol.profile, *words]


def _words_of_recipe(recipe: Recipe) -> list[str] | None:
    """Return a recipe as flags; None where none give it."""
    base = replace(Recipe(recipe.kind), seed=recipe.seed)
    words = _words_of_changes(recipe, base)
    return None if words is None else ["--heal", recipe.kind, *words]


def _words_of_changes(settings: Any, base: Any, always: Collection[str] = ()) -> list[str] | None:
    """Return the fields that differ from those of `base`, and `always` these, as flags; None where one has no flag."""
    options = {option.field: option for option in options_of_class(type(settings))}
    words = list[str]()
    for name in [field.name for field in fields(settings)]:
        value = getattr(settings, name)
        if value == getattr(base, name) and name not in always:
            continue
        if name not in options:
            return None
        if options[name].kind is not bool:
            words += [f"--{options[name].flag}", _word_of_value(value)]
        elif value != options[name].default:
            words.append(f"--{options[name].flag}")
        else:
            return None  # no flag switches back what a profile has switched
    return words


def _word_of_value(value: Any) -> str:
    return (",".join(map(to_word, value)) or "none") if isinstance(value, tuple) else to_word(value)
