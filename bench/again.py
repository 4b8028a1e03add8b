"""A second measurement of a cell, from its record: what makes a suspected regression a regression."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import chain, evidence, lookup
from bench.errors import UserError
from bench.evidence import Evidence
from bench.recipe import Recipe
from bench.record import Record
from bench.spec import Cell, Protocol, Stage


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
        cell = cell_of(record)
        runner.run([*chain.ancestors(cell), cell], folder)
    except (UserError, OSError) as error:
        raise UserError(
            f"{name} looks worse and cannot be measured again here: {error}; --no-confirm judges without"
        ) from None
    return evidence.of_run(folder)[name]


def cell_of(record: Record) -> Cell:
    """The cell that a record was made from; what it depended on is found out anew when it runs."""
    plain = record.cell
    protocol = Protocol(**{name: _tuples(value) for name, value in _known(Protocol, plain["protocol"]).items()})
    earlier = tuple(Stage(**_stage(stage)) for stage in plain.get("earlier", ()))
    return Cell(**_known(Cell, plain) | _stage(plain) | {"protocol": protocol, "earlier": earlier, "inputs": {}})


def _stage(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What a cell and what came before it have in common."""
    healing = plain.get("healing")
    recipe = Recipe(**_known(Recipe, healing)) if healing else None
    return _known(Stage, plain) | {"given": tuple(plain.get("given", ())), "healing": recipe}


def _known(kind: Any, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the names of a dataclass's fields."""
    return {field.name: plain[field.name] for field in dataclasses.fields(kind) if field.name in plain}


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
