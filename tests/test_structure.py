"""The layout's promises: imports go one way, and names inside a model are known in one file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("bench", "methods", "reports")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ALLOWED = {
    "methods": {"methods"},
    "bench": {"bench", "methods"},
    "reports": {"reports", "bench.record", "bench.stats", "bench.compare", "bench.gate", "bench.history"},
}
METHOD_MAY = {
    "methods",
    "methods.anatomy",
    "methods.pruner",
    "methods.surgery",
    "methods.signals",
    "methods.budget",
    "methods.greedy",
    "methods.least_squares",
    "methods.cuts",
    "methods.collapse",
    "methods.stock",
    "methods.progress",
}
INFRASTRUCTURE = (
    "__init__",
    "anatomy",
    "families",
    "greedy",
    "least_squares",
    "cuts",
    "collapse",
    "mapped",
    "compensation",
    "scale",
    "linear_patch",
    "ghost",
    "replaceme",
    "refit",
    "pruner",
    "surgery",
    "signals",
    "budget",
    "checkpoint",
    "shards",
    "stock",
    "uneven",
    "model_card",
    "progress",
)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    allowed = ALLOWED[package] | ({"reports"} if path.parent.name == "commands" else set())
    for name in imports(path):
        parts = name.split(".")
        prefixes = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
        leads_there = any(entry.startswith(f"{name}.") for entry in allowed)  # `from bench import record`
        assert prefixes & allowed or leads_there, f"{path} imports {name}"


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "methods" and p.stem not in INFRASTRUCTURE])
def test_a_method_imports_only_what_methods_stand_on(path):
    for name in imports(path):
        parts = name.split(".")
        assert {".".join(parts[:end]) for end in (1, 2)} - {"methods"} <= METHOD_MAY, f"{path} imports {name}"


def test_one_file_knows_what_families_call_their_parts():
    sources = [p for p in FILES if p.stem != "families"]
    for name in ("q_proj", "o_proj", "down_proj", "fc1", "c_attn", "query_key_value", "input_layernorm", "lm_head"):
        assert [p for p in sources if name in p.read_text(encoding="utf-8")] == [], name


def test_there_are_no_drawers():
    assert [p for p in FILES if p.stem in ("utils", "common", "helpers", "misc")] == []


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["list", "methods"], ["list", "tasks"]])
def test_help_and_lists_import_nothing_heavy(command):
    code = (
        "import sys; from bench.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'pandas', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
