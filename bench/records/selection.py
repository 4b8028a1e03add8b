"""Selects cells of runs by method, ratio and model, as `report --methods laco --ratio 0.3` does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.plan.fields import hint_of_similar_name
from bench.records.record import Record, name_of_model
from methods.errors import UserError


@dataclass(frozen=True)
class Selection:
    """Says which cells are reported. What is empty selects all; the dense model goes with any method and ratio.

    methods  labels, as in 'laco:C=3', or names of methods, which stand for all their labels
    ratios   requested ratios; a method that has none, such as drop:layers=3, is not selected by them
    models   names of models, as tables have them or as runs were given them
    """

    methods: Sequence[str] = ()
    ratios: Sequence[float] = ()
    models: Sequence[str] = ()

    def selects(self, record: Record) -> bool:
        """Say whether a record is selected."""
        cell = record.cell
        if self.models and not {name_of_model(record), cell.model} & set(self.models):
            return False
        if cell.method == "dense":
            return True
        if self.methods and not {cell.label, cell.method} & set(self.methods):
            return False
        return not self.ratios or any(_is_close(cell.ratio, ratio) for ratio in self.ratios)

    def refuse_unknown(self, records: Sequence[Record]) -> None:
        """Raise UserError for a method, ratio or model that no record has."""
        cells = [record.cell for record in records]
        labels = list(dict.fromkeys(cell.label for cell in cells))
        for name in self.methods:
            _refuse("method", name, [*labels, *(cell.method for cell in cells)], labels)
        for ratio in self.ratios:
            if not any(_is_close(cell.ratio, ratio) for cell in cells):
                ratios = sorted({cell.ratio for cell in cells if cell.ratio is not None})
                raise UserError(f"no cell has the ratio {ratio:g}; there are {_join(map('{:g}'.format, ratios))}")
        names = list(dict.fromkeys(map(name_of_model, records)))
        for name in self.models:
            _refuse("model", name, [*names, *(cell.model for cell in cells)], names)


EVERY = Selection()


def _is_close(ratio: float | None, selected: float) -> bool:
    return ratio is not None and math.isclose(ratio, selected, abs_tol=1e-9)


def _refuse(kind: str, name: str, names: Sequence[str], labels: Sequence[str]) -> None:
    if name not in names:
        hint = hint_of_similar_name(name, names) or f"; there are {_join(labels)}"
        raise UserError(f"no cell is of the {kind} {name!r}{hint}")


def _join(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"
