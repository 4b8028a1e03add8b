"""Turns a record into what a tracker shows: parameters, metrics and the learning curve.

Metrics have the names of the columns of `bench.read` (bench.records.columns), which carry the unit and the task:
perplexity_wiki, answer_bpb_piqa, decode_ms_per_token. Parameters have those names too, and what else was asked for has
dotted names: parameters.C, protocol.window, healing.rank, environment.versions.torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.records.columns import rows
from bench.records.comparability import flat
from bench.records.record import FAILED, Record, named

ASKED = ("requested_ratio", "seed", "draw", "ratio_budget")  # numbers of a row that were asked for and not measured
OTHERS = ("parameters", "ratio_of", "protocol", "healing", "earlier", "given", "trust_remote_code")  # of the cell
CURVE = {  # names of what a point of the learning curve holds
    "tokens": "heal_curve_tokens",
    "loss": "heal_curve_loss_nats_per_token",
    "heldout_loss": "heal_curve_heldout_loss_nats_per_token",
    "heldout_loss_low": "heal_curve_heldout_loss_nats_per_token_low",
    "heldout_loss_high": "heal_curve_heldout_loss_nats_per_token_high",
}


@dataclass(frozen=True)
class TrackerEntry:
    """Holds what a tracker shows of one cell.

    key         of the cell, by which its run is found again
    name        of the run, for readers: 'laco at 0.3'
    group       of runs to which it belongs: the name of the run folder
    date        when the record was made; a record of the same key and another date takes the place of this one
    failed      whether the cell has failed
    parameters  texts, numbers, booleans and lists by name
    metrics     numbers by name
    curve       (step, {name: number}) for each point of the learning curve, in order; empty where there is none
    """

    key: str
    name: str
    group: str
    date: str
    failed: bool
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    curve: Sequence[tuple[int, Mapping[str, float]]]

    @property
    def last_step(self) -> int:
        """Return the step of the metrics, which is behind the learning curve."""
        return self.curve[-1][0] + 1 if self.curve else 0


def entry(key: str, record: Record, dense: Record | None, group: str) -> TrackerEntry:
    """Return what a tracker shows of the record; `dense` is the record beside which its figures stand, if any."""
    row = rows([record] if dense in (None, record) else [record, dense])[0]
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
    asked = {name for name in numbers if name in ASKED or name.endswith("_budget")}
    parameters = {name: value for name, value in row.items() if name not in numbers or name in asked}
    parameters |= flat({name: record.cell[name] for name in OTHERS if record.cell.get(name)})
    parameters |= flat({"environment": record.environment})
    healing = record.measured.get("healing", {})
    return TrackerEntry(
        key=key,
        name=named(record),
        group=group,
        date=str(record.environment.get("date", "")),
        failed=record.status in FAILED,
        parameters={"cell": key, "run_folder": group}
        | {name: value for name, value in parameters.items() if value not in (None, {})},
        metrics={name: value for name, value in numbers.items() if name not in asked},
        curve=[
            (point["step"], {name: point[own] for own, name in CURVE.items() if own in point})
            for point in healing.get("curve", ())
        ],
    )
