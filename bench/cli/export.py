"""The commands export and verify: pruned models on disk."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import cli
from bench.cli import NOT_AS_SAID, OK
from bench.export.formats import FORMATS, GGUF, HETEROGENEOUS, HF
from bench.plan.protocol import QUANTISED, SAVE_DTYPES
from methods.errors import UserError

SHARD_MB = 5000


def add(commands: Any) -> None:
    """Add the commands export and verify."""
    _add_export(commands)
    _add_verify(commands)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="take a pruned model out of a run",
        description="Write a cell's model in a format that other programs read: the saved one, or one made anew from "
        "its record. `list formats` says which shapes each format holds.",
    )
    export.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    which = "the key of a cell, the start of one, or a label; with --every-eval-ever also `all`"
    export.add_argument("cell", metavar="CELL", help=which)
    export.add_argument("--to", type=Path, metavar="PATH", help="a new folder for the model; a new file for gguf")
    export.add_argument("--format", default=HF, choices=FORMATS, help="hf by default")
    dtypes = (
        "auto (the base's), float32, bfloat16 or float16; by default as the saved model is, or without one as the "
        f"run measured; for gguf also {' or '.join(QUANTISED)}"
    )
    export.add_argument("--save-dtype", metavar="DTYPE", help=dtypes)
    export.add_argument("--pad-to-uniform", action="store_true", help="fill layers up with zeros to the same widths")
    fill = "fill the channels of each MLP up with zeros to a multiple of N; for gguf and nemotron-nas"
    export.add_argument("--multiple", type=int, default=1, metavar="N", help=fill)
    export.add_argument("--shard-mb", type=int, default=SHARD_MB, metavar="MB", help="the most of a weight file, in MB")
    export.add_argument("--device", default="auto", help="to make the model anew on; auto: as in the record")
    figures = "write what the cell has answered as a result file of lm-eval, in place of a model"
    answers = export.add_mutually_exclusive_group()
    answers.add_argument("--lm-eval-json", action="store_true", help=figures)
    every = "write figures and answers in the schema of Every Eval Ever, in place of a model; --to is a folder"
    answers.add_argument("--every-eval-ever", action="store_true", help=every)
    push = (
        "push the written folder to the Hugging Face hub, with its card, whose figures the hub shows as evaluation "
        "results; a new repository is private"
    )
    export.add_argument("--push", metavar="ORG/NAME", help=push)
    public = "a new repository of --push can be seen by all; one that exists stays as it is"
    export.add_argument("--public", action="store_true", help=public)
    export.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a Python file with methods")
    cli.add_trust(export)
    export.set_defaults(command=_export)


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="check a saved model",
        description="Compare a saved model with its manifest and try it: files, hashes, shapes, logits, cache. A GGUF "
        "file is loaded in llama.cpp too, whose tokens, logits and perplexity are compared with those of transformers.",
    )
    verify.add_argument("path", type=Path, metavar="PATH", help="a folder or a GGUF file that run or export wrote")
    verify.add_argument("--text", default="wiki", help="for the perplexity of a GGUF file; see `list texts`")
    verify.add_argument("--windows", type=int, default=4, metavar="N", help="of that text, of 512 tokens each")
    verify.set_defaults(command=_verify)


def _export(arguments: argparse.Namespace) -> int:
    _check(arguments)
    if arguments.lm_eval_json:
        from bench.export.write import write_lm_eval_results

        print(write_lm_eval_results(arguments.run, arguments.cell, arguments.to))
        return OK
    if arguments.every_eval_ever:
        from bench.export.every_eval_ever import write_every_eval_ever

        cell = None if arguments.cell == "all" else arguments.cell
        print(*write_every_eval_ever(arguments.run, cell, arguments.to), sep="\n")
        return OK
    import methods
    from bench.export import hub, write

    try:
        methods.load(arguments.plugin)
    except ValueError as error:
        raise UserError(str(error)) from None
    wish = write.Wish(
        to=arguments.to,
        format=arguments.format,
        dtype=arguments.save_dtype,
        pad=arguments.pad_to_uniform,
        multiple=arguments.multiple,
        most=arguments.shard_mb * 10**6,
        device=arguments.device,
    )
    record, trust = write.find_cell(arguments.run, arguments.cell), cli.trust_of(arguments)
    if arguments.push:
        hub.check_push(arguments.push)
    print(write.write_model(record, trust, wish))
    if arguments.push:
        return _push(arguments)
    return _print(write.check_engine(record, trust, wish)) if arguments.format == GGUF else OK


def _push(arguments: argparse.Namespace) -> int:
    """Push the written folder to the hub, and return the exit code."""
    from bench.export import hub

    try:
        print(hub.push_folder(arguments.to, arguments.push, public=arguments.public))
    except hub.NotPushed as error:
        print(error, file=sys.stderr)
        return NOT_AS_SAID
    return OK


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError for flags that do not go together."""
    if not arguments.to:
        raise UserError(f"say where the {_kind_of_export(arguments)} goes: --to PATH")
    if arguments.lm_eval_json or arguments.every_eval_ever:
        _refuse_flags_of_models(arguments)
    form, dtype, dtypes = arguments.format, arguments.save_dtype, (*SAVE_DTYPES[1:], *QUANTISED)
    rules = {
        f"--push is for --format hf, whose folder has a card; `hf upload` takes what {form} is": (
            arguments.push and form != HF
        ),
        "--public is about --push, which is not asked for; leave it out": arguments.public and not arguments.push,
        f"shard-mb is a number of megabytes, at least 1; got {arguments.shard_mb}": arguments.shard_mb < 1,
        "--shard-mb is for folders; --format gguf writes one file": arguments.shard_mb != SHARD_MB and form == GGUF,
        f"multiple is a number of channels, at least 1; got {arguments.multiple}": arguments.multiple < 1,
        "--multiple is for --format gguf and nemotron-nas": arguments.multiple > 1 and form in (HF, HETEROGENEOUS),
        f"save-dtype {dtype} is for --format gguf": dtype in QUANTISED and form != GGUF,
        f"save-dtype is {', '.join(dtypes)}; got {dtype!r}": dtype not in (None, *dtypes),
    }
    for message, is_broken in rules.items():
        if is_broken:
            raise UserError(message)


