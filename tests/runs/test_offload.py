"""A run whose states wait in files of a folder measures what one in memory does, and leaves the folder empty."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_cells import made_cell

from bench.cli.main import main
from bench.plan.protocol import protocol_of_profile
from bench.plan.run_spec import RunSpec
from bench.records.run_folder import load_run
from bench.schedule import memory_needs
from bench.system import memory
from methods.errors import UserError
from methods.model import layer_store

OTHERWISE = ("seconds", "prune_seconds", "search_seconds", "peak_memory", "states_in")


@pytest.fixture
def run(base):
    """A short run in this process, without its methods and its folder."""
    return [*base[:-4], "--speed-rounds", "0", "--no-isolate", "--ratio", "0.3"]


def test_a_run_with_a_folder_for_states_measures_what_one_without_does(run, tmp_path, monkeypatch):
    folder, folders, found = tmp_path / "states", set[Path](), []
    folder.mkdir()
    put = layer_store.put_to_wait
    monkeypatch.setattr(layer_store, "put_to_wait", lambda x, place: folders.add(place) or put(x, place))
    for name, more in {"in memory": [], "in files": ["--offload", str(folder)]}.items():
        assert main([*run, "--methods", "obs,shortgpt+ghost", *more, "--out", str(tmp_path / name)]) == 0
        found.append(load_run(tmp_path / name))
        assert len(folders) == (2 if more else 0)  # one for each pruned cell
    assert {place.parent for place in folders} == {folder}
    for one, other in zip(*found, strict=True):
        assert (one.status, one.decisions) == (other.status, other.decisions)
        same = [
            {name: value for name, value in vars(each.measured).items() if name not in OTHERWISE}
            for each in (one, other)
        ]
        assert same[0] == same[1]
        assert one.measured.states_in is None
        assert other.measured.states_in == (None if other.cell.method == "dense" else "files")
    assert list(folder.iterdir()) == []


def test_a_full_folder_is_the_outcome_of_a_cell_in_a_line(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layer_store, "write_to_file", full)
    folder = tmp_path / "states"
    folder.mkdir()
    asked = [*run, "--methods", "shortgpt,drop-tail", "--offload", str(folder), "--out", str(tmp_path / "run")]
    assert main(asked) == 3
    (failed,) = (one for one in load_run(tmp_path / "run") if one.status != "ok")
    assert failed.cell.method == "shortgpt"
    assert failed.status == "error"
    said = "the folder of --offload takes no more states: No space left on device; name a larger one"
    assert failed.error == said
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"takes no files: Permission denied; name another folder$"):
        memory.check_offload(tmp_path)
    tmp_path.chmod(0o700)


def test_what_cannot_hold_states_is_refused_before_any_work(run, tmp_path, monkeypatch, capsys):
    file, out = tmp_path / "file", ["--methods", "shortgpt", "--out", str(tmp_path / "run")]
    file.touch()
    for more in ([], ["--plan"]):
        assert main([*run, *out, "--offload", str(file), *more]) == 2
        assert capsys.readouterr().err == (
            f"prunebench: --offload {file} is no folder; name one on a disk that has room for states\n"
        )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    assert main([*run, *out, "--offload", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "states of shortgpt at 0.3 take about 0.0 GiB of --offload" in said
    assert said.endswith("which has 0.0 GiB left; name another folder, or give less calibration")
    assert not list(tmp_path.glob("**/cells/*.json"))
    assert main([*run, *out, "--offload", str(tmp_path), "--plan"]) == 0
    shown, remarks = capsys.readouterr()
    assert "offloaded" in shown
    assert "which has 0.0 GiB left; name another folder" in remarks


def test_ratios_of_one_method_take_room_beside_each_other(tmp_path, monkeypatch):
    cells = [made_cell("shortgpt", ratio, protocol_of_profile("quick")) for ratio in (0.2, 0.4)]
    monkeypatch.setattr(memory_needs, "footprint_of", lambda cell, offload: SimpleNamespace(offloaded=lambda cell: 70))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    assert list(memory_needs.find_full_folder(cells, tmp_path, slots=1)) == []
    (misfit,) = memory_needs.find_full_folder(cells, tmp_path, slots=2)
    assert misfit.is_sure
    assert misfit.words.startswith("states of shortgpt at 0.2 and shortgpt at 0.4 take")


def test_what_a_killed_cell_has_left_goes_when_it_begins_again(tmp_path):
    with memory.make_folder_of_cell(tmp_path, tmp_path / "run", "key") as place:
        pass
    other = tmp_path / f"{memory.STATES}of another"
    for left in (place, other):
        left.mkdir()
        (left / "states-1").touch()
    with memory.make_folder_of_cell(tmp_path, tmp_path / "run", "key") as again:
        assert again == place
        assert list(again.iterdir()) == []
        with memory.make_folder_of_cell(tmp_path, tmp_path / "run", "another") as beside:
            assert beside != again
    assert list(tmp_path.iterdir()) == [other]  # of which this run knows nothing


def test_the_folder_goes_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), memory.make_folder_of_cell(tmp_path, tmp_path, "key") as place:
        (place / "states-1").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_other_machines_need_the_whole_path():
    with pytest.raises(UserError, match=r"of the machines that measure; give the whole path, not states$"):
        RunSpec("shortgpt", ratios=[0.2], engine="slurm", device="cpu", offload=Path("states"))
