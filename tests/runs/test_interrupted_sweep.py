"""A sweep over the layers that was interrupted goes on at the layer where it stood, and ends with the same model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from tiny_methods import calibration

import methods
from bench.cli.main import main
from bench.records.run_folder import load_run
from methods.budget import prune_to_budget
from methods.counted import budget_of_quantity
from methods.model import calibration as sweep_log
from methods.model.calibration import SweepLog, SweepLogs
from methods.model.decoder import Decoder

RATIO = "0.3"
METHODS = {  # similarities, statistics, those of cut layers, bases, gradients, damages, generations, refits
    "laco": ":C=2,I=2",
    "shortgpt": "",
    "angular": "",
    "magnitude": "",
    "llm-drop": "",
    "flap": "",
    "2ssp": "",
    "minitron-width": "",
    "wanda-sp": "",
    "obs": "",
    "svd-llm": ":prefix=pruned",
    "slicegpt": ":multiple=1",
    "shortened-llama-taylor": "",
    "llm-pruner": ":steps=2",
    "puzzle": ":tokens=64",
    "evopress": ":generations=4,offspring=4,initial=4,tokens=40",
    "flap+refit": "",
    "wanda-sp+refit": ":refit.intercept=yes",
}


def interrupted(monkeypatch, after: int) -> list[int]:
    """Grows by one for each layer that is done; at number `after` the run ends as by Ctrl-C."""
    add, done = SweepLog.add, list[int]()

    def counted(self, *given):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(self.done)
        add(self, *given)

    monkeypatch.setattr(SweepLog, "add", counted)
    return done


AS_ANOTHER = ("angular", "magnitude", "minitron-width", "wanda-sp")  # sweep as shortgpt, llm-drop and flap do: at night
INTERRUPTED = [pytest.param(name, "", marks=[pytest.mark.nightly] if name in AS_ANOTHER else []) for name in METHODS]


@pytest.mark.parametrize(("method", "damage"), [*INTERRUPTED, ("slicegpt", "found"), ("slicegpt", "states")])
def test_the_same_command_goes_on_at_the_layer_where_it_stood(method, damage, base, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_log, "SECONDS", 0.0)
    run = [
        *base[:-4],
        *base[-2:],
        "--no-checks",
        "--no-isolate",
        "--ratio",
        RATIO,
        "--methods",
        method + METHODS[method],
    ]
    with monkeypatch.context() as patch:
        every = interrupted(patch, after=999)
        assert main([*run, "--out", str(tmp_path / "whole")]) == 0
    assert not any(every) and len(every) > 2
    with monkeypatch.context() as patch:
        interrupted(patch, after=len(every) - 2)
        assert main([*run, "--out", str(tmp_path / "run")]) == 130
    kept = sorted((tmp_path / "run").glob("partial/*/prune/*/*.safetensors"))
    if damage:
        *_, file = (file for file in kept if file.name.startswith(damage))
        file.write_bytes(file.read_bytes()[:-9])
    with monkeypatch.context() as patch:
        again = interrupted(patch, after=999)
        assert main([*run, "--out", str(tmp_path / "run")]) == 0
    assert len(again) == (len(every) if damage else 2)
    if method != "2ssp":  # its last two are removals, whose log is begun anew; that its layers are not is seen above
        assert any(again) != bool(damage)
    assert not (tmp_path / "run" / "partial").exists()
    whole, resumed = (
        next(record for record in load_run(tmp_path / name) if record.cell.method != "dense")
        for name in ("whole", "run")
    )
    assert resumed.measured.pruned_sha256 == whole.measured.pruned_sha256
    assert resumed.decisions == whole.decisions
    assert (resumed.measured.prune_seconds > resumed.measured.seconds["prune"]) == (damage in ("", "micro-batches"))


def test_states_go_on_in_other_micro_batches(tmp_path, monkeypatch):
    """How many sequences go together follows the memory that is free, which may differ when a run goes on."""
    monkeypatch.setattr(sweep_log, "SECONDS", 0.0)
    states, found = torch.randn(6, 3, 2).split([2, 4]), [torch.randn(3), torch.arange(4)]
    SweepLog(tmp_path, states).add(found, [one + 1 for one in states])
    again = SweepLog(tmp_path, torch.zeros(6, 3, 2).split([3, 3]))
    assert again.done == 1
    there = again.take()
    assert [len(one) for one in there] == [3, 3]
    assert torch.equal(torch.cat(there), torch.cat(states) + 1)
    ((first, second),) = again.kept()
    assert torch.equal(first, found[0]) and torch.equal(second, found[1])
    assert not again.take()


@pytest.mark.parametrize(("what", "gone"), [("macs", 0.4), ("kv", 0.6)])
def test_a_refit_takes_over_none_of_another_pruning_with_as_wide_matrices(what, gone, tmp_path, monkeypatch):
    """A budget is met by pruning at several ratios, of which two cut as many channels and other attentions."""
    monkeypatch.setattr(sweep_log, "SECONDS", 0.0)
    found = []
    for sweeps in (None, SweepLogs(tmp_path)):
        model = Decoder(tiny("llama"))
        pruner = methods.make("2ssp+refit", {"tokens": "48", "multiple": "24"})
        asked = replace(calibration(), sweeps=sweeps)
        found.append(prune_to_budget(budget_of_quantity(model, gone, what, 64, whole=False), pruner, model, asked))
    (one, decided, about), (other, again, _) = found
    assert len(about.tried) > 1
    assert decided["attentions_in_order"] == again["attentions_in_order"]
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_one_states_file_is_kept_and_findings_of_every_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_log, "SECONDS", 0.0)
    log = SweepLog(tmp_path, [torch.zeros(2, 1)])
    for layer in range(3):
        log.add([torch.tensor(layer)], [torch.full((2, 1), float(layer))])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *(f"found-000{layer}.safetensors" for layer in range(3)),
        "states-0003.safetensors",
    ]
    assert [int(layer) for (layer,) in SweepLog(tmp_path, [torch.zeros(2, 1)]).kept()] == [0, 1, 2]


def test_seconds_of_this_attempt_are_not_counted_once_more_where_it_sweeps_again(tmp_path, monkeypatch):
    """As a method does that is asked for one ratio after another: its own time has them already."""
    monkeypatch.setattr(sweep_log, "SECONDS", 0.0)
    states = [torch.zeros(2, 1)]
    first = SweepLogs(tmp_path)
    first.log(states, "statistics").add([torch.tensor(0)], states)
    assert first.log(states, "statistics").done == 1
    assert first.seconds == 0
    second = SweepLogs(tmp_path)
    took = second.log(states, "statistics").seconds
    second.log(states, "statistics")
    assert second.seconds == took > 0


def test_findings_of_a_few_seconds_are_written_together(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_log, "SECONDS", 1e9)
    log = SweepLog(tmp_path, [torch.zeros(2, 1)])
    log.add([torch.tensor(0)], [torch.zeros(2, 1)])
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sweep_log, "SECONDS", 0.0)
    log.add([torch.tensor(1)], [torch.ones(2, 1)])
    again = SweepLog(tmp_path, [torch.zeros(2, 1)])
    assert (again.done, [int(layer) for (layer,) in again.kept()]) == (2, [0, 1])
