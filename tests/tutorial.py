"""Executes the tutorial:  python tests/tutorial.py  writes its results, and the figure, into docs/.

What it prints on stderr, which is progress, and what depends on the machine's clock or folders are not kept.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from pages import ROOT

NOTEBOOK = ROOT / "docs" / "examples" / "tutorial.ipynb"
FIGURE = ROOT / "docs" / "images" / "tutorial.svg"
OWN = ("name", "output_type", "text", "data", "metadata", "ename", "evalue", "traceback")


def executed(folder: Path) -> Any:
    """Return the notebook after its cells have been run in `folder`, as a file of docs keeps it.

    Raises nbclient's CellExecutionError where a cell raises.
    """
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    before, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH"), str(ROOT)
    try:
        client = NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(folder)}})
        client.execute(env=dict(os.environ))
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [kept(output) for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def kept(output: Any) -> Any:
    """Return an output without the number of its execution."""
    found = nbformat.from_dict({name: output[name] for name in OWN if name in output})
    if found.output_type == "execute_result":
        found["execution_count"] = None
    return found


def main() -> None:
    """Execute the notebook, and write it and its figure."""
    with tempfile.TemporaryDirectory() as scratch:
        notebook = executed(Path(scratch))
        shutil.copyfile(Path(scratch) / FIGURE.name, FIGURE)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
    NOTEBOOK.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
