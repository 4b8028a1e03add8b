"""Finds the files that a plugin consists of: its own, and those that it imports from beside it or from its package.

The text of the files decides, and not what has been imported so far: a method that imports a helper while it prunes
has the same files before and after.

The name of a file is its path below the folder in which an import finds it. Put under their names into one other
folder, which Python imports from, the files are the same plugin there (`read_sources`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from methods.errors import UserError

INSTALLED = {"site-packages", "dist-packages"}  # folders of packages
OURS = {"bench", "methods", "reports"}  # whose revisions a cell has by other ways


def find_sources(plugin: Path) -> list[Path]:
    """Return the file of a plugin and, in the order of their imports, its own files that it imports, however deep.

    A file beside it or in the folder of the program counts, unless an installer has put it there. Of the package that
    a file is in all modules count.
    """
    return list(dict.fromkeys(file for file, _ in _find_files(plugin)))


def read_sources(plugins: Iterable[Path]) -> tuple[tuple[Path, ...], dict[str, str]]:
    """Return the names of plugins, and {name: text} of their files and of those that they import.

    Raises UserError where two files have one name and other texts, so that they cannot lie in one folder.
    """
    names, files, texts = list[Path](), dict[str, Path](), dict[str, str]()
    for plugin in plugins:
        named = _find_files(plugin)
        names.append(Path(named[0][1]))
        for file, name in named:
            text = file.read_text(encoding="utf-8")
            if texts.setdefault(name, text) != text:
                raise UserError(f"{files[name]} and {file} would be one file, {name}, where jobs run; rename one")
            files[name] = file
    return tuple(names), texts


def _find_files(plugin: Path) -> list[tuple[Path, str]]:
    """Return the files of a plugin with their names, its own first; a file that has two names stands there twice."""
    plugin = plugin.resolve()
    named, waiting = dict[tuple[Path, str], None](), [(plugin, _top_of(plugin))]
    while waiting:
        source, top = waiting.pop(0)
        entry = (source, source.relative_to(top).as_posix())
        if entry not in named:
            named[entry] = None
            waiting += [(file, above) for file, above in _imported_files(source, top) if file.is_file()]
    return list(named)


def _top_of(source: Path) -> Path:
    """Return the folder of a file, or that of the package which it is in."""
    top = source.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    return top


def _imported_files(source: Path, top: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the files that the imports of a file may name, whether they are there or not, and the folder of each name.

    top  the folder of the file's own name
    """
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files_of_import(source, top, alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for name in (module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)):
                yield from _files_of_import(source, top, name, node.level)


def _files_of_import(source: Path, place: Path, module: str, level: int = 0) -> Iterator[tuple[Path, Path]]:
    """Yield the files that may be meant where a file imports a module, by `level` dots or none."""
    if level:
        if level <= len(source.relative_to(place).parts):
            folder = source.parents[level - 1]
            files = (folder / "__init__.py", *(file for file, _ in _files_of_module(folder, module)))
            yield from ((file, place) for file in files)
        return
    name, top = module.partition(".")[0], _top_of(source)
    if name in OURS:
        return
    is_in_package = top != source.parent
    if (name == source.relative_to(top).parts[0]) if is_in_package else top.name not in INSTALLED:
        yield from _files_of_module(top, module)
    if Path.cwd() != top and Path.cwd().name not in INSTALLED:
        yield from _files_of_module(Path.cwd(), module)


def _files_of_module(top: Path, module: str) -> Iterator[tuple[Path, Path]]:
    """Yield the files that importing a module would run, below a folder, and that folder."""
    folder = top
    for name in module.split(".") if module else ():
        folder /= name
        yield folder / "__init__.py", top
        yield folder.with_name(f"{name}.py"), top
