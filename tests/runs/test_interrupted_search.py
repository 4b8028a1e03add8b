"""A greedy search that was interrupted goes on at the removal where it stood, and ends with the same model."""

from __future__ import annotations

import pytest
from run_contents import contents

from bench.cli.main import main
from bench.records.run_folder import load_run
from bench.runs import measure
from methods.depth.laco_ls import LaCoLS
from methods.model import calibration
from methods.trials.blocks import Trial

RATIO = "0.5"
STEPS = {  # a call for each removal
    "sleb": (Trial, "losses_without"),
    "2ssp": (Trial, "losses_without"),
    "laco-ls": (LaCoLS, "_candidates"),
}
OPTIONS = {
    "2ssp": ":alpha=9",  # several attentions go
    "laco-ls": ":trial_tokens=48,final_tokens=96",
    "laco-puzzle": ":steps=2,tokens=48,best=2,collapsed=0.9",
}


def interrupted(monkeypatch, method: str, after: int) -> list[int]:
    """Grows by one for each removal that is looked for; at number `after` the run ends as by Ctrl-C."""
    owner, name = STEPS[method]
    step, steps = getattr(owner, name), list[int]()

    def counted(*given, **options):
        if len(steps) == after:
            raise KeyboardInterrupt
        steps.append(len(steps))
        return step(*given, **options)

    monkeypatch.setattr(owner, name, counted)
    return steps


@pytest.mark.parametrize(("method", "damage"), [*((name, False) for name in STEPS), ("sleb", True)])
def test_the_same_command_goes_on_at_the_removal_where_it_stood(method, damage, base, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    run = [*base[:-4], *base[-2:], "--no-isolate", "--ratio", RATIO]
    run += ["--methods", method + OPTIONS.get(method, "")]
    with monkeypatch.context() as patch:
        every = interrupted(patch, method, after=99)
        assert main([*run, "--out", str(tmp_path / "whole")]) == 0
    assert len(every) > 2
    with monkeypatch.context() as patch:
        interrupted(patch, method, after=len(every) - 1)
        assert main([*run, "--out", str(tmp_path / "run")]) == 130
    if damage:
        *_, last = sorted((tmp_path / "run").glob("partial/*/prune/*/found-*.safetensors"))
        last.write_bytes(last.read_bytes()[:-9])
    with monkeypatch.context() as patch:
        steps = interrupted(patch, method, after=99)
        assert main([*run, "--out", str(tmp_path / "run")]) == 0
    assert len(steps) == (len(every) if damage else 1)
    assert not (tmp_path / "run" / "partial").exists()
    whole, again = (
        next(record for record in load_run(tmp_path / name) if record.cell.method != "dense")
        for name in ("whole", "run")
    )
    assert again.measured.pruned_sha256 == whole.measured.pruned_sha256
    assert again.decisions == whole.decisions
    assert [name for name in whole.decisions if name.startswith("removed_")]
    assert len(again.measured.search_seconds or ()) == len(whole.measured.search_seconds or ())
    assert again.measured.prune_seconds > again.measured.seconds["prune"] or damage


@pytest.mark.parametrize("method", ["sleb", "laco-ls", "laco-puzzle", "sleb+ghost"])
def test_a_search_that_had_come_to_its_end_has_the_record_of_one_that_nothing_interrupted(
    method, base, tmp_path, monkeypatch
):
    """And so have the cells behind it, which begin with what it has found."""
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    run = [*base[:-4], *base[-2:], "--no-isolate", "--ratio", "0.3,0.6", "--methods", method + OPTIONS.get(method, "")]
    assert main([*run, "--out", str(tmp_path / "whole")]) == 0
    prune, pruned = measure.prune_to_budget, list[int]()

    def killed(*given):
        found = prune(*given)
        pruned.append(1)
        if len(pruned) in (1, 3):
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(measure, "prune_to_budget", killed)
        assert [main([*run, "--out", str(tmp_path / "run")]) for _ in range(3)] == [130, 130, 0]
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
