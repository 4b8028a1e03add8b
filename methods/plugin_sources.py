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

    A file beside it counts unless an installer has put both there; of a package all its modules count.
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
    top = source.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files_of_module(_folder_of_imports(source, top, alias.name), alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            folder = _folder_of_imports(source, top, module)
            if node.level:
                folder = source.parents[node.level - 1] if node.level <= len(source.parents) else None
            yield from _files_of_module(folder, module)
            for alias in node.names:
                yield from _files_of_module(folder, f"{module}.{alias.name}".strip("."))


def _folder_of_imports(source: Path, top: Path, module: str) -> Path | None:
    """Return the folder below which a file finds a module of its own by an absolute name; None for any other module.

    top  the folder that holds the file's package, or the file itself
    """
    name = module.partition(".")[0]
    if name in OURS:
        return None
    if top != source.parent:
        return top if name == source.relative_to(top).parts[0] else None
    return None if top.name in INSTALLED else top


def _files_of_module(folder: Path | None, module: str) -> Iterator[Path]:
    """Yield the files that importing a module would run, below a folder."""
    if folder is None:
        return
    for name in module.split(".") if module else ():
        folder /= name
        yield folder / "__init__.py"
        yield folder.with_name(f"{name}.py")
