"""check-method says what holds of a method and what does not, and where an exception comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from conftest import refused

import methods
from bench.cli.main import main
from bench.workshop import method_checks
from bench.workshop.method_checks import CHECKS, check_method, prune_tiny
from methods.budget import whole_layers
from methods.model.structures import drop_layers

ONE = ("llama",)
FAULTS = {  # what a method does wrong, by the property that it breaks, and words of what is said of it
    "looks": ("plan from shapes alone", "without weights it plans"),
    "eager": ("ratio 0 changes nothing", "parameters went"),
    "greedy": ("budget met", "0.4592 of 0.3061 went, and one step is 0.1531"),
    "unsteady": ("more goes at a higher ratio", "at 0.4 "),
    "liar": ("decisions name what went", "layer 1 is gone, and removed_layers is [2, 3]"),
    "tuner": ("cut equals zeroing", "and only_cuts is True"),
    "mixer": ("cached generation equals uncached", "logits are off by"),
    "hooked": ("saved and loaded again", "CheckpointError: this model cannot be stored"),
    "careless": ("a second run is the first", "seed one by calibration.seed"),
    "writer": ("a second run is the first", "it changes the calibration tokens"),
    "outdated": ("in files as in memory", "has other weights, with the same decisions"),
    "reader": ("looks at what it says", "and looks_at is nothing"),
    "wide": ("in bfloat16", "weights of a model in bfloat16 became float32"),
}


@dataclass(frozen=True)
class Faulty(methods.Pruner):
    """A method with a fault that its parameter names."""

    fault: str = ""

    only_cuts = True

    @property
    def looks_at(self):
        return "nothing" if self.fault == "reader" else "calibration"

    def plan(self, model, ratio):
        n = whole_layers(model, ratio)
        return {"layers": n + 7 if self.fault == "looks" and model.embed.weight.is_meta else n}

    def prune(self, model, calibration, ratio):
        n = whole_layers(model, ratio) + (self.fault in ("greedy", "eager"))
        n = {3: 2, 2: 3}.get(n, n) if self.fault == "unsteady" else n
        first = 1
        if self.fault == "careless":
            first += int(torch.randint(3, (1,)))
        if self.fault == "reader":
            first += int(calibration.ids.sum()) % 3
        if self.fault == "writer":
            calibration.ids[0, 0] = 0
        decisions = drop_layers(model, list(range(first, first + n)))
        break_weights(model.layers[0], self.fault)
        return {"removed_layers": [2, 3]} if self.fault == "liar" else decisions


def break_weights(layer, fault):
    """Change weights of a layer, or what it computes."""
    if fault == "tuner" or (fault == "outdated" and layer.store is not None):
        layer.down.weight.data *= 1.01
    if fault == "wide":
        layer.down.weight.data = layer.down.weight.data.float()
    if fault in ("mixer", "hooked"):
        add = {"mixer": lambda x: x + x.mean(1, keepdim=True), "hooked": lambda x: 1.01 * x}[fault]
        layer.down.register_forward_hook(lambda module, given, out: add(out))


@pytest.fixture(autouse=True)
def _faulty():
    """The method, for as long as a test takes."""
    methods.register("faulty")(Faulty)
    yield
    methods.REGISTRY.pop("faulty")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said_of_the_property_that_it_breaks(fault):
    name, words = FAULTS[fault]
    outcome = method_checks._try_check(CHECKS[name], prune_tiny("faulty", {"fault": fault}, "llama"), [])
    assert outcome.status == "wrong"
    assert words in outcome.words


def test_without_a_fault_all_holds():
    findings = check_method("faulty", {}, ONE)
    assert [finding.what for finding in findings] == ["families", *CHECKS]
    assert [finding.what for finding in findings if finding.status != "ok"] == ["on a GPU as on the CPU"]
    exported = next(finding for finding in findings if finding.what == "exported")
    assert exported.figure == "llama: gguf holds it; nemotron-nas holds it; heterogeneous holds it"


BUILT_IN = ["flap", "shortgpt+ghost"]
NIGHTLY = [card.name for card in methods.cards_of_methods() if card.name not in ("dense", "flap")]
COARSE = ("llm-pruner", "puzzle", "laco-puzzle")  # which have steps that their decisions do not show


@pytest.mark.parametrize("method", BUILT_IN + [pytest.param(name, marks=pytest.mark.nightly) for name in NIGHTLY])
def test_all_holds_of_the_methods_of_the_package(method):
    """On the first families that each serves."""
    families = ("mixtral",) if method == "reap" or method.startswith("expert") else ONE
    findings = check_method(method, {}, families)
    wrong = {finding.what: finding.figure for finding in findings if finding.status == "wrong"}
    assert wrong.keys() <= ({"budget met"} if method in COARSE else set()), wrong


def test_a_family_that_is_refused_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(method_checks, "CHECKS", {"budget met": CHECKS["budget met"]})
    families, *findings = check_method("reap", {}, ("mixtral", "llama"))
    assert families.status == "ok"
    assert families.figure.startswith("mixtral; llama: refused: ")
    assert all("llama" not in finding.found for finding in findings)
    (alone,) = check_method("reap", {}, ONE)
    assert alone.status == "wrong"


MINE = """
from dataclasses import dataclass
from methods import Pruner, register
from methods.budget import whole_layers
from methods.model.structures import drop_layers


