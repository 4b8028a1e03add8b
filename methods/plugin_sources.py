"""Finds the files that a plugin consists of: its own, and those that it imports from beside it or from its package.

The text of the files decides, and not what has been imported so far: a method that imports a helper while it prunes
has the same files before and after.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

INSTALLED = {"site-packages", "dist-packages"}  # folders of packages
OURS = {"bench", "methods", "reports"}  # whose revisions a cell has by other ways


def find_sources(plugin: Path) -> list[Path]:
    """Return the file of a plugin and, in the order of their imports, its own files that it imports, however deep.

    A file beside it or in the folder of the program counts, unless an installer has put it there. Of the package that
    a file is in all modules count.
    """
    sources, waiting = dict[Path, None](), [plugin.resolve()]
    while waiting:
        source = waiting.pop(0)
        if source not in sources:
            sources[source] = None
            waiting += [file for file in _imported_files(source) if file.is_file()]
    return list(sources)


def _imported_files(source: Path) -> Iterator[Path]:
    """Yield the files that the imports of a file may name, whether they are there or not."""
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files_of_import(source, alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for name in (module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)):
                yield from _files_of_import(source, name, node.level)


def _files_of_import(source: Path, module: str, level: int = 0) -> Iterator[Path]:
    """Yield the files that may be meant where a file imports a module, by `level` dots or none."""
    if level:
        if level <= len(source.parents):
            yield source.parents[level - 1] / "__init__.py"
            yield from _files_of_module(source.parents[level - 1], module)
        return
    name, top = module.partition(".")[0], source.parent
    if name in OURS:
        return
    while (top / "__init__.py").is_file():
        top = top.parent
    is_in_package = top != source.parent
    if (name == source.relative_to(top).parts[0]) if is_in_package else top.name not in INSTALLED:
        yield from _files_of_module(top, module)
    if Path.cwd() != top and Path.cwd().name not in INSTALLED:
        yield from _files_of_module(Path.cwd(), module)


def _files_of_module(folder: Path, module: str) -> Iterator[Path]:
    """Yield the files that importing a module would run, below a folder."""
    for name in module.split(".") if module else ():
        folder /= name
        yield folder / "__init__.py"
        yield folder.with_name(f"{name}.py")
