"""Writes the text of a file with a method of one's own, which does in `prune` what a test asks for."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

HEAD = "import os, signal, time\nfrom dataclasses import dataclass\nfrom pathlib import Path\n"
SEGFAULT = "os.kill(os.getpid(), signal.SIGSEGV)"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
SHORTGPT = "return make('shortgpt').prune(model, calibration, ratio)"

# A method with a helper beside its file, from where the helper has to come wherever the method runs.
HELPED = "assert near.HERE.parent == Path(__file__).resolve().parent / 'far', near.HERE"
HELPER = "from pathlib import Path\n\nHERE = Path(__file__).resolve()\n"


def write_helped_method(folder: Path, name: str) -> str:
    """Write the file of a method whose `prune` needs a module beside it, and return the file's path."""
    (folder / "far").mkdir()
    (folder / "far" / "near.py").write_text(HELPER)
    path = folder / f"{name}.py"
    path.write_text("from far import near\n" + method_source(name, HELPED, SHORTGPT))
    return str(path)


def method_source(name: str, *lines: str) -> str:
    """Return the text of a method's class; `lines` are the body of its `prune`."""
    kind = f"@register({name!r})\n@dataclass(frozen=True)\nclass {name.title()}(Pruner):\n"
    plan, prune = "    def plan(self, model, ratio): return {}\n", "    def prune(self, model, calibration, ratio):\n"
    body = indent("\n".join(lines), 8 * " ")
    return f"{HEAD}from methods import Pruner, make, register\n\n{kind}{plan}{prune}{body}\n"
