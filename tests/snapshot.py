"""Takes a snapshot of what the suite prints and decides, to which a change of names and places alone is held.

    python tests/snapshot.py write PART ...     write tests/golden/snapshot/PART.json.xz
    python tests/snapshot.py check PART ...     compare with them, and print what differs

Without PART all of them: `commands` has every `--help` and list, `schemas` the layouts of records, `methods` the
decisions and logits of every method and compensation on tiny models, and each run of docs/results has its report, its
views, the data of its figures, and what `gate`, `compare`, `show` and `history` print. Texts are compared byte for
byte, decisions and logits to a relative TOLERANCE, since processors round differently.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import json
import lzma
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
GOLDEN = ROOT / "tests/golden/snapshot"
RESULTS = ROOT / "docs/results"
TOLERANCE = 1e-3
LISTS = ("methods", "models", "families", "tasks", "texts", "profiles", "specs", "formats")
FAMILIES = ("llama", "gemma3_text", "gpt2", "phi3")
MIXTURES = ("qwen3_moe", "mixtral")
BEHIND = {"refit": ("flap", "2ssp", "obs")}  # methods that a compensation follows; the others follow these
AFTER = ("shortgpt", "blockpruner", "flap")
METRICS = ("perplexity_wiki", "answer_bpb", "parameters")

Parts = dict[str, Any]


def run_command(*arguments: str) -> str:
    """Return the exit code of a command, and all that it prints."""
    from bench.cli.main import main

    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = main(list(arguments))
        except SystemExit as ended:
            code = ended.code
    return f"exit code {code}\n{output.getvalue()}\n--- stderr\n{errors.getvalue()}"


def take_commands() -> Parts:
    """Return what `--help` of every command and every list prints."""
    from bench.cli.main import _parser

    names = next(action.choices for action in _parser("prunebench")._actions if isinstance(action.choices, dict))
    parts = {f"{name} --help": run_command(name, "--help") for name in names}
    parts |= {f"list {name}": run_command("list", name) for name in LISTS}
    return parts | {f"list {name} --verbose": run_command("list", name, "--verbose") for name in LISTS}


def take_schemas() -> Parts:
    """Return the JSON schemas of the records."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.schema.json"))}


def take_methods() -> Parts:
    """Return what every method removes from tiny models at 0.3, and some logits of what is left."""
    import torch
    from tiny_methods import EXPERTS, MIXED, SPECS

    import methods

    torch.set_num_threads(1)
    parts: Parts = {}
    for name, family in itertools.product(SPECS, FAMILIES):
        parts[f"{name} on {family}"] = prune_tiny(name, SPECS[name], family)
    for name, family in itertools.product(MIXED | EXPERTS, MIXTURES):
        parts[f"{name} on {family}"] = prune_tiny(name, (MIXED | EXPERTS)[name], family)
    for card in methods.cards_of_compensations():
        for name, family in itertools.product(BEHIND.get(card.name, AFTER), FAMILIES[:2]):
            parts[f"{name}+{card.name} on {family}"] = prune_tiny(f"{name}+{card.name}", SPECS[name], family)
    return parts


