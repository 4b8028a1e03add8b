"""The command similarity: how alike a model's layers are, and what merging some of them does."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from bench.cli import OK
from bench.plan.cell import slug
from bench.plan.parse import sizes
from methods.errors import UserError


def add(commands: Any) -> None:
    layer_similarity = commands.add_parser(
        "similarity",
        help="compare a model's layers, and merge them on trial",
        description=(
            "Cosine and L2 distance between all pairs of layers, of parameters and of states, and the effect of "
            "merging neighbouring layers at every position by every rule. The same command goes on where it stopped."
        ),
    )
    layer_similarity.add_argument(
        "model", nargs="?", default="smollm2-135m", metavar="MODEL", help="by default %(default)s"
    )
    layer_similarity.add_argument("--text", default="c4", help="whose states are compared, its calibration half")
    layer_similarity.add_argument("--sequences", type=int, default=16, metavar="N", help="of that text")
    layer_similarity.add_argument("--length", type=int, default=128, metavar="TOKENS", help="of a sequence")
    layer_similarity.add_argument(
        "--merge",
        type=sizes,
        default=(2, 3, 4),
        metavar="LIST",
        help="numbers of layers that become one; or none",
    )
    layer_similarity.add_argument(
        "--held-out", default="wiki", metavar="TEXT", help="on which merged models are measured"
    )
    layer_similarity.add_argument("--windows", type=int, default=8, metavar="N", help="of that text")
    layer_similarity.add_argument("--window", type=int, default=64, metavar="TOKENS", help="tokens of a window")
    layer_similarity.add_argument("--format", choices=("terminal", "markdown", "json"), default="terminal")
    layer_similarity.add_argument(
        "--out", type=Path, metavar="DIR", help="by default results/<date>-similarity-<model>"
    )
    layer_similarity.add_argument("--device", default="auto", help="auto, cpu or cuda")
    layer_similarity.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    layer_similarity.add_argument("--threads", type=int, metavar="N", help="torch threads on the CPU")
    layer_similarity.add_argument("--seed", type=int, default=0, help="of the draw of sequences")
    layer_similarity.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a model")
    layer_similarity.set_defaults(command=_similarity)


def _similarity(arguments: argparse.Namespace) -> int:
    name = slug(arguments.model.rstrip("/").rsplit("/", 1)[-1])
    folder = arguments.out or Path("results") / f"{time.strftime('%Y-%m-%d')}-similarity-{name}"
    start = time.perf_counter()
    found = _study(arguments, folder)
    from reports.figures import similarity as report

    files = report.write(folder, found)
    print({"terminal": report.terminal, "markdown": report.markdown, "json": report.as_json}[arguments.format](found))
    print(f"{folder}: {', '.join(files)}; {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return OK


def _study(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Refuse what can be refused before the model is loaded, then look."""
    from dataclasses import replace

    from bench.data import contamination, pretrained, texts
    from bench.evaluation import layer_similarity
    from bench.plan import validate
    from bench.system import environment
    from methods.errors import Unsupported
    from methods.model.decoder import Decoder

    names = ("text", "sequences", "length", "merge", "held_out", "windows", "window", "seed")
    protocol = layer_similarity.SimilarityProtocol(**{name: getattr(arguments, name) for name in names})
    for text in (protocol.text, protocol.held_out):
        texts.check(text)
    pretrained.check(arguments.model, arguments.trust_remote_code)
    device = pretrained.resolve_device(arguments.device)
    dtype = pretrained.resolve_dtype(arguments.dtype, device)
    if arguments.threads is not None:
        validate.set_threads(arguments.threads)
    try:
        shell = Decoder(pretrained.shell(arguments.model, arguments.trust_remote_code))
    except Unsupported as error:
        raise UserError(str(error)) from None
    layer_similarity.refuse_unless_alike(shell)
    if max(protocol.merge, default=0) > len(shell.layers):
        raise UserError(f"--merge names {max(protocol.merge)} layers, and the model has {len(shell.layers)}")
    validate.check_folder(folder)
    tokenizer = pretrained.load_tokenizer(arguments.model, arguments.trust_remote_code)
    tokens = texts.calibration(tokenizer, protocol.text, protocol.sequences, protocol.length, protocol.seed)
    whole = texts.is_whole(protocol.held_out, protocol.text)
    held_out = texts.evaluation(
        tokenizer, protocol.held_out, protocol.window, protocol.window, protocol.windows, whole=whole
    )
    contamination.refuse_shared(tokenizer, tokens.ids, tokens.source, [held_out], "compared on")
    loaded, _ = pretrained.load(arguments.model, device, dtype, arguments.trust_remote_code)
    heading = {
        "model": pretrained.display_name(arguments.model),
        "weights_sha256": pretrained.weights_sha256(arguments.model),
        "dtype": str(dtype).removeprefix("torch."),
        "environment": environment.describe(device, dtype),
    }
    tokens = replace(tokens, memory=layer_similarity.MEMORY)
    return layer_similarity.study(
        heading, Decoder(loaded), protocol, tokens=tokens, held_out=held_out, file=folder / "similarity.json"
    )
