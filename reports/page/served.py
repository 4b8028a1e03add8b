"""The data of the explorer for models in an inference engine: a setup for each group of models that were served alike.

served records -> the table of the view served -> columns and rows as the script draws them

The dense model in another type of weights is a row of its own: a control beside which pruned models stand. No pair is
tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.plan.cell import words_of_ratio
from bench.records.served import ServedRecord, group_alike
from reports.page.values import value_of_cell
from reports.tables.speed import tables_of_served
from reports.tables.table import Table
from reports.text import to_printable

SEVERAL = "several ratios"  # names an amount of models at several, whose labels have them
COLUMNS: dict[str, dict[str, Any]] = {  # of the table: what the script has to know beside the heading
    "perplexity": {
        "title": "perplexity in the engine",
        "meaning": "on the windows that the engine scored",
        "better": "lower",
        "kind": "quality",
        "log": True,
    },
    "times": {
        "title": "relative perplexity",
        "meaning": "that in the engine over the dense model's, paired, on the same windows",
        "better": "lower",
        "kind": "quality",
        "log": True,
    },
    "bytes": {
        "title": "bytes of the weights",
        "meaning": "of the files that the engine reads",
        "better": "lower",
        "kind": "size",
    },
    "decode": {
        "title": "generating, times as fast as the dense model",
        "heading": "generates, times as fast",
        "meaning": "both in one process, in turns",
        "better": "higher",
        "kind": "speed",
    },
    "prefill": {
        "title": "reading a prompt, times as fast as the dense model",
        "heading": "reads, times as fast",
        "meaning": "both in one process, in turns",
        "better": "higher",
        "kind": "speed",
    },
    "decode_rate": {"title": "tokens generated per second", "meaning": "", "better": "higher", "kind": "speed"},
    "prefill_rate": {"title": "tokens of a prompt per second", "meaning": "", "better": "higher", "kind": "speed"},
    "memory": {
        "title": "memory of the engine",
        "meaning": "of its process, above what it had before the model was read",
        "better": "lower",
        "kind": "size",
    },
    "ratio": {"title": "parameters removed", "meaning": "of all", "better": "", "kind": "size"},
}
USUAL: dict[str, Any] = {"unit": "", "axis": "", "scale": 1, "log": False}
IN_PERCENT = {"unit": "%", "axis": "%", "scale": 100}


def columns_of_served(records: Sequence[ServedRecord]) -> list[dict[str, Any]]:
    """Return the columns that models in an engine have, by the names `served_...`; none without such models."""
    tables = _tables(records)
    label_by_name = {column.name: column.label for table in reversed(tables) for column in table.columns}
    return [
        {
            "heading": label_by_name[name],
            **USUAL,
            **(IN_PERCENT if name == "ratio" else {}),
            **facts,
            "name": _own(name),
        }
        for name, facts in COLUMNS.items()
        if name in label_by_name
    ]


def setups_of_served(records: Sequence[ServedRecord]) -> list[dict[str, Any]]:
    """Return a setup for each group of models that were served alike."""
    groups = [several for several in group_alike(records) if "load" not in several[0].protocol]
    tables = _tables(records)
    engines = [f"{several[0].model['name']} in {several[0].protocol['engine']}" for several in groups]
    setups = list[dict[str, Any]]()
    for several, table, engine in zip(groups, tables, engines, strict=True):
        name = engine if engines.count(engine) == 1 else ", ".join([engine, *table.conditions])
        again = sum(setup["name"].split(" #")[0] == name for setup in setups)
        setups.append(
            {
                "name": f"{name} #{again + 1}" if again else name,
                "conditions": list(table.conditions),
                "protocol": [],
                "notes": [],
                "amounts": [_amount(several, table)],
                "prompts": [],
            }
        )
    return setups


def _tables(records: Sequence[ServedRecord]) -> list[Table]:
    return [table for table in tables_of_served(records) if table.name == "served"]


def _own(name: str) -> str:
    return f"served_{name}"


def _amount(records: Sequence[ServedRecord], table: Table) -> dict[str, Any]:
    ratios = {words_of_ratio(record.model["requested_ratio"], record.model["ratio_of"]) for record in records} - {""}
    return {
        "name": SEVERAL if len(ratios) > 1 else "".join(ratios) or "fixed by parameters",
        "title": table.title,
        "rows": [_row(record, table, place) for place, record in enumerate(records)],
        "ties": {},
        "verdicts": {},
        "sides": [],
        "notes": list(table.notes),
        "reading": list(table.footnotes),
    }


def _row(record: ServedRecord, table: Table, place: int) -> dict[str, Any]:
    row = table.rows[place]
    is_control = record.model["method"] == "dense" and not record.is_base
    cells = dict(zip((column.name for column in table.columns), row.cells, strict=True)) if not row.failure else {}
    return {
        "label": to_printable(row.label),
        "method": row.label if is_control else row.method,
        "failure": row.failure or "",
        "little": False,
        "missed": False,
        "removed": "",
        "values": {_own(name): value_of_cell(cells[name]) for name in COLUMNS if name in cells},
    }
