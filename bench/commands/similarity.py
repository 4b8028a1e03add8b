"""The command similarity: how alike a model's layers are, and what merging some of them does."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from bench import flags
from bench.commands import OK
from bench.errors import UserError
from bench.spec import slug


def add(commands: Any) -> None:
    similarity = commands.add_parser(
        "similarity",
        help="compare a model's layers, and merge them on trial",
        description=(
            "Cosine and L2 distance between all pairs of layers, of parameters and of states, and the effect of "
            "merging neighbouring layers at every position by every rule. The same command goes on where it stopped."
        ),
    )
    similarity.add_argument("model", nargs="?", default="smollm2-135m", metavar="MODEL", help="by default %(default)s")
    similarity.add_argument("--text", default="c4", help="whose states are compared, its calibration half")
    similarity.add_argument("--sequences", type=int, default=16, metavar="N", help="of that text")
    similarity.add_argument("--length", type=int, default=128, metavar="TOKENS", help="of a sequence")
    similarity.add_argument(
        "--merge",
        type=flags.sizes,
        default=(2, 3, 4),
        metavar="LIST",
        help="numbers of layers that become one; or none",
    )
    similarity.add_argument("--held-out", default="wiki", metavar="TEXT", help="on which merged models are measured")
    similarity.add_argument("--windows", type=int, default=8, metavar="N", help="of that text")
    similarity.add_argument("--window", type=int, default=64, metavar="TOKENS", help="tokens of a window")
    similarity.add_argument("--format", choices=("terminal", "markdown", "json"), default="terminal")
    similarity.add_argument("--out", type=Path, metavar="DIR", help="by default results/<date>-similarity-<model>")
    similarity.add_argument("--device", default="auto", help="auto, cpu or cuda")
    similarity.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    similarity.add_argument("--threads", type=int, metavar="N", help="torch threads on the CPU")
    similarity.add_argument("--seed", type=int, default=0, help="of the draw of sequences")
    similarity.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a model")
    similarity.set_defaults(command=_similarity)


def _similarity(arguments: argparse.Namespace) -> int:
    name = slug(arguments.model.rstrip("/").rsplit("/", 1)[-1])
    folder = arguments.out or Path("results") / f"{time.strftime('%Y-%m-%d')}-similarity-{name}"
    start = time.perf_counter()
    found = _study(arguments, folder)
    from reports import similarity as report

    files = report.write(folder, found)
    print({"terminal": report.terminal, "markdown": report.markdown, "json": report.as_json}[arguments.format](found))
    print(f"{folder}: {', '.join(files)}; {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return OK


def _study(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Refuse what can be refused before the model is loaded, then look."""
    from dataclasses import replace

    from bench import data, environment, leaks, models, preflight, similarity
    from methods.anatomy import Decoder
    from methods.pruner import Unsupported

    names = ("text", "sequences", "length", "merge", "held_out", "windows", "window", "seed")
    protocol = similarity.Protocol(**{name: getattr(arguments, name) for name in names})
    for text in (protocol.text, protocol.held_out):
        data.check(text)
    models.check(arguments.model, arguments.trust_remote_code)
    device = models.resolve_device(arguments.device)
    dtype = models.resolve_dtype(arguments.dtype, device)
    if arguments.threads is not None:
        preflight.set_threads(arguments.threads)
    try:
        shell = Decoder(models.shell(arguments.model, arguments.trust_remote_code))
    except Unsupported as error:
        raise UserError(str(error)) from None
    similarity.refuse_unless_alike(shell)
    if max(protocol.merge, default=0) > len(shell.layers):
        raise UserError(f"--merge names {max(protocol.merge)} layers, and the model has {len(shell.layers)}")
    preflight.check_folder(folder)
    tokenizer = models.load_tokenizer(arguments.model, arguments.trust_remote_code)
    tokens = data.calibration(tokenizer, protocol.text, protocol.sequences, protocol.length, protocol.seed)
    whole = data.is_whole(protocol.held_out, protocol.text)
    held_out = data.evaluation(
        tokenizer, protocol.held_out, protocol.window, protocol.window, protocol.windows, whole=whole
    )
    leaks.refuse_shared(tokenizer, tokens.ids, tokens.source, [held_out], "compared on")
    loaded, _ = models.load(arguments.model, device, dtype, arguments.trust_remote_code)
    heading = {
        "model": models.display_name(arguments.model),
        "weights_sha256": models.weights_sha256(arguments.model),
        "dtype": str(dtype).removeprefix("torch."),
        "environment": environment.describe(device, dtype),
    }
    tokens = replace(tokens, memory=similarity.MEMORY)
    return similarity.study(
        heading, Decoder(loaded), protocol, tokens=tokens, held_out=held_out, file=folder / "similarity.json"
    )
