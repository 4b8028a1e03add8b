"""The command similarity: how alike a model's layers are, and what merging some of them does."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.cli import OK, options
from bench.plan.fields import options as options_of
from bench.plan.protocol import SimilarityProtocol
from bench.plan.run_spec import RunSpec, flags, from_flags

OWN = options_of(SimilarityProtocol)
PLACE = [flags()[name] for name in ("device", "dtype", "threads", "trust-remote-code")]


def add(commands: Any) -> None:
    similarity = commands.add_parser(
        "similarity",
        help="compare a model's layers, and merge them on trial",
        description=(
            "Cosine and L2 distance between all pairs of layers, of parameters and of states, and the effect of "
            "merging neighbouring layers at every position by every rule. The same command goes on where it stopped."
        ),
    )
    model = flags()["model"].default
    similarity.add_argument("model", nargs="?", default=model, metavar="MODEL", help="by default %(default)s")
    options.add(similarity, OWN)
    similarity.add_argument("--format", choices=("terminal", "markdown", "json"), default="terminal")
    similarity.add_argument("--out", type=Path, metavar="DIR", help="by default results/<date>-similarity-<model>")
    options.add(similarity, PLACE)
    similarity.set_defaults(command=_similarity)


def _similarity(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    protocol = SimilarityProtocol(**options.fields(arguments, OWN))
    asked = {"methods": "dense", "model": arguments.model} | options.given(arguments, PLACE)
    spec = from_flags(asked | ({"out": arguments.out} if arguments.out else {}), name="similarity")
    folder = spec.folder()
    found = _study(spec, arguments.model, protocol, folder)
    from methods.files import write_atomically
    from reports.figures.figure import FORMATS, save
    from reports.figures.similarity import figures
    from reports.formats import markdown, terminal
    from reports.tables import similarity as tables

    drawn = figures(found)
    text = markdown.render([*tables.summaries(found), *tables.positions(found)], title=tables.title(found))
    write_atomically(folder / "similarity.md", text)
    for figure in drawn:
        save(figure, folder)
    files = ["similarity.json", "similarity.md", *(f"{figure.name}.{kind}" for figure in drawn for kind in FORMATS)]
    render: dict[str, Callable[[], str]] = {
        "terminal": lambda: terminal.render(tables.summaries(found)),
        "markdown": lambda: text,
        "json": lambda: f"{json.dumps(found, indent=1, allow_nan=False)}\n",
    }
    print(render[arguments.format](), end="")
    print(f"{folder}: {', '.join(files)}; {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return OK


def _study(spec: RunSpec, model: str, protocol: SimilarityProtocol, folder: Path) -> dict[str, Any]:
    """Refuse what can be refused before the model is loaded, then look at its layers. Returns similarity.json."""
    from bench.data import contamination, pretrained, texts
    from bench.evaluation import layer_similarity
    from bench.plan import named, validate
    from bench.system import environment
    from methods.errors import UserError
    from methods.model.decoder import Decoder

    target = validate.target_without_cells(spec, model, [protocol.text, protocol.held_out])
    layer_similarity.refuse_unless_alike(target.decoder)
    if max(protocol.merge, default=0) > len(target.decoder.layers):
        raise UserError(f"--merge names {max(protocol.merge)} layers, and the model has {len(target.decoder.layers)}")
    named.refuse_file(folder)
    tokenizer = pretrained.load_tokenizer(model, spec.trust_remote_code)
    tokens = texts.calibration(tokenizer, protocol.text, protocol.sequences, protocol.length, protocol.seed)
    whole = texts.is_whole(protocol.held_out, protocol.text)
    held_out = texts.evaluation(
        tokenizer, protocol.held_out, protocol.window, protocol.window, protocol.windows, drawn=True, whole=whole
    )
    contamination.refuse_shared(tokenizer, tokens.ids, tokens.source, [held_out], "compared on")
    validate.check_folder(folder)
    loaded, _ = pretrained.load(model, target.device, target.dtype, spec.trust_remote_code)
    heading = {
        "model": pretrained.display_name(model),
        "weights_sha256": pretrained.weights_sha256(model),
        "dtype": str(target.dtype).removeprefix("torch."),
        "environment": environment.describe(target.device, target.dtype),
    }
    tokens = replace(tokens, memory=layer_similarity.MEMORY)
    return layer_similarity.study(
        heading, Decoder(loaded), protocol, tokens=tokens, held_out=held_out, file=folder / "similarity.json"
    )
