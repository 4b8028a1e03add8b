"""Says which cells may be compared, and in which figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bench.records.record import Record

OWN_INPUTS = ("method_sha256", "versions", "healing", "parent")  # inputs in which cells of one table may differ
BESIDE_PERPLEXITY = (  # fields of a protocol on which no perplexity depends
    *("profile", "tasks", "documents", "texts", "fewshot", "task_data", "checks"),
    *("prefill", "decode", "batches", "speed_rounds", "decode_steps", "max_batch", "cache", "pin", "speed_limit"),
)
MOST = 4  # fields that are named where setups differ in many


def conditions_of(record: Record) -> dict[str, Any]:
    """What two cells must share to be compared: model, device, dtype, protocol, and the inputs (bench.run.fingerprint).

    The method's source is its own, and other versions are marked in a table (`other_versions`), not set apart.
    """
    inputs = {name: value for name, value in record.cell.get("inputs", {}).items() if name not in OWN_INPUTS}
    return {name: record.cell[name] for name in ("model", "device", "dtype", "protocol")} | {"inputs": inputs}


def setup(record: Record) -> str:
    """`conditions_of` as one text."""
    return json.dumps(conditions_of(record), sort_keys=True)


def perplexity_setup(record: Record, text: str) -> str:
    """`setup` without what the perplexity of `text` does not depend on: two cells that agree in it share its axis."""
    conditions = conditions_of(record)
    protocol = {name: value for name, value in conditions["protocol"].items() if name not in BESIDE_PERPLEXITY}
    inputs = {name: value for name, value in conditions["inputs"].items() if name not in ("tasks", "timed_on")}
    inputs["texts"] = inputs.get("texts", {}).get(text)
    return json.dumps(conditions | {"protocol": protocol, "inputs": inputs}, sort_keys=True)


def by_setup(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records in groups that can be compared."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(setup(record), []).append(record)
    return groups


def dense_peer(record: Record, peers: Sequence[Record]) -> Record | None:
    """The measured dense cell to compare with, of the same seed where there is one."""
    dense = [peer for peer in peers if peer.cell["method"] == "dense" and peer.status == "ok"]
    same_seed = [peer for peer in dense if peer.cell["seed"] == record.cell["seed"]]
    return next(iter(same_seed or dense), None)


def other_versions(record: Record, dense: Record | None) -> dict[str, tuple[str, str]]:
    """The packages whose version differs from the dense cell's: {name: (here, there)}; empty without a dense cell."""
    here = record.environment.get("versions", {})
    there = dense.environment.get("versions", {}) if dense else {}
    return {name: (here[name], there[name]) for name in here if name in there and here[name] != there[name]}


def apart(records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """For each setup what it has otherwise than the others; model, device, dtype and profile are always said.

    What the inputs have is left out where it tells nothing apart that the rest does not.
    """
    setups = {setup(record): flat(conditions_of(record)) for record in records}
    said = ("model", "device", "dtype", "protocol.profile")
    varying = differing(list(setups.values()))
    asked = [name for name in varying if name.partition(".")[0] != "inputs"]
    if len({json.dumps([fields.get(name) for name in asked]) for fields in setups.values()}) == len(setups):
        varying = asked
    named = [name for name in varying if name not in said][:MOST]
    return {
        key: tuple(f"{name.rpartition('.')[2]} {brief(fields.get(name))}" for name in named)
        for key, fields in setups.items()
    }


def differing(conditions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields in which flat conditions differ; a text or task that only some have is named by the protocol alone."""
    names = dict.fromkeys(name for fields in conditions for name in fields)
    values = {name: [json.dumps(fields.get(name)) for fields in conditions] for name in names}
    return [
        name
        for name in names
        if len(set(values[name])) > 1
        and not (name.startswith(("inputs.texts", "inputs.tasks")) and any(name not in fields for fields in conditions))
    ]


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if isinstance(value, dict) and value:
        return {name: one for key, inner in value.items() for name, one in flat(inner, f"{path}.{key}").items()}
    return {path.lstrip("."): value}


def brief(value: Any) -> str:
    """A value of a condition, not too long for a sentence."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "+".join(value) or "none"
    text = json.dumps(value)
    if len(text) <= 40:
        return text
    return json.dumps(f"{value[:12]}...") if isinstance(value, str) else f"{text[:12]}..."


def draws(records: Sequence[Record]) -> list[list[int]]:
    """The numbers of the records that share a row: measured cells that differ in a random method's seed alone.

    One that was timed comes first.
    """
    rows: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        stages = [*record.cell.get("earlier", ()), record.cell]
        if record.status == "ok" and any(map(_is_draw, stages)):
            *earlier, cell = [
                {**stage, "parameters": {**stage["parameters"], "seed": None}} if _is_draw(stage) else stage
                for stage in stages
            ]
            inputs = {name: value for name, value in cell.get("inputs", {}).items() if name != "parent"}
            rows.setdefault(json.dumps({**cell, "earlier": earlier, "inputs": inputs}, sort_keys=True), []).append(
                number
            )
        else:
            rows[str(number)] = [number]
    return [sorted(numbers, key=lambda n: "speed" not in records[n].measured) for numbers in rows.values()]


def _is_draw(stage: Mapping[str, Any]) -> bool:
    return "draws" in stage["parameters"] and "seed" not in stage.get("given", ())
