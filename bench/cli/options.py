"""Flags that several commands share. Imports nothing heavy."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.plan.parse import sizes
from bench.plan.protocol import CACHES
from bench.plan.recipe import KINDS, LOSSES, Recipe
from methods.errors import UserError


def cores(text: str) -> tuple[int, ...]:
    """'0,1' -> (0, 1). Raises UserError for a core that this process may not use."""
    found = sizes(text)
    if not hasattr(os, "sched_getaffinity"):
        raise UserError("--pin: this system does not let a program choose its cores")
    allowed = os.sched_getaffinity(0)
    for core in found:
        if core not in allowed:
            raise UserError(f"--pin: core {core} cannot be used; there are {','.join(map(str, sorted(allowed)))}")
    return found


def add_pruning(what: Any) -> None:
    """At which ratio, by which code."""
    what.add_argument("--ratio", default="", metavar="LIST", help="share of all parameters to remove, as in 0.1,0.3")
    what.add_argument(
        "--set", action="append", default=[], metavar="METHOD.NAME=LIST", help="as in laco.T=0.7; laco.C=2,3,4 sweeps"
    )
    what.add_argument("--max-cells", type=int, default=200, metavar="N", help="of a sweep; more are refused")
    what.add_argument("--match", choices=("layers", "exact"), default="layers", help="round the ratio to whole layers")
    what.add_argument(
        "--compensate", metavar="NAME", help="of `list methods`, behind all of --methods: laco is laco+NAME"
    )
    what.add_argument("--uniform", action="store_true", help="cut widths alike in all layers, for stock transformers")
    what.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a model")
    what.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a Python file with methods")


def add_calibration(how: Any) -> None:
    """What methods look at; several values are a sweep (bench.plan.grid)."""
    how.add_argument("--calibration", metavar="LIST", help="text that methods look at; several sweep")
    how.add_argument("--calibration-sequences", type=sizes, metavar="LIST", help="how many; several sweep")
    how.add_argument("--calibration-length", type=sizes, metavar="LIST", help="tokens of each; several sweep")
    how.add_argument("--calibration-memory-mib", type=int, metavar="MIB", help="for the states of a micro-batch")


HEALING = ("text", "tokens", "loss", "passes", "learning_rate", "rank", "batch", "length")  # of Recipe, by flag


def add_healing(how: Any) -> None:
    """How pruned models are trained, by the names of Recipe; a flag that is not given is None."""
    usual, rates = Recipe(), ", ".join(f"{rate:g} for {kind}" for kind, rate in KINDS.items())
    how.add_argument("--heal", choices=tuple(KINDS), help="measure every method as pruned, and healed; by default not")
    how.add_argument(
        "--heal-text", metavar="TEXT", help=f"whose calibration half is trained on, by default {usual.text}"
    )
    how.add_argument("--heal-tokens", type=int, metavar="N", help=f"trained on, by default {usual.tokens:,}")
    how.add_argument("--heal-loss", choices=LOSSES, help=f"kl: from the dense model; by default {usual.loss}")
    how.add_argument("--heal-passes", type=int, metavar="N", help=f"over the text, by default {usual.passes}")
    how.add_argument("--heal-learning-rate", type=float, metavar="RATE", help=f"the highest, by default {rates}")
    how.add_argument("--heal-rank", type=int, metavar="N", help=f"of LoRA's matrices, by default {usual.rank}")
    how.add_argument("--heal-batch", type=int, metavar="N", help=f"sequences of a step, by default {usual.batch}")
    how.add_argument("--heal-length", type=int, metavar="TOKENS", help=f"of a sequence, by default {usual.length}")


def recipe(arguments: argparse.Namespace) -> Recipe | None:
    """The recipe that the flags of `add_healing` ask for. Raises UserError for one that cannot be."""
    given = {name: value for name in HEALING if (value := getattr(arguments, f"heal_{name}")) is not None}
    if arguments.heal is None:
        if given:
            flag = f"--heal-{next(iter(given)).replace('_', '-')}"
            raise UserError(f"{flag} says how to heal, and nothing is healed; add --heal {' or --heal '.join(KINDS)}")
        return None
    if arguments.heal != "lora" and "rank" in given:
        raise UserError(f"--heal-rank is of LoRA's matrices, which --heal {arguments.heal} has none of; leave it out")
    found = Recipe(kind=arguments.heal, seed=arguments.seed, **given)
    return replace(found, learning_rate=found.highest)


def add_timing(how: Any, rounds: str) -> None:
    """What is timed and how; `rounds` is the name of the flag for the number of rounds."""
    how.add_argument("--prefill", type=sizes, metavar="LIST", help="prompt lengths in tokens, as in 128,1024; or none")
    how.add_argument("--decode", type=sizes, metavar="LIST", help="tokens of context before a step, or none")
    how.add_argument("--decode-steps", type=int, metavar="N", help="steps per pass, each a token for every sequence")
    how.add_argument("--batch", type=sizes, dest="batches", metavar="LIST", help="sequences at once, as in 1,8")
    how.add_argument("--max-batch", type=int, metavar="N", help="also 1, 2, 4, ... up to N or until memory runs out")
    how.add_argument(rounds, type=int, dest="speed_rounds", metavar="N", help="of dense against pruned; 0: none")
    how.add_argument("--cache", choices=CACHES, help="static: allocated once, for all tokens")
    how.add_argument("--compile", action="store_true", default=None, help="by torch.compile")
    how.add_argument("--pin", type=cores, metavar="LIST", help="numbers of the cores to run on, as in 0,1")
    how.add_argument("--speed-limit", type=int, metavar="SECONDS", help="of silence, before timing is given up")


def add_place(where: Any) -> None:
    """On what it runs, and where results go."""
    where.add_argument("--device", default="auto", help="auto, cpu or cuda")
    where.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    where.add_argument("--threads", type=int, metavar="N", help="torch threads on the CPU")
    where.add_argument("--seed", type=sizes, default=(0,), metavar="LIST", help="of all draws; several sweep")
    where.add_argument("--out", type=Path, metavar="DIR", help="by default results/<date>-<methods>-<model>")
    isolate = argparse.BooleanOptionalAction
    where.add_argument(
        "--isolate",
        action=isolate,
        help="each cell in a process of its own; by default timed cells share one until one fails in it",
    )
    where.add_argument("--cell-memory-mib", type=float, default=0.0, metavar="MIB", help="end a cell that takes more")
    where.add_argument("--cell-minutes", type=float, default=0.0, metavar="N", help="end a cell that takes longer")
    where.add_argument("--retry-failed", action="store_true", help="run cells again whose record is a failure")