def prune_tiny(name: str, parameters: dict[str, str], family: str) -> Any:
    """Return the decisions and logits of a method on a tiny model, or in words why it cannot serve it."""
    import torch
    from conftest import VOCABULARY, tiny
    from tiny_methods import calibration, logits

    import methods
    from methods.errors import OutOfReach, Unsupported
    from methods.model.decoder import Decoder

    torch.manual_seed(0)
    model = Decoder(tiny(family))
    try:
        decisions = methods.make(name, parameters).prune(model, calibration(), 0.3)
    except (Unsupported, OutOfReach, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    ids = torch.randint(3, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(1))
    rows = logits(model, ids)[0, ::4, ::16].double().tolist()
    return {"decisions": json.loads(json.dumps(decisions)), "logits": rows}


def take_run(run: Path) -> Parts:
    """Return what the commands that read a run folder print of a shipped run."""
    from bench.cli.report import VIEWS

    name = str(run.relative_to(ROOT))
    parts = {"report.md": run_command("report", name, "--format", "markdown")}
    parts["report.csv"] = run_command("report", name, "--view", "main", "--format", "csv")
    parts["report.txt"] = run_command("report", name)
    for view in VIEWS[1:]:
        parts[f"{view}.csv"] = run_command("report", name, "--view", view, "--format", "csv")
        parts[f"{view}.md"] = run_command("report", name, "--view", view, "--format", "markdown")
    parts["gate"] = run_command("gate", name, "--baseline", name, "--no-confirm")
    neighbour = str(next_run(run).relative_to(ROOT))
    parts["gate by the next run"] = run_command("gate", name, "--baseline", neighbour, "--no-confirm")
    parts["compare"] = run_command("compare", name, neighbour, "--format", "csv")
    for metric in METRICS:
        parts[f"history {metric}"] = run_command("history", name, neighbour, "--metric", metric, "--format", "csv")
    parts["show"] = "\n".join(run_command("show", f"{name}/{key}") for key in some_keys(run))
    return parts | {f"figure {title}": data for title, data in take_figures(run)}


def next_run(run: Path) -> Path:
    """Return the shipped run behind `run` by name, and the first one behind the last."""
    runs = shipped_runs()
    return runs[(runs.index(run) + 1) % len(runs)]


def some_keys(run: Path) -> list[str]:
    """Return the keys of the first, the middle and the last cell of a packed run."""
    keys = [json.loads(line)["key"] for line in (run / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys([keys[0], keys[len(keys) // 2], keys[-1]]))


def take_figures(run: Path) -> Iterator[tuple[str, Any]]:
    """Yield each figure of a run: its name; its title, description, and what its axes hold."""
    import matplotlib
    from matplotlib import pyplot

    from bench.records import run_folder
    from methods.cards import needs_of_methods
    from reports.figures.catalogue import figures_of_report
    from reports.figures.style import SETTINGS

    matplotlib.use("agg")
    merged = run_folder.load_runs([run])
    for figure in figures_of_report(merged.records, merged.samples, "", merged.served, needs=needs_of_methods()):
        with matplotlib.rc_context(SETTINGS):
            drawing = figure.draw()
        axes = [read_axes(one) for one in drawing.axes]
        yield figure.name, {"title": figure.title, "description": figure.description, "axes": axes}
        pyplot.close(drawing)


def read_axes(axes: Any) -> dict[str, Any]:
    """Return the data of matplotlib axes: points of lines and markers, heights of bars, images, texts."""
    offsets = [c.get_offsets().tolist() for c in axes.collections if hasattr(c, "get_offsets")]
    return {
        "labels": [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale(), axes.get_yscale()],
        "lines": [[str(line.get_label()), rounded(line.get_xydata().tolist())] for line in axes.lines],
        "offsets": rounded(offsets),
        "patches": rounded([patch.get_extents().bounds for patch in axes.patches]),
        "images": rounded([image.get_array().filled(math.nan).tolist() for image in axes.images]),
        "texts": [text.get_text() for text in axes.texts],
    }


def rounded(value: Any) -> Any:
    """Return nested lists of numbers with eight digits each."""
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f"{float(value):.8g}")


def shipped_runs() -> list[Path]:
    """Return the folders of docs/results, by name."""
    return sorted(path for path in RESULTS.iterdir() if (path / "records.jsonl").is_file())


def parts_by_name() -> dict[str, Callable[[], Parts]]:
    """Return what takes each part of the snapshot, by the part's name."""
    takers: dict[str, Callable[[], Parts]] = {
        "commands": take_commands,
        "schemas": take_schemas,
        "methods": take_methods,
    }
    return takers | {run.name: (lambda run=run: take_run(run)) for run in shipped_runs()}


def read_golden(name: str) -> Parts:
    """Return a part of the snapshot as it was written."""
    return json.loads(lzma.decompress((GOLDEN / f"{name}.json.xz").read_bytes()))


def write_golden(name: str, parts: Parts) -> None:
    """Write a part of the snapshot."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    text = json.dumps(parts, ensure_ascii=False, indent=0, sort_keys=True)
    (GOLDEN / f"{name}.json.xz").write_bytes(lzma.compress(text.encode(), preset=9))


def differences(name: str, parts: Parts) -> list[str]:
    """Return a line for each entry of a part that differs from the snapshot, with the first lines of the difference."""
    golden, current = read_golden(name), json.loads(json.dumps(parts))
    lines = [f"{name}: {key} is {'missing' if key in golden else 'new'}" for key in golden.keys() ^ current.keys()]
    for key in sorted(golden.keys() & current.keys()):
        if not equal(golden[key], current[key]):
            texts = [as_text(value).splitlines() for value in (golden[key], current[key])]
            lines.append(f"{name}: {key} differs")
            lines += list(itertools.islice(difflib.unified_diff(*texts, "snapshot", "now", n=0, lineterm=""), 12))
    return lines


def as_text(value: Any) -> str:
    """Return a value of the snapshot as lines."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)


def equal(before: Any, after: Any) -> bool:
    """Say whether two values are equal, numbers to TOLERANCE."""
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(equal(before[key], after[key]) for key in before)
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(equal, before, after))
    if isinstance(before, float) and isinstance(after, (int, float)):
        both_nan = math.isnan(before) and math.isnan(after)
        return both_nan or math.isclose(before, after, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(before == after)


def main(command: str, *names: str) -> int:
    """Write the parts of the snapshot with these names, or compare with them; 1 where something differs."""
    os.environ["COLUMNS"] = "100"
    os.chdir(ROOT)
    lines: list[str] = []
    takers = parts_by_name()
    for name in names or takers:
        parts = takers[name]()
        if command == "write":
            write_golden(name, parts)
        else:
            lines += differences(name, parts)
        print(f"{name}: {len(parts)} entries", file=sys.stderr)
    print("\n".join(lines) if lines else f"{command}: no difference" if command == "check" else "written")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
