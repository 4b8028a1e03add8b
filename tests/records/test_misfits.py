"""A fit that does not hold on calibration sequences that it has not seen is flagged, and said under every table."""

from __future__ import annotations

import copy

import pytest
from calibrations import calibration
from conftest import tiny
from made_records import DENSE, LACO

import methods
from bench.records.frame import find_misfits, fits_of_record, frame_of_records
from bench.records.record import Record
from methods.model.decoder import Decoder
from reports.report import to_terminal

CUT = {"behind_layer": 3, "removed": ["layer 4", "layer 5"]}


def fitted(**errors: object) -> Record:
    record = copy.deepcopy(LACO)
    record.decisions["compensation"] = {"name": "ghost", "added_parameters": 0, "cuts": [CUT | errors]}
    return record


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ({"error_after": 0.1, "error_held_out": 0.19}, []),
        ({"error_after": 0.1, "error_held_out": 0.21}, [("for layer 4, layer 5", "tokens", 0.1, 0.21)]),
        ({"error_after": 0.001, "error_held_out": 0.009}, []),
        ({"error_after": 0.1}, []),
        (
            {"error_after": 0.1, "error_held_out": 0.1, "sinks": {"error_after": 0.2, "error_held_out": 0.9}},
            [("for layer 4, layer 5", "attention sinks", 0.2, 0.9)],
        ),
    ],
)
def test_far_above_is_twice_and_more_than_a_trifle(errors, expected):
    record = fitted(**errors)
    assert list(find_misfits(record)) == expected
    (row,) = (one for one in frame_of_records([DENSE, record]).to_dict("records") if one["method"] == "laco")
    assert ("misfit" in str(row["flags"])) == bool(expected)
    said = " ".join(to_terminal([DENSE, record]).split())
    assert ("misfit: A fit does not hold on calibration sequences that it has not seen" in said) == bool(expected)
    if expected:
        (where, tokens, after, held_out) = expected[0]
        assert f"[{held_out:g} of the squared states of {tokens} {where}, {after:g} where it was fitted]" in said


@pytest.mark.parametrize("report", ["cuts", "refitted"])
def test_windows_are_looked_at_beside_a_compensation(report):
    """laco-ls+ghost and laco-puzzle fit both."""
    record = fitted(error_after=0.1, error_held_out=0.1)
    held = record.decisions["compensation"].pop("cuts")
    record.decisions["compensation"][report] = held
    record.decisions["errors"] = [{"window": [2, 5], "error_after": 0.1, "error_held_out": 0.5}]
    assert [one.get("window") for one in fits_of_record(record)] == [[2, 5], None]
    assert list(find_misfits(record)) == [("for layers 2 to 5", "tokens", 0.1, 0.5)]


@pytest.mark.parametrize("pair", ["drop+ghost", "drop+replaceme", "flap+refit", "laco-ls"])
def test_a_fit_of_few_tokens_without_a_penalty_is_found_out(pair):
    """92 tokens determine a map of 32 channels badly, and 48 or so one of an MLP's worse; the penalty makes it hold."""
    mending = pair.partition("+")[2]
    given = {"layers": "1-4"} if pair.startswith("drop") else {}
    found = []
    for ridge in ("1e-6", "100"):
        ridges = {f"{mending}.ridge" if mending else "ridge": ridge}
        model = Decoder(tiny("llama"))
        record = copy.deepcopy(LACO)
        decided = methods.make(pair, given | ridges).prune(model, calibration(), 0.0 if given else 0.3)
        record.decisions.clear()
        record.decisions.update(decided)
        assert fits_of_record(record)
        found.append(len(list(find_misfits(record))))
    assert found[0] > found[1]
