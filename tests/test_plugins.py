"""A method from a file and one from an installed package run in the same table as the built-in ones."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
from conftest import refused, tiny

import methods
from bench.cli.main import main
from bench.records.run_folder import load_run
from bench.runs import measure
from bench.system.interrupt import EndedBySignal
from bench.workshop.new_method import write_method
from bench.workshop.tiny_models import draw_calibration
from methods import Decoder, OutOfReach
from methods.files import hash_file
from methods.model.sizes import layer_parameters, parameters

PAGE = Path(__file__).parent.parent / "docs" / "guides" / "add-method.md"
NAME = "smallest-writers"  # of the method that new-method writes here


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m bench`, with the packages in `folder` installed."""
    code = "from bench.__main__ import command; command()"
    return forked.run(code, arguments, {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"})


def test_the_page_names_what_modules_offer():
    rows = re.findall(r"^\| `(methods\.[\w.]+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 7
    for module, offer in rows:
        names = re.findall(r"`(\w+)`", offer)
        assert names
        assert not [name for name in names if not hasattr(importlib.import_module(module), name)]


@pytest.fixture
def package(tmp_path):
    """A folder with the module that new-method writes, and what an installer would write about it."""
    folder = tmp_path / "site"
    (folder / "mine-1.0.dist-info").mkdir(parents=True)
    method, _ = write_method(NAME, "depth", tmp_path / "new")
    method.rename(folder / "mine.py")
    (folder / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    points = "[prunebench.methods]\nsmallest-writers = mine\n"
    (folder / "mine-1.0.dist-info" / "entry_points.txt").write_text(points)
    return folder


@pytest.fixture
def small(model_folder, text_file, tmp_path):
    """Flags of a run that takes a second."""
    return [
        *("--model", str(model_folder), "--texts", str(text_file), "--calibration", str(text_file), "--tasks", "none"),
        *("--window", "32", "--windows", "2", "--calibration-sequences", "2", "--calibration-length", "16"),
        *("--profile", "smoke", "--speed-rounds", "0", "--no-checks", "--ratio", "0.2", "--device", "cpu"),
        *("--dtype", "float32", "--out", str(tmp_path / "run")),
    ]


@pytest.mark.parametrize("way", ["file", "package"])
def test_a_written_method_stands_in_the_table(way, package, small, capsys):
    """A package is installed for a process of its own; a file is loaded in this one."""
    words = ["run", "--methods", "smallest-writers,drop-tail", *small]
    if way == "package":
        done = bench(package, *words)
        assert done.returncode == 0, done.stderr
        table = done.stdout
    else:
        assert main([*words, "--plugin", str(package / "mine.py")]) == 0
        table = capsys.readouterr().out
    counts = re.findall(r"^(smallest-writers|drop-tail) +\S+ % +(\S+ \S)", table, re.MULTILINE)
    assert len(counts) == 2
    assert counts[0][1] == counts[1][1]  # at the same parameter count


def test_layers_that_stay_are_a_part_of_the_plan(package, monkeypatch):
    """With 25 of 30 layers kept it removes what it plans, or says what is out of reach."""
    monkeypatch.setattr("methods.register", lambda name: lambda method: method)
    method = runpy.run_path(str(package / "mine.py"))["SmallestWriters"](keep_first=25)
    model = Decoder(tiny("llama", layers=30))
    each = layer_parameters(model.layers[0]) / parameters(model)
    with pytest.raises(OutOfReach, match="all but 25 of the 30 layers"):
        method.plan(model, 11 * each)
    assert method.plan(model, 5 * each) == {"layers": 5}
    with torch.no_grad():
        assert method.prune(model, draw_calibration(), 5 * each)["removed_layers"] == [25, 26, 27, 28, 29]
    assert len(model.layers) == 25


def test_the_package_exports_what_its_user_needs():
    import methods

    names = (
        "register",
        "make",
        "cards_of_methods",
        "Decoder",
        "Calibration",
        "Unsupported",
        "OutOfReach",
        "parameters",
    )
    assert set(names) <= set(methods.__all__)
    assert all(getattr(methods, name) is not None for name in methods.__all__)
    assert methods.parameters.__module__ == "methods.model.sizes"


def test_its_parameters_are_checked_like_any_others(package, small):
    done = bench(package, "run", "--methods", "smallest-writers:keep_first=x", *small)
    assert done.returncode == 2
    assert done.stderr == "prunebench: smallest-writers:keep_first is int, at least 0; got 'x'\n"


def test_the_list_names_the_package(package):
    listed = bench(package, "list", "methods").stdout.splitlines()
    named = [line.split() for line in listed if line.startswith("smallest-writers")]
    assert named == [["smallest-writers", "of", "the", "installed", "package", "mine"]]


def test_a_package_that_cannot_be_imported_is_named(package, small):
    (package / "mine.py").write_text("import nothing_of_this_name\n")
    done = bench(package, "run", "--methods", "drop-tail", *small)
    assert done.returncode == 2
    assert "method smallest-writers of the package mine cannot be imported: ModuleNotFoundError" in done.stderr
    assert done.stderr.count("\n") == 1


FAILING = """
from dataclasses import dataclass
from methods import Pruner, register
HELP

@register("failing")
@dataclass(frozen=True)
class Failing(Pruner):
    def plan(self, model, ratio):
        PLAN
        return {}
    def prune(self, model, calibration, ratio):
        PRUNE
"""


@pytest.fixture
def importable(tmp_path, monkeypatch):
    """Let a plugin import what lies beside it."""
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("dividing", None)


def failing(folder: Path, **lines: str) -> str:
    """A plugin that does in one of its functions what a test asks for, beside a helper that divides by zero."""
    source = FAILING
    for name, line in ({"HELP": "", "PLAN": "pass", "PRUNE": "pass"} | lines).items():
        source = source.replace(name, line)
    (folder / "failing.py").write_text(source)
    (folder / "dividing.py").write_text("def share(count):\n    return 1 / count\n")
    return str(folder / "failing.py")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({"PRUNE": "return [][ratio > 0]"}, "failing.py:13 in prune: IndexError: list index out of range"),
        (
            {"PRUNE": "return model.layers[0].put('nowhere.at.all', None)"},
            "failing.py:13 in prune: AttributeError: 'LlamaDecoderLayer' object has no attribute 'nowhere'",
        ),
        (
            {"HELP": "import dividing", "PRUNE": "return dividing.share(0)"},
            "dividing.py:2 in share: ZeroDivisionError: division by zero",
        ),
    ],
    ids=["prune", "below prune", "a helper"],
)
@pytest.mark.usefixtures("importable")
def test_a_cell_that_fails_says_where_in_the_plugin(lines, said, base, tmp_path, capsys):
    """On stderr and in its record, which has the traceback below."""
    plugin = failing(tmp_path, **lines)
    assert main([*base, "--plugin", plugin, "--methods", "failing", "--ratio", "0.3", "--no-isolate"]) == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if "Error" in line]
    assert lines == [f"[2/2] failing at 0.3: error: {said}"]
    (record,) = [record for record in load_run(tmp_path / "run") if record.cell.method == "failing"]
    first, _, trace = (record.error or "").partition("\n")
    assert first == said
    assert trace.startswith("Traceback (most recent call last):\n")


MENDING = """
from dataclasses import dataclass
from methods.compensation.base import Compensation, register_compensation


@register_compensation("NAME")
@dataclass(frozen=True)
class Mending(Compensation):
    def parameters_added(self, pruning):
        return 0
    def repair(self, pruning, calibration):
        return [][1]
"""


def test_a_compensation_of_a_file_that_fails_says_where_in_it(base, tmp_path, capsys):
    """A file may hold nothing else; its text is a part of the revision of what it repairs."""
    (tmp_path / "mending.py").write_text(MENDING.replace("NAME", "mending"))
    plugin = ["--plugin", str(tmp_path / "mending.py"), "--methods", "shortgpt+mending", "--ratio", "0.3"]
    assert main([*base, *plugin, "--no-isolate"]) == 3
    assert "error: mending.py:12 in repair: IndexError: list index out of range" in capsys.readouterr().err
    assert methods.plugins_of("shortgpt+mending") == [str(tmp_path / "mending.py")]
    assert methods.revision_of_method("shortgpt+mending") == f"1+1, {hash_file(tmp_path / 'mending.py')}"


def test_a_compensation_does_not_replace_one_of_its_name(tmp_path):
    methods.make("shortgpt+scale")
    (tmp_path / "scaled.py").write_text(MENDING.replace("NAME", "scale"))
    with pytest.raises(ValueError, match="two compensations are called 'scale'"):
        methods.load([str(tmp_path / "scaled.py")])


def test_an_error_of_an_import_names_its_line(tmp_path):
    (tmp_path / "early.py").write_text("import math\n\nmath.nothing()\n")
    with pytest.raises(ValueError, match=r"early.py cannot be imported: line 3: AttributeError: module 'math' has no"):
        methods.load([str(tmp_path / "early.py")])


def test_a_plan_that_fails_is_a_line_that_says_where_before_any_work(base, tmp_path, capsys):
    plugin = failing(tmp_path, PLAN="return {'layers': model.nothing}")
    said = refused(capsys, [*base, "--plugin", plugin, "--methods", "failing", "--ratio", "0.3"])
    place = "failing.py:10 in plan: AttributeError: 'Decoder' object has no attribute 'nothing'"
    assert said == f"prunebench: failing cannot be planned: {place}\n"
    assert not (tmp_path / "run").exists()


LEAVES = {  # what a plugin says behind its head, and where the program then hears of it
    "import": "raise SystemExit(0)",
    "__post_init__": "def __post_init__(self): raise SystemExit(0)",
    "plan": "def plan(self, model, ratio): raise SystemExit(0)",
    "takes_ratio": "@property\n    def takes_ratio(self): raise SystemExit(0)",
}


def leaving(folder: Path, place: str, error: str = "SystemExit(0)") -> Path:
    """A plugin with the method `leaver`, which ends the program in one place."""
    does = LEAVES.get(place, f"def {place}(self, model, calibration, ratio): raise {error}").replace(
        "SystemExit(0)", error
    )
    head = "from dataclasses import dataclass\nfrom methods.base import Pruner, register\n"
    kept = {
        "plan": "def plan(self, model, ratio): return {}",
        "prune": "def prune(self, model, calibration, ratio): return {}",
    }
    body = [does, *(text for name, text in kept.items() if name != place)] if place != "import" else list(kept.values())
    path = folder / f"leaver_{place}.py"
    method = "\n    ".join(["@register('leaver')\n@dataclass(frozen=True)\nclass Leaver(Pruner):", *body])
    path.write_text(f"{head}{does if place == 'import' else ''}\n{method}\n")
    return path


@pytest.mark.parametrize("place", LEAVES)
def test_a_plugin_that_ends_the_program_before_a_cell_is_refused_in_a_line(place, small, tmp_path, capsys):
    plugin = str(leaving(tmp_path, place))
    error = refused(capsys, ["run", "--methods", "leaver", "--plugin", plugin, *small])
    assert "SystemExit" in error
    assert not list((tmp_path / "run").glob("cells/*"))


@pytest.mark.nightly
def test_a_run_goes_on_behind_a_plugin_that_ends_the_program_while_it_prunes(small, tmp_path, capsys):
    plugin = str(leaving(tmp_path, "prune"))
    assert main(["run", "--methods", "leaver", "--plugin", plugin, *small]) == 3
    assert "SystemExit" in capsys.readouterr().err
    statuses = [json.loads(path.read_text())["status"] for path in (tmp_path / "run" / "cells").glob("*.json")]
    assert sorted(statuses) == ["error", "ok"]


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), BaseException("gone")])
def test_what_ends_the_program_while_a_cell_is_measured_is_a_failed_cell(error, monkeypatch):
    monkeypatch.setattr(measure, "_measure", raising(error))
    told = list[dict[str, object]]()
    outcome = measure.CellProgress(told.append, *[lambda told: None] * 2, nullcontext)
    measure.try_cell(SimpleNamespace(method="laco"), None, None, outcome, None)
    (found,) = told
    assert found["status"] == "error"
    assert found["error"].startswith(f"{type(error).__name__}: ")


def test_an_interrupt_and_a_process_that_is_taken_away_are_no_failed_cells(monkeypatch):
    for kind in (KeyboardInterrupt, EndedBySignal):
        monkeypatch.setattr(measure, "_measure", raising(kind))
        told = list[dict[str, object]]()
        outcome = measure.CellProgress(told.append, *[lambda told: None] * 2, nullcontext)
        with pytest.raises(kind):
            measure.try_cell(None, None, None, outcome, None)
        assert told == []


def raising(kind: BaseException | type[BaseException]):
    def raises(*_: object) -> None:
        raise kind

    return raises
