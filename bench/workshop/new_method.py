"""Writes the first file of a method and its test, which run as they are: `python -m bench new-method`.

The files first_*.py of this folder are whole methods of each kind. Here they get the name of the new one.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

from bench.workshop.first_tests import build_test
from methods.cards import cards_of_compensations, cards_of_methods
from methods.errors import UserError
from methods.files import write_atomically
from methods.registry import installed_methods

NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
KINDS = {  # what a first file of each kind is
    "depth": "drops layers by one score each",
    "width": "cuts heads and channels, as many in every layer",
    "search": "drops the best of random sets of attentions and MLPs",
    "compensation": "repairs what a method has cut, by a map of the residual",
}


def write_method(name: str, kind: str, folder: Path) -> list[Path]:
    """Write NAME.py and test_NAME.py into a folder, which is made if there is none, and return the two paths.

    kind  of KINDS

    Raises UserError for a name that no method may have, or that is taken, and where a file is in the way.
    """
    stem = refuse_name(name)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out names a folder for the two files; {folder} is a file")
    paths = [folder / f"{stem}.py", folder / f"test_{stem}.py"]
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists; name another method, or another folder with --out")
    if importlib.util.find_spec(stem) is not None:
        raise UserError(
            f"{stem} is a module already, which a file {stem}.py may hide or be hidden by; name another method"
        )
    method = Path(__file__).with_name(f"first_{kind}.py").read_text(encoding="utf-8")
    texts = (_rename(method, kind, name, stem), _rename(build_test(kind), "kind", name, stem))
    for path, text in zip(paths, texts, strict=True):
        write_atomically(path, text)
    return paths


def refuse_name(name: str) -> str:
    """Return the name of a method as that of its file. Raises UserError for a name that is unsound or taken."""
    stem = name.replace("-", "_")
    if not NAME.fullmatch(name) or keyword.iskeyword(stem):
        raise UserError(
            "a method is named by small letters and digits, a letter first, with single dashes or underscores between, "
            f"and by no word of Python's own, as in smallest-writers; got {name!r}"
        )
    cards = [card.name for card in (*cards_of_methods(), *cards_of_compensations())]
    taken_by = {method: f"the installed package {package}" for method, package in installed_methods()}
    taken_by |= dict.fromkeys(cards, "this suite")
    for spelled in (name, stem, name.replace("_", "-")):
        if spelled in taken_by:
            raise UserError(f"{spelled} is a method of {taken_by[spelled]} already; name another one")
    return stem


def _rename(text: str, kind: str, name: str, stem: str) -> str:
    """Return a first file with another name wherever its own stands."""
    title = "".join(word.capitalize() for word in stem.split("_"))
    own = {f"first-{kind}": name, f"first_{kind}": stem, f"First{kind.capitalize()}": title}
    for placeholder, replacement in own.items():
        text = text.replace(placeholder, replacement)
    return text
