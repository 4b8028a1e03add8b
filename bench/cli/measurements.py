"""The commands latency-table, serve-speed and similarity, which measure something other than the cells of a run.

latency-table   how long a generated token takes by the sizes of a model's parts, on this machine
serve-speed     the models of a run in an inference engine, their quality, size and speed there
similarity      how alike a model's layers are, and what merging windows of them does
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli
from bench.cli import FAILED_CELLS, OK
from bench.plan.fields import options_of_class as options_of
from bench.plan.load import ALONE, LoadProtocol
from bench.plan.protocol import ServedProtocol, SimilarityProtocol
from bench.plan.run_spec import RunSpec, flags_of_run, spec_from_flags

if TYPE_CHECKING:
    from bench.plan.trust import Trust


LATENCY_PLACE = [flags_of_run()[name] for name in ("device", "dtype", "threads")]
DEPTH, ROUNDS = 64, 12  # as the profile quick has them


def add_latency_table(commands: Any) -> None:
    """Add the command latency-table."""
    command = commands.add_parser(
        "latency-table",
        help="measure what parts of a model take, for --budget latency",
        description=(
            "Time a model in turns with copies that have lost heads, channels, attentions or MLPs, and write what a "
            "part of each size takes of the milliseconds per generated token: `run --budget latency=0.8 "
            "--latency-table FILE` prunes by it. Nothing else should work on the machine."
        ),
    )
    model = flags_of_run()["model"].default
    command.add_argument("model", nargs="?", default=model, metavar="MODEL", help="by default %(default)s")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new file for the table, JSON")
    command.add_argument(
        "--decode", type=int, default=DEPTH, metavar="TOKENS", help="of context, by default %(default)s"
    )
    command.add_argument("--speed-rounds", type=int, default=ROUNDS, metavar="N", help="by default %(default)s")
    cli.add_flags(command, LATENCY_PLACE)
    command.set_defaults(command=_measure)


def _measure(arguments: argparse.Namespace) -> int:
    spec = spec_from_flags({"methods": "dense", "model": arguments.model} | cli.given_flags(arguments, LATENCY_PLACE))
    from bench.plan import validate
    from bench.plan.protocol import MIN_ROUNDS
    from bench.speed import latency
    from methods.errors import UserError
    from methods.files import write_atomically
    from reports.formats import terminal
    from reports.tables import speed as tables

    if arguments.out.exists():
        raise UserError(f"--out {arguments.out} exists; name a new file")
    if arguments.speed_rounds < MIN_ROUNDS:
        raise UserError(f"--speed-rounds is at least {MIN_ROUNDS}; got {arguments.speed_rounds}")
    if arguments.decode < 1:
        raise UserError(f"--decode is at least 1 token of context; got {arguments.decode}")
    validate.check_folder(arguments.out.parent)
    target = validate.prepare_target_without_cells(spec, arguments.model, [])
    table = latency.measure_latencies(
        arguments.model, target.device, target.dtype, arguments.decode, arguments.speed_rounds
    )
    write_atomically(arguments.out, f"{json.dumps(table, indent=1, allow_nan=False)}\n")
    print(terminal.render([tables.table_of_latencies(table)]), end="")
    return OK


SERVED_FLAGS, LOAD_FLAGS = options_of(ServedProtocol), options_of(LoadProtocol)


def add_serve_speed(commands: Any) -> None:
    """Add the command serve-speed."""
    command = commands.add_parser(
        "serve-speed",
        help="time the models of a run in an inference engine",
        description="Export each model of a run in several types of weights, and compare what the engine computes with "
        "what this suite computes. Then have the engine score a text, and time it in turns with the dense model. The "
        "table is the one of `report RUN --view served`; the same command goes on where it stopped, and another one "
        "adds its rows.",
    )
    command.add_argument("run", type=Path, metavar="RUN", help="a run folder, whose served.jsonl is written")
    command.add_argument("cells", nargs="*", metavar="CELL", help="keys or labels; by default all cells with a model")
    cli.add_flags(command, SERVED_FLAGS)
    under_load = command.add_argument_group(
        "under load", "the engine's own server, on this machine alone, in place of prompts and tokens of one batch"
    )
    cli.add_flags(under_load, LOAD_FLAGS)
    command.add_argument("--threads", type=int, metavar="N", help="of the engine; by default all cores")
    command.add_argument("--device", default="auto", help="to make models again on; auto: as in the record")
    command.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a Python file with methods")
    cli.add_trust(command)
    command.set_defaults(command=_serve_speed)


def _serve_speed(arguments: argparse.Namespace) -> int:
    given, load = (cli.given_fields(arguments, flags) for flags in (SERVED_FLAGS, LOAD_FLAGS))
    protocol = ServedProtocol(**given, load=LoadProtocol(**load) if load else None)
    import methods
    from methods.errors import UserError

    if load and (wrong := [option.flag for option in SERVED_FLAGS if option.field in given and option.field in ALONE]):
        raise UserError(f"--{wrong[0]} times a model alone, and a load times its server; leave one of them out")
    if arguments.threads is not None and arguments.threads < 1:
        raise UserError(f"--threads is a positive number; got {arguments.threads}")
    try:
        methods.load(arguments.plugin)
    except ValueError as error:
        raise UserError(str(error)) from None
    trust = cli.trust_of(arguments)
    return serve(trust, protocol, arguments.cells, threads=arguments.threads, device=arguments.device)


def require_engine(protocol: ServedProtocol) -> None:
    """Raise UserError where the engine is missing, before any work."""
    from bench.serving import adapters

    engine = adapters.engine_of_protocol(protocol, None)
    try:
        engine.require(protocol)
    finally:
        engine.end()


def serve(
    trust: Trust,
    protocol: ServedProtocol,
    cells: Sequence[str] = (),
    *,
    threads: int | None = None,
    device: str = "auto",
) -> int:
    """Serve models of a run, all of them if `cells` is empty, print the tables, and return the exit code.

    trust  says which run, and what its records may name

    Raises UserError where the engine serves none of the dense models.
    """
    from bench.serving import adapters
    from bench.serving import serve as rows
    from bench.serving.serve import DenseNotServed, find_served
    from methods.console import say
    from reports.formats import terminal
    from reports.tables import speed as tables

    models, engine = find_served(trust, cells), adapters.engine_of_protocol(protocol, threads)
    records, refused = [], list[DenseNotServed]()
    try:
        for model in models:
            try:
                records += list(rows.serve(model, protocol, engine, device=device))
            except DenseNotServed as error:
                refused.append(error)
                if len(models) > 1:
                    say(f"{model.name}: {error}")
    finally:
        engine.end()
    if len(refused) == len(models):
        raise refused[0]
    print(terminal.render(tables.tables_of_served(records)), end="")
    return FAILED_CELLS if refused or any(record.status not in ("ok", "unsupported") for record in records) else OK


SIMILARITY_FLAGS = options_of(SimilarityProtocol)
SIMILARITY_PLACE = [flags_of_run()[name] for name in ("device", "dtype", "threads", "trust-remote-code")]


def add_similarity(commands: Any) -> None:
    """Add the command similarity."""
    similarity = commands.add_parser(
        "similarity",
        help="compare a model's layers, and merge them on trial",
        description=(
            "Cosine and L2 distance between all pairs of layers, of parameters and of states, and the effect of "
            "merging neighbouring layers at every position by every rule. The same command goes on where it stopped."
        ),
    )
    model = flags_of_run()["model"].default
    similarity.add_argument("model", nargs="?", default=model, metavar="MODEL", help="by default %(default)s")
    cli.add_flags(similarity, SIMILARITY_FLAGS)
    similarity.add_argument("--format", choices=("terminal", "markdown", "json"), default="terminal")
    similarity.add_argument("--out", type=Path, metavar="DIR", help="by default results/<date>-similarity-<model>")
    cli.add_flags(similarity, SIMILARITY_PLACE)
    similarity.set_defaults(command=_similarity)


def _similarity(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    protocol = SimilarityProtocol(**cli.given_fields(arguments, SIMILARITY_FLAGS))
    given = {"methods": "dense", "model": arguments.model} | cli.given_flags(arguments, SIMILARITY_PLACE)
    spec = spec_from_flags(given | ({"out": arguments.out} if arguments.out else {}), name="similarity")
    folder = spec.folder()
    study = _study(spec, arguments.model, protocol, folder)
    from methods.files import write_atomically
    from reports.figures.figure import FORMATS, save_figure
    from reports.figures.similarity import figures_of_similarity
    from reports.formats import markup, terminal
    from reports.tables import similarity as tables

    drawn = figures_of_similarity(study)
    text = markup.render_markdown(
        [*tables.tables_of_neighbours(study), *tables.tables_of_positions(study)], title=tables.title_of_study(study)
    )
    write_atomically(folder / "similarity.md", text)
    for figure in drawn:
        save_figure(figure, folder)
    files = ["similarity.json", "similarity.md", *(f"{figure.name}.{kind}" for figure in drawn for kind in FORMATS)]
    render: dict[str, Callable[[], str]] = {
        "terminal": lambda: terminal.render(tables.tables_of_neighbours(study)),
        "markdown": lambda: text,
        "json": lambda: f"{json.dumps(study, indent=1, allow_nan=False)}\n",
    }
    print(render[arguments.format](), end="")
    print(f"{folder}: {', '.join(files)}; {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return OK


def _study(spec: RunSpec, model: str, protocol: SimilarityProtocol, folder: Path) -> dict[str, Any]:
    """Refuse what can be refused before the model is loaded; return the study of its layers, as in similarity.json."""
    from bench.data import pretrained, texts
    from bench.data.texts import refuse_shared
    from bench.evaluation import layer_similarity
    from bench.plan import named, validate
    from bench.system import environment
    from methods.errors import UserError
    from methods.model.decoder import Decoder

    target = validate.prepare_target_without_cells(spec, model, [protocol.text, protocol.held_out])
    layer_similarity.refuse_unless_alike(target.decoder)
    if max(protocol.merge, default=0) > len(target.decoder.layers):
        raise UserError(f"--merge names {max(protocol.merge)} layers, and the model has {len(target.decoder.layers)}")
    named.refuse_file(folder)
    tokenizer = pretrained.load_tokenizer(model, spec.trust_remote_code)
    tokens = texts.make_calibration(tokenizer, protocol.text, protocol.sequences, protocol.length, protocol.seed)
    whole = texts.is_whole(protocol.held_out, protocol.text)
    held_out = texts.make_evaluation_text(
        tokenizer, protocol.held_out, protocol.window, protocol.window, protocol.windows, drawn=True, whole=whole
    )
    refuse_shared(tokenizer, tokens.ids, tokens.source, [held_out], "compared on")
    validate.check_folder(folder)
    loaded, _ = pretrained.load(model, target.device, target.dtype, spec.trust_remote_code)
    heading = {
        "model": pretrained.name_of_model(model),
        "weights_sha256": pretrained.sha256_of_weights(model),
        "dtype": str(target.dtype).removeprefix("torch."),
        "environment": environment.describe(target.device, target.dtype),
    }
    tokens = replace(tokens, memory=layer_similarity.MEMORY)
    return layer_similarity.compare_layers(
        heading, Decoder(loaded), protocol, tokens=tokens, held_out=held_out, file=folder / "similarity.json"
    )
