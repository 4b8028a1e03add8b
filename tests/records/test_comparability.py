"""The table of conditions: it knows every field, and what it says of a field is what the views of it do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from made_records import with_cell, with_measured

from bench.plan.cell import Inputs
from bench.plan.protocol import Protocol
from bench.records import comparability, run_folder
from bench.records.comparability import BY_PLACE, CONDITIONS, FIGURES, GATE
from bench.records.record import Record, record_from_plain

STUDY = Path(__file__).parents[2] / "docs/results/latency"


@pytest.fixture(scope="module")
def record():
    return run_folder.find_cell(STUDY, "flap--latency-0.8")[1]


PLAIN = {  # of places that hold no single value
    "inputs.texts": {"wiki": "x"},
    "inputs.tasks": {"piqa": {"version": "x", "sha256": "x"}},
    "inputs.timed_on": {"processor": "x", "threads": 1},
    "inputs.scored_by": {"name": "vllm", "version": "0.32.0", "way": "echo"},
    "inputs.healing": {"text_sha256": "x", "revision": "x"},
}


def changed(record: Record, place: str) -> Record:
    """The record with another value at a place of the table, which it may not have had."""
    plain = json.loads(json.dumps(record.plain()))
    part, *inner, name = place.split(".")
    found = {"protocol": plain["cell"]["protocol"], "inputs": plain["cell"]["inputs"], **plain}[part]
    for step in inner:
        found = found.setdefault(step, {})
    found[name] = PLAIN.get(place, "x")
    return record_from_plain(plain)


def test_every_field_of_a_protocol_and_every_input_is_in_the_table(record):
    fields = {f"protocol.{field.name}" for field in dataclasses.fields(Protocol)}
    fields |= {f"inputs.{field.name}" for field in dataclasses.fields(Inputs)}
    assert fields <= BY_PLACE.keys()
    assert len(BY_PLACE) == len(CONDITIONS)


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.place)
def test_each_view_goes_by_its_column(condition, record):
    other = changed(record, condition.place)
    table = set(condition.table.split())
    assert (comparability.setup_of_record(other) != comparability.setup_of_record(record)) == bool(table - {"decision"})
    text = [comparability.setup_of_perplexity(one, "wiki") for one in (record, other)]
    assert (text[0] != text[1]) == ("text" in table)
    search = [comparability.conditions_for(one.cell, "decision") for one in (record, other)]
    assert (search[0] != search[1]) == ("decision" in table)
    before, after = map(comparability.conditions_of_gate, (record, other))
    differing = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert differing == ({condition.name} if condition.gate else set())


def test_another_texts_windows_leave_a_perplexity_alone(record):
    other = changed(record, "inputs.texts.c4")
    assert comparability.setup_of_perplexity(other, "wiki") == comparability.setup_of_perplexity(record, "wiki")
    assert comparability.setup_of_record(other) != comparability.setup_of_record(record)


def test_the_gate_is_never_stricter_about_a_size_than_about_a_task():
    assert set(GATE["size"]) < set(GATE["text"]) < set(GATE["task"])
    assert set(GATE["speed"]) & {"tokenizer", "calibration", "scorer"} == set()
    for condition in CONDITIONS:
        assert set(condition.gate.split()) <= set(FIGURES)
        assert bool(condition.gate) == bool(condition.name)


def test_what_does_not_apply_is_absent(record):
    dense = run_folder.find_cell(STUDY, "dense")[1]
    assert "calibration" in comparability.conditions_of_gate(record)
    assert "calibration" not in comparability.conditions_of_gate(dense)
    untimed = comparability.conditions_of_gate(with_measured(record, speed=None))
    assert {"cpu", "threads"} & untimed.keys() == set()
    assert {"cpu", "threads"} <= comparability.conditions_of_gate(record).keys()


def test_a_study_may_vary_its_calibration_and_nothing_else(record):
    for place in ("protocol.calibration", "protocol.calibration_length", "inputs.calibration_sha256", "cell.seed"):
        assert comparability.setup_of_study(changed(record, place)) == comparability.setup_of_study(record)
    for place in ("protocol.window", "inputs.weights_sha256", "cell.match", "cell.dtype"):
        assert comparability.setup_of_study(changed(record, place)) != comparability.setup_of_study(record)


def test_setups_that_differ_first_in_a_fifth_field_have_headings_of_their_own(record):
    other = record
    for name in ("windows", "window", "stride", "documents"):
        other = changed(other, f"protocol.{name}")
    fifth, sixth = changed(other, "protocol.fewshot"), changed(other, "protocol.decode_steps")
    headings = list(comparability.differences_of_setups([record, other, fifth, sixth]).values())
    assert len(set(headings)) == 4
    assert max(map(len, headings)) == 6
    assert {len(heading) for heading in comparability.differences_of_setups([record, fifth]).values()} == {
        comparability.MOST
    }


def test_two_models_of_one_name_have_headings_of_their_own(record):
    ones = [with_cell(record, model=f"/runs/{name}/model") for name in "ab"]
    assert list(comparability.differences_of_setups(ones).values()) == [("model a/model",), ("model b/model",)]
    named = dataclasses.replace(ones[1], display_name="Other")
    assert set(comparability.differences_of_setups([ones[0], named]).values()) == {()}
