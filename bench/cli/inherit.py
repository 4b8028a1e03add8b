"""The command inherit: a pruned model's learning curve beside that of a random model of its shape."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from bench.cli import OK
from bench.plan.cell import slug
from bench.plan.parse import parse_methods, parse_ratios
from bench.system.memory import keep_freed
from methods.errors import UserError

CALIBRATION = (16, 256)  # sequences and their tokens, as the profile quick has them


def add(commands: Any) -> None:
    inherit = commands.add_parser(
        "inherit",
        help="train a pruned model beside a random one of its shape",
        description=(
            "Does a pruned model inherit what the dense one knew? Train it, and a randomly initialised model of the "
            "same shape, on the same sequences for as many steps. The same command again goes on where it stopped."
        ),
    )
    inherit.add_argument("method", metavar="METHOD", help="as in laco, or drop:layers=10-20")
    inherit.add_argument("--ratio", default="", help="share of all parameters to remove, as in 0.3; met exactly")
    inherit.add_argument("--model", default="smollm2-135m", help="by default %(default)s")
    inherit.add_argument(
        "--calibration", default="c4", metavar="TEXT", help="that the method looks at, 16 sequences of 256 tokens"
    )
    inherit.add_argument("--text", default="wiki", help="whose calibration half is trained on; by default %(default)s")
    inherit.add_argument("--tokens", type=int, default=100_000, metavar="N", help="trained on, by default %(default)s")
    inherit.add_argument("--passes", type=int, default=1, metavar="N", help="over the text that they are taken from")
    inherit.add_argument("--learning-rate", type=float, metavar="RATE", help="the highest; by default 1e-4")
    inherit.add_argument("--batch", type=int, default=8, metavar="N", help="sequences of a step")
    inherit.add_argument("--length", type=int, default=256, metavar="TOKENS", help="of a sequence")
    inherit.add_argument("--points", type=int, default=10, metavar="N", help="of a learning curve, after the start")
    inherit.add_argument("--format", choices=("terminal", "markdown", "json"), default="terminal")
    inherit.add_argument("--out", type=Path, metavar="DIR", help="by default results/<date>-inherit-<method>-<model>")
    inherit.add_argument("--device", default="auto", help="auto, cpu or cuda")
    inherit.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    inherit.add_argument("--threads", type=int, metavar="N", help="torch threads on the CPU")
    inherit.add_argument("--seed", type=int, default=0)
    inherit.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a Python file with methods")
    inherit.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a model")
    inherit.set_defaults(command=_inherit)


def _inherit(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    model = slug(arguments.model.rstrip("/").rsplit("/", 1)[-1])
    folder = arguments.out or Path("results") / f"{time.strftime('%Y-%m-%d')}-inherit-{slug(arguments.method)}-{model}"
    found = _experiment(arguments, folder)
    from reports import inherit as report

    files = report.write(folder, found)
    print({"terminal": report.terminal, "markdown": report.markdown, "json": report.as_json}[arguments.format](found))
    print(f"{folder}: {', '.join(files)}; {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return OK


def _experiment(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Refuse what can be refused before the model is loaded; then prune, train twice, and write inherit.json."""
    from bench.data import pretrained, texts
    from bench.healing import inherit
    from bench.healing.text import draw
    from bench.plan import validate
    from bench.plan.recipe import Recipe, refuse
    from bench.system import environment
    from methods.files import write_atomically
    from methods.model.decoder import Decoder
    from methods.model.sizes import parameters

    names = ("text", "tokens", "passes", "learning_rate", "batch", "length", "points", "seed")
    recipe = Recipe(kind="full", **{name: getattr(arguments, name) for name in names})
    for text in (arguments.text, arguments.calibration):
        texts.check(text)
    pretrained.check(arguments.model, arguments.trust_remote_code)
    device = pretrained.resolve_device(arguments.device)
    dtype = pretrained.resolve_dtype(arguments.dtype, device)
    refuse(recipe, dtype, None)
    if arguments.threads is not None:
        validate.set_threads(arguments.threads)
    pruner, ratio = _pruner(arguments)
    validate.check_folder(folder)
    asked = {
        "model": pretrained.display_name(arguments.model),
        "weights_sha256": pretrained.weights_sha256(arguments.model),
        "method": arguments.method,
        "ratio_requested": None if pruner.fixed else ratio,
        "calibration": arguments.calibration,
        "text": arguments.text,
        "recipe": {name: value for name, value in recipe.as_run().items() if name != "text"},
    }
    if (earlier := _earlier(folder / "inherit.json", asked)) is not None:
        return earlier
    tokenizer = pretrained.load_tokenizer(arguments.model, arguments.trust_remote_code)
    text = draw(tokenizer, recipe)
    calibration = texts.calibration(tokenizer, arguments.calibration, *CALIBRATION, arguments.seed)
    loaded, _ = pretrained.load(arguments.model, device, dtype, arguments.trust_remote_code)
    decoder = Decoder(loaded)
    keep_freed()
    dense = parameters(decoder)
    decisions = pruner.prune(decoder, calibration, ratio)
    found = asked | {
        "ratio": 1 - parameters(decoder) / dense,
        "parameters": parameters(decoder),
        "removed_layers": decisions.get("removed_layers", []),
        "tokens_sha256": {"calibration": calibration.sha256, "text": text.sha256},
        "environment": environment.describe(device, dtype),
        "curves": inherit.compare(decoder, text, recipe, folder / "checkpoints"),
    }
    write_atomically(folder / "inherit.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    shutil.rmtree(folder / "checkpoints")
    return found


def _earlier(file: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """What the same command has found before. Raises UserError where the folder holds another experiment."""
    if not file.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}; name another folder with --out") from None
    for name, value in asked.items():
        if found.get(name) != value:
            raise UserError(f"{file} holds another experiment: its {name} differs; name another folder with --out")
    return found


def _pruner(arguments: argparse.Namespace) -> tuple[Any, float]:
    """The method and its ratio, from shapes alone. Raises UserError where it cannot serve the model."""
    import methods
    from bench.data import pretrained
    from methods.model.decoder import Decoder

    chosen = parse_methods(arguments.method)
    if len(chosen) != 1:
        raise UserError(f"inherit takes one method; got {arguments.method!r}")
    ratios = parse_ratios(arguments.ratio) if arguments.ratio else []
    try:
        methods.load(arguments.plugin)
        pruner = methods.make(*chosen[0])
        if len(ratios) != (0 if pruner.fixed else 1):
            wants = "decides itself what goes and takes no --ratio" if pruner.fixed else "needs one --ratio, as in 0.3"
            raise UserError(f"{arguments.method} {wants}")
        ratio = ratios[0] if ratios else 0.0
        pruner.plan(Decoder(pretrained.shell(arguments.model, arguments.trust_remote_code)), ratio)
    except (ValueError, methods.Unsupported) as error:
        raise UserError(str(error)) from None
    return pruner, ratio
