"""The layout's promises that import-linter (pyproject.toml) does not check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("bench", "methods", "reports")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_one_file_knows_what_families_call_their_parts():
    sources = [p for p in FILES if p.stem != "architectures"]
    for name in ("q_proj", "o_proj", "down_proj", "fc1", "c_attn", "query_key_value", "input_layernorm", "lm_head"):
        assert [p for p in sources if re.search(rf"\b{name}\b", p.read_text(encoding="utf-8"))] == [], name


def test_there_are_no_drawers():
    assert [p for p in FILES if p.stem in ("utils", "common", "helpers", "misc")] == []


def test_no_module_leads_back_to_itself_by_its_imports():
    """Imports for type checkers count: a reader walks them as well."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imported) > 100
    with pytest.raises(CycleError):
        tuple(TopologicalSorter(imported | {"methods.errors": {"bench.cli.main"}}).static_order())
    tuple(TopologicalSorter(imported).static_order())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_is_of_one_class_of_a_package_only(package):
    sources = [path.read_text(encoding="utf-8") for path in FILES if path.is_relative_to(ROOT / package)]
    nodes = (node for source in sources for node in ast.walk(ast.parse(source)))
    names = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert len(names) > 10
    assert [name for name, count in names.items() if count > 1] == []


def test_files_of_tests_have_names_of_their_own():
    """Two of one name are two modules of one name, of which pytest collects the first."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "__init__.py")
    assert len(names) > 100
    assert [name for name, count in names.items() if count > 1] == []


def test_only_the_command_line_knows_argparse():
    knows = [path for path in FILES if "argparse" in path.read_text(encoding="utf-8")]
    assert knows
    assert all(path.is_relative_to(ROOT / "bench" / "cli") for path in knows)


@pytest.mark.parametrize(
    "command", [["--help"], ["--version"], ["run", "--help"], ["list", "families"], ["list", "tasks"]]
)
def test_help_and_lists_import_nothing_heavy(command):
    code = (
        "import sys; from bench.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'pandas', 'datasets', 'pydantic', 'scipy', 'numpy'}\n"
        "heavy = (heavy | {'psutil', 'tqdm'}) & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
