"""Records of earlier versions get the intervals of windows in a row, and others keep theirs."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from made_runs import cell, nats

from bench.records import run_folder, windows
from bench.stats.clusters import ratio_interval

NLL = nats(3)
ENTRY = {"perplexity": float(math.exp(NLL.sum() / NLL.size / 511)), "sha256": "a" * 64, "windows": len(NLL)}
ENTRY |= {"tokens": 511 * len(NLL), "window": 512, "stride": 512, "bos": "none"}
NARROW = {"perplexity_low": 19.0, "perplexity_high": 21.0}


@pytest.fixture
def run(tmp_path):
    def made(entry, checks=None, *, samples=True):
        figures = {"perplexity": {"wiki": entry}} | ({"checks": checks} if checks else {})
        cell(tmp_path, "laco", 0.2, measured=figures)
        (path,) = (tmp_path / "cells").glob("*.json")
        folder = tmp_path / "samples" / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        if samples:
            pd.DataFrame({"nll": NLL, "tokens": [511] * len(NLL)}).to_parquet(folder / "perplexity-wiki.parquet")
        before = path.read_bytes()
        (record,) = run_folder.load_run(tmp_path)
        assert path.read_bytes() == before
        return record.measured

    return made


def test_an_earlier_interval_is_that_of_neighbours(run):
    found = run(ENTRY | NARROW)["perplexity"]["wiki"]
    low, high = ratio_interval(NLL.tolist(), [511] * len(NLL), in_a_row=True)
    assert (found["perplexity_low"], found["perplexity_high"]) == pytest.approx((math.exp(low), math.exp(high)))
    assert (found["perplexity"], windows.in_a_row(found)) == (ENTRY["perplexity"], True)


def test_without_samples_an_earlier_version_has_no_interval(run):
    assert run(ENTRY | NARROW, samples=False)["perplexity"]["wiki"] == ENTRY


@pytest.mark.parametrize("drawn", [True, False])
def test_an_interval_that_knows_its_windows_stays(run, drawn):
    entry = ENTRY | NARROW | {"drawn": drawn}
    found = run(entry)["perplexity"]["wiki"]
    assert found == entry
    assert windows.in_a_row(found) is not drawn


@pytest.mark.parametrize("drawn", [True, False])
def test_of_a_divergence_only_an_earlier_interval_goes(run, drawn):
    kl = {"kl": 0.5, "kl_low": 0.4, "kl_high": 0.6, "agreement": 0.7}
    assert run(ENTRY, kl)["checks"] == {"kl": 0.5, "agreement": 0.7}
    assert run(ENTRY, kl | {"drawn": drawn})["checks"] == kl | {"drawn": drawn}


@pytest.mark.parametrize("nll", [[800.0], [800.0, math.inf], [800.0, math.nan], [4e5, 9e5]])
def test_windows_without_a_finite_interval_have_none(nll):
    assert windows.with_interval(ENTRY | NARROW, nll, [511] * len(nll)) == ENTRY
