"""A cell made again from its record: the question is the same to the last character."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_records import with_measured

import methods
from bench.cli.main import main
from bench.data import pretrained, texts
from bench.plan.trust import Trust
from bench.records import run_folder
from bench.records.run_folder import load_run
from bench.runs import reproduce
from bench.runs.inputs import sha256_of_state
from bench.runs.reproduce import cell_of, prune_again
from methods import decisions
from methods.depth import angular, llm_drop, shortgpt
from methods.errors import UserError
from methods.model import sizes
from methods.model.decoder import Decoder
from methods.trials import blocks
from methods.trials.merges import MergeTrial
from methods.trials.windows import CollapseTrial
from methods.width import flap, llm_pruner, minitron_width, obs, two_ssp, wanda_sp

RESULTS = Path(__file__).parents[2] / "docs/results"


@pytest.mark.parametrize("run", sorted(path.name for path in RESULTS.iterdir() if path.is_dir()))
def test_the_cell_of_a_record_asks_what_the_record_was_asked(run):
    for record in run_folder.read_records(RESULTS / run).values():
        assert cell_of(record) == replace(record.cell, inputs=None)


MIXED = """
from dataclasses import dataclass
from methods import Pruner, register
from methods.model.structures import cuts_of, drop_layers, structures_of

@register("mixed")
@dataclass(frozen=True)
class Mixed(Pruner):
    only_cuts = True
    def plan(self, model, ratio): return {}
    def prune(self, model, calibration, ratio):
        gone, structures = drop_layers(model, [1, 3]), structures_of(model, "kv_heads", "channels")
        for structure in structures:
            structure.drop([structure.layer.number % structure.size])
        return gone | cuts_of(model, structures)
"""
CUT = (
    "mixed",
    "drop-random",
    "magnitude",
    "sleb",
    "finercut",
    "llm-drop",
    "wanda-sp",
    "llm-pruner",
    "2ssp",
    "flap:uniform",
)
FITTED = (
    *(
        "mixed+refit",
        "laco",
        "laco-published",
        "laco-ls",
        "shortgpt+ghost",
        "angular+scale",
        "sleb+replaceme",
        "llm-drop+linearpatch",
    ),
    *(
        "obs",
        "obs+refit",
        "flap",
        "flap+refit",
        "wanda-sp+refit",
        "minitron-width+refit",
        "llm-pruner+refit",
        "2ssp+refit",
        "svd-llm",
    ),
)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "mixed.py"
    path.write_text(MIXED)
    return str(path)


@pytest.fixture(autouse=True)
def loaded(plugin):
    methods.load([plugin])


@pytest.fixture(scope="module")
def records(model_folder, text_file, tmp_path_factory, plugin):
    """Return what a run would have written down of methods that cut alone, and of others, by method."""
    text, folder = str(text_file), tmp_path_factory.mktemp("again") / "run"
    asked = ["run", "--model", str(model_folder), "--calibration", text, "--texts", "none", "--tasks", "none"]
    asked += ["--calibration-sequences", "4", "--calibration-length", "24", "--profile", "smoke", "--device", "cpu"]
    asked += ["--speed-rounds", "0", "--no-checks", "--ratio", "0.3", "--methods", "drop-tail", "--no-isolate"]
    assert main([*asked, "--out", str(folder)]) == 0
    methods.load([plugin])
    example = next(record for record in load_run(folder) if record.cell.method == "drop-tail")
    found = {}
    for name in (*CUT, *FITTED):
        method, _, switch = name.partition(":")
        model, tokenizer = pretrained.load(str(model_folder), torch.device("cpu"), torch.float32)
        decoder, block = Decoder(model), texts.make_calibration(tokenizer, text, 4, 24, 0)
        torch.manual_seed(0)
        parameters = {switch: True} if switch else {}
        decided = decisions.prune(methods.make(method, parameters), decoder, block, example.measured.ratio_budget)
        measured = vars(sizes.sizes_of(decoder, 8)) | {"pruned_sha256": sha256_of_state(model)}
        found[name] = replace(
            example,
            cell=replace(example.cell, method=method, parameters=parameters, given=tuple(parameters)),
            decisions=json.loads(json.dumps(decided)) | {"calibration": example.decisions["calibration"]},
            measured=replace(example.measured, **measured),
        )
    return found


def trust_in(record):
    """What lets the record name its model and its text, which lie outside of its run."""
    return Trust(Path("nowhere"), names=(record.cell.model, record.cell.protocol.calibration))


def is_the_model_of(record):
    return sha256_of_state(prune_again(record, "cpu", trust_in(record)).model.model) == record.measured.pruned_sha256


def test_what_is_cut_alone_is_made_again_from_what_the_record_names(records, monkeypatch):
    """To the last bit and without asking the method, which may decide otherwise on another machine."""
    monkeypatch.setattr(reproduce, "_prune", lambda *_: pytest.fail("the method was asked"))
    for name in CUT:
        assert is_the_model_of(records[name]), name
    with pytest.raises(pytest.fail.Exception, match="the method was asked"):
        prune_again(records["laco"], "cpu", trust_in(records["laco"]))


def test_what_is_fitted_is_fitted_to_the_removals_that_the_record_names(records, monkeypatch):
    """On a machine that would remove something else, which changes what is asked for where the record does not say."""

    def undecided(*_):
        return pytest.fail("something was decided")

    for owner, name in [
        (MergeTrial, "similarities"),
        (CollapseTrial, "losses"),
        (blocks.Trial, "losses_without"),
        (shortgpt.ShortGPT, "scores"),
        (angular.Angular, "distances"),
        (llm_drop, "importance_of_blocks"),
        (flap.FLAP, "score"),
        (wanda_sp, "score_units"),
        (minitron_width, "activity_of_channels"),
        (llm_pruner.LLMPruner, "scores"),
        (two_ssp, "norms_of_channels"),
        (obs, "find_cheapest"),
    ]:
        monkeypatch.setattr(owner, name, undecided)
    for name in FITTED:
        assert is_the_model_of(records[name]), name


@pytest.mark.parametrize("method", ["mixed", "mixed+refit"])
def test_a_record_whose_removals_its_model_cannot_have_had_is_refused_in_a_line(records, method):
    """Such as those of earlier versions, which counted cuts behind dropped layers by the layers that were left."""
    record = records[method]
    by_layers_left = [units for units in record.decisions["removed_channels"] if units]
    older = replace(record, decisions=record.decisions | {"removed_channels": by_layers_left})
    said = r"^the record names removals .*: removed_channels has 4 entries, and a list is due for each of the 6 layers"
    with pytest.raises(UserError, match=said):
        prune_again(older, "cpu", trust_in(older))


def test_a_parameter_that_the_method_no_longer_has_is_said(records):
    record = records["shortgpt+ghost"]
    parameters = record.cell.parameters | {"leave_first": True}
    older = replace(record, cell=replace(record.cell, parameters=parameters))
    with pytest.raises(UserError, match=r"is of another version of the method: .* has no parameter leave_first"):
        prune_again(older, "cpu", trust_in(older))


def test_a_machine_that_removes_something_else_is_told_so(records, monkeypatch):
    """Where no sha256 proves that what the record names is the model, so that the method is asked again."""
    monkeypatch.setattr(wanda_sp, "score_units", lambda structure, _: -torch.arange(float(structure.size)))
    record = records["wanda-sp"]
    with pytest.raises(UserError, match="wanda-sp does not remove here what it removed for the record, on "):
        prune_again(with_measured(record, pruned_sha256=None), "cpu", trust_in(record))
