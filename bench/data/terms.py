"""Asks once whether the terms that a model comes under are accepted, before anything of it is fetched.

<cache>/terms/<name>.json   what was accepted, and when
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.system.console import say
from methods.errors import UserError
from methods.files import write_atomically


@dataclass(frozen=True)
class Terms:
    """Names terms of use, and where they can be read."""

    name: str
    title: str
    addresses: tuple[str, ...]

    @property
    def notice(self) -> str:
        """Return what the user must know, in one line."""
        return f"under the {self.title}, which every user has to accept: {' and '.join(self.addresses)}"

    def accept(self, cache: Path) -> None:
        """Write down that the user has accepted the terms."""
        place = self._place(cache)
        place.parent.mkdir(parents=True, exist_ok=True)
        accepted = asdict(self) | {"accepted": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_atomically(place, json.dumps(accepted, indent=1) + "\n")

    def require(self, asset: str, cache: Path) -> None:
        """Ask on a terminal, once, whether the terms are accepted. Raises UserError where they are not."""
        if self._place(cache).is_file():
            return
        if sys.stdin is not None and sys.stdin.isatty():
            say(f"{asset} comes {self.notice}\nDo you accept them? yes or no:")
            if sys.stdin.readline().strip().lower() in ("y", "yes"):
                self.accept(cache)
                return
        raise UserError(
            f"{asset} comes {self.notice}; read them, then accept them once: "
            f"python -m bench fetch {asset} --accept-terms"
        )

    def _place(self, cache: Path) -> Path:
        return cache / "terms" / f"{self.name}.json"


GEMMA_TERMS = Terms(
    name="gemma",
    title="Gemma Terms of Use and Prohibited Use Policy",
    addresses=("https://ai.google.dev/gemma/terms", "https://ai.google.dev/gemma/prohibited_use_policy"),
)
