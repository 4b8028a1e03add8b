"""A greedy search that was interrupted goes on at the removal where it stood, and ends with the same model."""

from __future__ import annotations

import json

import pytest

from bench.cli.main import main
from bench.records.run_folder import load_run
from methods.depth.laco_ls import LaCoLS
from methods.search.trials import Trial

RATIO = "0.5"
STEPS = {  # a call for each removal
    "sleb": (Trial, "without"),
    "2ssp": (Trial, "without"),
    "laco-ls": (LaCoLS, "_candidates"),
}
OPTIONS = {"2ssp": ":alpha=9", "laco-ls": ":trial_tokens=48,final_tokens=96"}  # several attentions go


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
    run = [*base[:-4], *base[-2:], "--no-isolate", "--ratio", RATIO]
    run += ["--methods", method + OPTIONS.get(method, "")]
    with monkeypatch.context() as patch:
        every = interrupted(patch, method, after=99)
        assert main([*run, "--out", str(tmp_path / "whole")]) == 0
    assert len(every) > 2
    with monkeypatch.context() as patch:
        interrupted(patch, method, after=len(every) - 1)
        assert main([*run, "--out", str(tmp_path / "run")]) == 130
    (kept,) = (tmp_path / "run").glob("partial/*/prune/removals.json")
    assert len(json.loads(kept.read_text())["order"]) == len(every) - 1
    if damage:
        kept.write_bytes(kept.read_bytes()[:-9])
    with monkeypatch.context() as patch:
        steps = interrupted(patch, method, after=99)
        assert main([*run, "--out", str(tmp_path / "run")]) == 0
    assert len(steps) == (len(every) if damage else 1)
    assert not (tmp_path / "run" / "partial").exists()
    whole, again = (
        next(record for record in load_run(tmp_path / name) if record.cell["method"] != "dense")
        for name in ("whole", "run")
    )
    assert again.measured["pruned_sha256"] == whole.measured["pruned_sha256"]
    gone = [name for name in whole.decisions if name.startswith("removed_") or name == "removal_order"]
    assert [again.decisions[name] for name in gone] == [whole.decisions[name] for name in gone] != []
    assert again.measured["prune_seconds"] > again.measured["seconds"]["prune"] or damage
