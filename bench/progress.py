"""A progress bar on stderr, for work of more than two seconds."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def bar(total: int, what: str, unit: str, done: int = 0) -> Any:
    """A bar of `total` units, `done` of them at the start; drawn every 0.2 s, or 20 s where no terminal shows it."""
    every = 0.2 if sys.stderr.isatty() else 20
    return tqdm(total=total, desc=what, unit=unit, initial=done, delay=2, leave=False, mininterval=every)