@register("mine")
@dataclass(frozen=True)
class Mine(Pruner):
    last: int = 0

    only_cuts = True

    def plan(self, model, ratio):
        return {"layers": whole_layers(model, ratio)}

    def prune(self, model, calibration, ratio):
        return drop_layers(model, range(1, 1 + self.plan(model, ratio)["layers"] LINE))
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Write the file of a plugin; llama alone is looked at, and few properties."""
    few = ("budget met", "decisions name what went", "on a GPU as on the CPU")
    monkeypatch.setattr(method_checks, "CHECKS", {name: CHECKS[name] for name in few})
    monkeypatch.setattr(check_method, "__defaults__", (ONE, ""))

    def write(line=""):
        (tmp_path / "mine.py").write_text(MINE.replace("LINE", line))
        return str(tmp_path / "mine.py")

    return write


def test_the_command_prints_a_line_for_each_property(plugin, capsys):
    assert main(["check-method", plugin()]) == 0
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines() if line.startswith("ok")] == [
        "ok"
    ] * 3  # of the families, and of two properties
    assert err.endswith("all that was looked at holds of mine\n")


@pytest.mark.parametrize(
    ("line", "said"), [("+ [][1]", "IndexError: list index out of range"), ("+ exit(0)", "SystemExit: 0")]
)
def test_an_exception_names_the_line_of_the_plugin_and_the_exit_code_is_that_of_the_doctor(line, said, plugin, capsys):
    assert main(["check-method", plugin(line), "--json"]) == 1
    out, err = capsys.readouterr()
    (finding,) = json.loads(out)["findings"]
    assert finding["figure"] == f"llama: mine.py:19 in prune: {said}"
    assert "mine.py:19 in prune" in finding["where"]
    assert "does not hold of mine: families" in err


def test_a_compensation_of_a_file_is_checked_behind_the_method_that_it_follows(plugin, tmp_path, capsys):
    (tmp_path / "mended.py").write_text(
        "from dataclasses import dataclass\n"
        "from methods.compensation.base import Compensation, register_compensation\n\n\n"
        "@register_compensation('unmended')\n@dataclass(frozen=True)\nclass Unmended(Compensation):\n"
        "    def parameters_added(self, pruning):\n        return 0\n\n"
        "    def repair(self, pruning, calibration):\n        return {}\n"
    )
    assert main(["check-method", str(tmp_path / "mended.py")]) == 0
    assert "all that was looked at holds of shortgpt+unmended\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.py"], "--plugin names a Python file"),
        (["mine.py", "--method", "laco"], "--method names a method of {file}: mine; got 'laco'"),
        (["mine.py", "--method", "mine:first=2"], "mine has no parameter first; it has: last"),
        (["mine.py", "--method", "mine:last=x"], "mine:last is int; got 'x'"),
        (["mine.py", "--method", ""], "no method was named"),
    ],
)
def test_a_mistake_is_a_line_before_any_work(words, said, plugin, tmp_path, capsys):
    file = plugin()
    error = refused(capsys, ["check-method", str(tmp_path / words[0]), *words[1:]])
    assert said.format(file=file) in error
