"""The commands export and verify: pruned models on disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.cli import NOT_AS_SAID, OK
from bench.plan.protocol import SAVE_DTYPES
from methods.errors import UserError


def add(commands: Any) -> None:
    _add_export(commands)
    _add_verify(commands)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="take a pruned model out of a run",
        description="Write a cell's model as a folder or a GGUF file: the saved one, or one made anew from its record.",
    )
    export.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    export.add_argument("cell", metavar="CELL", help="the key of a cell, the start of one, or a label")
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


def _export(arguments: argparse.Namespace) -> int:
    if not (arguments.to or arguments.gguf):
        raise UserError("say where the model goes: --to DIR, --gguf FILE or both")
    if arguments.shard_mb < 1:
        raise UserError(f"shard-mb is a number of megabytes, at least 1; got {arguments.shard_mb}")
    if arguments.save_dtype not in (None, *SAVE_DTYPES[1:]):
        raise UserError(f"save-dtype is {', '.join(SAVE_DTYPES[1:])}; got {arguments.save_dtype!r}")
    import methods
    from bench.export import write as export

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
    from methods.checkpoint import verify

    passed = True
    for check in verify.verify(arguments.folder):
        print(check)
        passed &= check.passed
    return OK if passed else NOT_AS_SAID
