"""Cells that Slurm runs are the cells of a local run, each measured once, whatever happens to the run or to a node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from run_contents import contents

from bench.cli.main import main
from bench.engines import chosen
from bench.engines.slurm import Slurm

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))


def test_a_run_through_slurm_is_the_local_one(base, tmp_path, monkeypatch, capfd):
    asked = [*base, "--ratio", "0.2", "--then", "shortgpt:ratio=0.6", "--threads", "1", "--methods", "shortgpt,sleb"]
    assert main([*asked, "--save-models", "--out", str(tmp_path / "here")]) == 0
    monkeypatch.setattr(chosen, "engine", lambda spec: Slurm(cluster="local", slots=2))
    assert main([*asked, "--save-models", "--out", str(tmp_path / "there")]) == 0
    print(capfd.readouterr().err)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
