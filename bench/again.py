"""A second measurement of a cell, from its record: what makes a suspected regression a regression."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import evidence, lookup
from bench.errors import UserError
from bench.evidence import Evidence
from bench.record import Record
from bench.spec import Cell, Protocol


def measure(run: Path, name: str) -> Evidence:
    """Prune and measure the cell `name` of `run` again, as its record says, into a folder below RUN/again.

    The folder is named after the cell and the time of its record, so that a measurement is repeated once and not with
    every gate. Raises UserError where that is not possible here.
    """
    import torch

    from bench import runner

    found = {evidence.name_of(evidence.identity(r)): (key, r) for key, r in lookup.records(run).items()}
    key, record = found[name]
    folder = run / "again" / f"{key}-{re.sub(r'[^0-9]', '', str(record.environment.get('date', '')))[:14]}"
    threads = record.environment.get("threads")
    if record.cell["device"] == "cpu" and threads:
        torch.set_num_threads(threads)
    try:
        runner.run([cell_of(record)], folder)
    except (UserError, OSError) as error:
        raise UserError(
            f"{name} looks worse and cannot be measured again here: {error}; --no-confirm judges without"
        ) from None
    return evidence.of_run(folder)[name]


def cell_of(record: Record) -> Cell:
    """The cell that a record was made from; what it depended on is found out anew when it runs."""
    plain = record.cell
    protocol = Protocol(
        **{field.name: _tuples(plain["protocol"][field.name]) for field in _known(Protocol, plain["protocol"])}
    )
    rest = {field.name: plain[field.name] for field in _known(Cell, plain) if field.name not in ("protocol", "inputs")}
    return Cell(**{**rest, "given": tuple(plain.get("given", ())), "protocol": protocol})


def _known(kind: Any, plain: Mapping[str, Any]) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(kind) if field.name in plain]


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
