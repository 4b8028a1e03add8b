"""A run whose models lie in files measures what one in memory does."""

from __future__ import annotations

import shutil

from bench.cli.main import main
from bench.evaluation.forwards import Sweeping
from bench.plan.kinds import to_plain
from bench.records.run_folder import load_run
from bench.records.sample_tables import CONTINUATIONS
from bench.runs import job, measure
from bench.schedule import memory_needs
from bench.schedule.estimate import Estimate, Estimator
from bench.schedule.memory_needs import MemoryNeeds
from bench.system import memory

DIVERGENCE = ("kl", "kl_low", "kl_high", "agreement", "drawn")
OTHERWISE = ("seconds", "prune_seconds", "search_seconds", "peak_memory", "weights_in")


def test_a_run_in_files_measures_what_one_in_memory_does(with_checks, tmp_path, monkeypatch):
    """Models are saved in another dtype than they have, so that each is converted on its way back."""
    run, found = [*with_checks[:-4], "--speed-rounds", "0", "--no-isolate"], []
    keeps: list[bool] = []  # freed memory: of no cell whose weights lie in files, since memory is what is short
    monkeypatch.setattr(memory, "keep_freed", lambda: keeps.append(True))
    rooms, window_nll = list[Sweeping | None](), measure.scoring.nll_of_windows
    monkeypatch.setattr(measure.scoring, "nll_of_windows", lambda *given: rooms.append(given[-1]) or window_nll(*given))
    run += ["--methods", "slicegpt,flap", "--ratio", "0.3", "--save-models", "--save-dtype", "bfloat16"]
    for in_files in (False, True):
        monkeypatch.setattr(job, "needs_of", lambda *_, answer=in_files, **__: MemoryNeeds(0, 0, answer))
        assert main([*run, "--out", str(tmp_path / str(in_files))]) == 0
        found.append(load_run(tmp_path / str(in_files)))
        assert len(keeps) == 3
    assert rooms[:3] == [None] * 3
    assert [sweeping.room for sweeping in rooms[3:]] == [memory_needs.STATES] * 3
    for one, other in zip(*found, strict=True):
        assert (one.status, one.decisions) == (other.status, other.decisions)
        assert other.measured.weights_in == "files"
        assert one.measured.weights_in is None
        measured = [to_plain(each.measured) for each in (one, other)]
        same = [{name: each[name] for name in each if name not in OTHERWISE} for each in measured]
        checks = [each["checks"] for each in measured]
        generated = {name for name in checks[0] if name not in DIVERGENCE}
        assert generated == {"copying", "counting", "repetition", "distinct_1", "distinct_2"}
        assert {"kl", "agreement"} <= checks[1].keys() or one.cell.method == "dense"
        same[0]["checks"] = {name: checks[0][name] for name in checks[0].keys() - generated}
        assert same[0]["samples"].pop(CONTINUATIONS)["rows"] > 0
        assert same[0] == same[1]
        assert all(peak.anonymous_bytes > 0 for peak in other.measured.peak_memory.values())
    assert not list(tmp_path.glob("*/.run-*"))


def test_weights_that_change_while_they_are_read_make_an_error(base, model_folder, tmp_path, monkeypatch):
    """Since pages of a file that is mapped are read when they are used."""
    copied = shutil.copytree(model_folder, tmp_path / "model")
    (weights,) = copied.glob("*.safetensors")
    run = [str(copied) if word == str(model_folder) else word for word in base[:-4]]
    monkeypatch.setattr(job, "needs_of", lambda *_, **__: MemoryNeeds(0, 0, in_files=True))
    whole = measure._perplexity

    def later(*given):
        whole(*given)
        weights.write_bytes(weights.read_bytes()[::-1])

    monkeypatch.setattr(measure, "_perplexity", later)
    run += ["--methods", "dense", "--speed-rounds", "0", "--no-checks", "--no-isolate", "--out", str(tmp_path / "run")]
    assert main(run) == 3
    (record,) = load_run(tmp_path / "run")
    assert record.status == "error"
    assert "weight files have changed while they were read" in record.error


def test_what_needs_more_than_it_may_take_is_refused_before_any_work(base, tmp_path, capsys):
    assert main([*base, "--methods", "laco", "--ratio", "0.3", "--memory", "0.5"]) == 2
    assert "with its weights in files, and may take 0.5 GiB; leave it out" in capsys.readouterr().err
    assert main([*base, "--methods", "laco", "--ratio", "0.3", "--memory", "none"]) == 2
    assert capsys.readouterr().err.strip() == "prunebench: --memory is auto or GiB; got 'none'"
    assert not list(tmp_path.glob("**/cells/*.json"))


def test_a_plan_says_whose_weights_lie_in_files(base, monkeypatch, capsys):
    asked = [*base, "--methods", "laco", "--ratio", "0.3", "--plan", "--memory", "0.7501"]
    monkeypatch.setattr(memory_needs.Footprint, "_in_files", lambda *_: MemoryNeeds(0, 2**29, in_files=True))
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert shown.count("0.5 GiB + files") == 2
    assert "would take more than --memory" in shown


def test_a_plan_says_what_is_timed_alone_and_takes_half_as_long(base, monkeypatch, capsys):
    asked = [*base[:-2], "--speed-rounds", "6", "--methods", "laco", "--ratio", "0.3", "--plan"]
    shown = list[list[str]]()
    for alone in (False, True):
        needs = MemoryNeeds(0, 2**29, in_files=True, alone=alone)
        monkeypatch.setattr(memory_needs.Footprint, "place", lambda *_, needs=needs: needs)
        monkeypatch.setattr(Estimator, "estimate", lambda *_: Estimate({"load": 2.0, "speed": 20.0}, "measured"))
        assert main(asked) == 0
        lines = capsys.readouterr().out.splitlines()
        shown.append([next(line for line in lines if line.startswith(name)) for name in ("dense", "laco")])
    beside, pruned_alone = shown
    assert all("22 s" in line and "20 s" in line and line.count("+ files") == 1 for line in beside)
    assert "not timed" in pruned_alone[0] and "20 s" not in pruned_alone[0]
    assert "+ files, alone" in pruned_alone[1] and "12 s" in pruned_alone[1] and "10 s" in pruned_alone[1]