def _kind_of_export(arguments: argparse.Namespace) -> str:
    """Return the word for what is written."""
    if arguments.lm_eval_json:
        return "file"
    return "folder of answers" if arguments.every_eval_ever else "model"


def _refuse_flags_of_models(arguments: argparse.Namespace) -> None:
    """Raise UserError for flags that are about models, where only answers are written."""
    of_models = {
        "--format": arguments.format != HF,
        "--save-dtype": arguments.save_dtype,
        "--pad-to-uniform": arguments.pad_to_uniform,
        "--multiple": arguments.multiple != 1,
        "--shard-mb": arguments.shard_mb != SHARD_MB,
        "--device": arguments.device != "auto",
        "--plugin": arguments.plugin,
        "--push": arguments.push,
    }
    if given := [flag for flag, is_given in of_models.items() if is_given]:
        flag = "--lm-eval-json" if arguments.lm_eval_json else "--every-eval-ever"
        raise UserError(f"{flag} writes figures and no model: leave {' and '.join(given)} out")


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.path.suffix == ".gguf":
        from bench.export import engine_check

        return _print(engine_check.check_alone(arguments.path, arguments.text, arguments.windows))
    from methods.checkpoint import save_load

    return _print(save_load.verify(arguments.path))


def _print(checks: Iterable[Any]) -> int:
    """Print checks as they come, a line each, and return their common exit code."""
    passed = True
    for check in checks:
        print(check)
        passed &= check.passed
    return OK if passed else NOT_AS_SAID
