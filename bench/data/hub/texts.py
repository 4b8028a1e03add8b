"""Reads a text that is a data set of the hub, written hub:DATASET[:CONFIG[:SPLIT]], and says before how large it is."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.data import assets
from bench.system.console import say
from methods.errors import UserError, first_line

HELD = 2  # times its bytes that a text takes of the memory, as rows and as documents
FILE = "give a file with as much of it as is read"


def parse(text: str) -> tuple[str, str | None, str]:
    """Split 'hub:DATASET[:CONFIG[:SPLIT]]' into (dataset, config, split). Raises UserError for anything else."""
    dataset, config, split, *rest = [*text.removeprefix("hub:").split(":"), "", ""]
    if not dataset or any(rest):
        raise UserError(f"a hub text is written hub:DATASET[:CONFIG[:SPLIT]]; got {text!r}")
    return dataset, config or None, split or "test"


def check(text: str) -> None:
    """Refuse a text, before any work, that cannot be had, or for which disk or memory have no room.

    How large it is can only be told where the data set's page on the hub says so.
    """
    from bench.system.memory import free_bytes

    parse(text)
    if not assets.hub_is_reachable():
        documents(text)
        return
    stored, held, folder = _sizes(text)
    for what, takes, free in (("disk", stored, shutil.disk_usage(folder).free), ("memory", held, free_bytes())):
        if takes > free:
            raise UserError(
                f"{text} takes {takes / 1e9:,.1f} GB of the {what}, of which {free / 1e9:,.1f} are free; {FILE}"
            )


@functools.cache
def _sizes(text: str) -> tuple[int, int, Path]:
    """Return the bytes that are still to be put on the disk, those that the memory is to hold, and where on the disk.

    The first are of all splits, as they are fetched and as they are kept.
    """
    import datasets

    dataset, config, split = parse(text)
    builder = _asked(text, lambda: datasets.load_dataset_builder(dataset, config))
    info, kept = builder.info, Path(builder.cache_dir)
    folder = next(path for path in (kept, *kept.parents) if path.exists())
    stored = 0 if folder == kept else (info.download_size or 0) + (info.dataset_size or 0)
    held = HELD * info.splits[split].num_bytes if split in (info.splits or {}) else 0
    if stored:
        say(f"{text} is fetched whole, and takes {stored / 1e6:,.1f} MB of the disk")
    return stored, held, folder


def documents(text: str) -> list[str]:
    """Return the rows of the data set's column `text`."""
    import datasets

    dataset, config, split = parse(text)
    rows = _asked(text, lambda: datasets.load_dataset(dataset, config, split=split))
    if "text" not in rows.column_names:
        raise UserError(f"{text} has no column text; it has {', '.join(rows.column_names)}")
    found = list(rows["text"])
    if (wrong := next((number for number, one in enumerate(found) if not isinstance(one, str)), None)) is not None:
        raise UserError(f"{text} has rows without a text, of which row {wrong} is the first")
    return found


def _asked(text: str, question: Callable[[], Any]) -> Any:
    """Return the hub's answer, or that of its cache. Raises UserError for whatever a data set's loader may raise."""
    reachable = assets.hub_is_reachable()
    try:
        return question()
    except Exception as error:
        where = (
            "the hub is out of reach and its cache has no such data" if not reachable else "the hub does not give it"
        )
        raise UserError(f"cannot read {text}: {where} ({first_line(error)})") from error
