"""Run folders in which anything may be wrong: records, samples, files, and how many there are of each."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from fuzzing import damaged, offered
from mutated_records import mutated
from pyarrow import parquet

from bench.records import packed_run

MANY, LONG = 40, 20_000  # cells, characters
EXTREMES = (0, 1, -1, 2**31, 2**53, 2**62, 1e-300, 1e300, 0.5, 1e9, -1e9)
TERMINAL = "\x1b[31m\x07\x9b"
CONTROL = {"\x1b", "\x07", "\x9b"}  # characters of it that no output has


def mutate(folder: Path, draw: random.Random) -> str:
    """Change a run folder, loose or packed, in up to three ways, and return what was done."""
    done = []
    for _ in range(draw.randint(1, 3)):
        change = draw.choice(CHANGES)
        change(folder, draw)
        done.append(change.__name__)
    return ", ".join(done)


def records(folder: Path) -> list[Path]:
    return [folder / "records.jsonl"] if packed_run.is_packed(folder) else sorted((folder / "cells").glob("*.json"))


def samples(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "samples").rglob("*.parquet") if path.is_file() and not path.is_symlink())


def rewritten(folder: Path, draw: random.Random, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the plain values of one record."""
    path = draw.choice(records(folder) or [folder / "records.jsonl"])
    try:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        at = draw.randrange(len(lines))
        plain = json.loads(lines[at])
        lines[at] = json.dumps(change(plain) if isinstance(plain, dict) and plain else plain)
    except (OSError, ValueError):
        return  # of what an earlier change has damaged
    path.write_text("\n".join(lines) + "\n")


def a_field(folder: Path, draw: random.Random) -> None:
    rewritten(folder, draw, lambda plain: mutated(plain, draw, offered)[0])


def a_number(folder: Path, draw: random.Random) -> None:
    """Put an extreme one in place of a number, or of all in one list."""

    def offer(value: Any) -> list[Any]:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return [type(value)(one) if abs(one) >= 1 or isinstance(value, float) else 0 for one in EXTREMES]
        return [value]

    rewritten(folder, draw, lambda plain: mutated(plain, draw, offer)[0])


def a_length(folder: Path, draw: random.Random) -> None:
    """Repeat a text or a list, or the entries of an object under other names."""

    def offer(value: Any) -> list[Any]:
        if isinstance(value, str):
            return [value * (LONG // max(1, len(value))), value + TERMINAL]
        if isinstance(value, list):
            return [(value or [1]) * 500]
        if isinstance(value, dict):
            return [value | {f"{name}{number}": one for name, one in value.items() for number in range(100)}]
        return [value]

    rewritten(folder, draw, lambda plain: mutated(plain, draw, offer)[0])


def many_cells(folder: Path, draw: random.Random) -> None:
    """Add cells that differ from one in label, ratio, seed, text or parameter."""
    kind = draw.choice(["label", "ratio", "seed", "text", "parameter", "draw", "model", "metric"])
    found = list[dict[str, Any]]()
    rewritten(folder, draw, lambda plain: found.append(plain) or plain)
    if not found or not isinstance(found[0].get("cell"), dict):
        return
    packed = packed_run.is_packed(folder)
    for number in range(MANY):
        plain = copy.deepcopy(found[0])
        cell, measured = plain["cell"], plain.get("measured")
        if kind in ("label", "model"):
            cell[kind] = f"{cell.get(kind)}{number}"
        elif kind in ("ratio", "seed"):
            cell[kind] = (number + 1) / 100 if kind == "ratio" else number
        elif kind in ("parameter", "draw"):
            name = "C" if kind == "parameter" else "seed"
            cell["parameters"], cell["given"] = {name: number}, [name]
        elif isinstance(measured, dict):
            group = "perplexity" if kind == "text" else "tasks"
            entries = measured.get(group)
            if isinstance(entries, dict) and entries:
                measured[group] = entries | {f"{kind}{number}": next(iter(entries.values()))}
        if packed:
            plain |= {"key": f"new-{kind}-{number}", "rows_sha256": {}}
            with (folder / "records.jsonl").open("a") as file:
                file.write(json.dumps(plain) + "\n")
        else:
            (folder / "cells" / f"new-{kind}-{number}.json").write_text(json.dumps(plain))


def bytes_of_a_file(folder: Path, draw: random.Random) -> None:
    path = draw.choice([*records(folder), *samples(folder)] or [folder / "x"])
    if path.is_file():
        kinds = ("cut", "flip", "set", "insert", "delete", "repeat")
        path.write_bytes(
            damaged(path.read_bytes(), [(draw.choice(kinds), draw.randrange(-500, 8000), draw.randrange(256))])
        )


def another_file(folder: Path, draw: random.Random) -> None:
    """Put a loop of links, a link that leads nowhere or elsewhere, a folder, or nothing in place of a file."""
    path = draw.choice([*records(folder), *samples(folder)] or [folder / "x"])
    if path.is_dir():
        return
    path.unlink(missing_ok=True)
    kind = draw.choice(["loop", "nowhere", "elsewhere", "folder", "nothing", "empty"])
    if kind in ("loop", "nowhere", "elsewhere"):
        path.symlink_to({"loop": path.name, "nowhere": "gone", "elsewhere": "/proc/self/environ"}[kind])
    elif kind == "folder":
        path.mkdir()
        (path / "x").write_text("y")
    elif kind == "empty":
        path.touch()


def rows_of_samples(folder: Path, draw: random.Random) -> None:
    """Change a column of samples, or how many rows there are."""
    path = draw.choice(samples(folder) or [folder / "x"])
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException):
        return
    kind = draw.choice(["fewer", "twice", "changed", "text", "without", "none"])
    name = draw.choice(table.column_names)
    at = table.column_names.index(name)
    if kind in ("fewer", "none"):
        table = table.slice(0, table.num_rows // 2 if kind == "fewer" else 0)
    elif kind == "twice":
        table = pa.concat_tables([table, table])
    elif kind == "without":
        table = table.remove_column(at)
    else:
        value: Any = draw.choice(EXTREMES) if kind == "changed" else f"x{TERMINAL}"
        table = table.set_column(at, name, pa.array([value] * table.num_rows))
    parquet.write_table(table, path)


def a_name(folder: Path, draw: random.Random) -> None:
    """Give a cell, or in a packed run its key, a name that is long or full of control characters."""
    name = draw.choice(["x" * 230, "x" * 300, f"a{TERMINAL}", "..", "größe 💡", "a b", "-", "--out"])
    if packed_run.is_packed(folder):
        rewritten(folder, draw, lambda plain: plain | {"key": name})
    elif (found := records(folder)) and name != ".." and len(name) < 250:
        draw.choice(found).rename(folder / "cells" / f"{name}.json")


def whole_folders(folder: Path, draw: random.Random) -> None:
    """Take the folder of samples away, or put a file in its place, or a model of links beside it."""
    kind = draw.choice(["gone", "file", "model"])
    if kind == "model":
        keys = [path.stem for path in records(folder)]
        (folder / "models" / keys[0] if keys else folder / "models").mkdir(parents=True, exist_ok=True)
        link = folder / "models" / (keys[0] if keys else "") / "link"
        if not link.is_symlink():
            link.symlink_to("/etc/hostname")
    elif (folder / "samples").is_dir():
        shutil.rmtree(folder / "samples")
        if kind == "file":
            (folder / "samples").write_text("x")


CHANGES = (
    *(a_field, a_field, a_field, a_number, a_number, a_length, a_length, many_cells, many_cells),
    *(bytes_of_a_file, another_file, another_file, rows_of_samples, a_name, whole_folders),
)
