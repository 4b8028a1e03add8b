"""Makes a cell again from its record: measured a second time to confirm a regression, or only pruned for an export.

A record may come from somebody else. Nothing that it names is opened before the user's own flags allow it
(bench.plan.trust).
"""

from __future__ import annotations

import dataclasses
import gc
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import methods
from bench.data import pretrained, texts
from bench.plan.cell import Cell
from bench.plan.trust import Trust
from bench.records import comparability, run_folder
from bench.records.comparability import identity_of_cell, name_of_identity
from bench.records.record import Record
from bench.regression.results import CellResults, results_of_run
from bench.runs import inputs
from bench.runs.calibration import WRITTEN_HERE, draw_calibration
from bench.runs.saving import PROBE_TOKENS, facts_of_card
from methods import decisions
from methods.compensation.base import CompensatedPruner
from methods.errors import UserError
from methods.model import structures
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import parameters


def find_measurable_cells(run: Path, names: Iterable[str], trust: Trust) -> dict[str, tuple[str, Record]]:
    """Return key and record of the cells `names` of a run folder, which the user lets be measured again.

    Raises UserError for the first that cannot be.
    """
    records = run_folder.read_records(run, run_folder.ignore_warning)
    every = {comparability.name_of_identity(comparability.identity_of_cell(r)): (key, r) for key, r in records.items()}
    chosen = {name: every[name] for name in names}
    for name, (_, record) in chosen.items():
        with _name_cell_in_errors(name):
            trust.refuse(record.cell, measured=True)
            cell = cell_of(record)
            pretrained.check(cell.model, cell.trust_remote_code)
            texts.check_calibrations([cell.protocol.calibration])
            for text in cell.protocol.texts:
                texts.check_text(text)
    return chosen


def measure_again(run: Path, name: str, key: str, record: Record) -> CellResults:
    """Prune and measure a cell of `find_measurable_cells` again, as its record says, into a folder below RUN/again.

    That folder is named after the cell and the time of its record, so that a measurement is repeated once and not with
    every gate. Raises UserError where that is not possible here.
    """
    from bench.runs import runner

    folder = run / "again" / f"{key}-{re.sub(r'[^0-9]', '', str(record.environment.get('date', '')))[:14]}"
    threads = record.environment.get("threads")
    if record.cell.device == "cpu" and threads:
        torch.set_num_threads(threads)
    with _name_cell_in_errors(name):
        cell = cell_of(record)
        *_, again = runner.run([*cell.ancestors, cell], folder)
    return results_of_run(folder)[name_of_identity(identity_of_cell(again))]


@contextmanager
def _name_cell_in_errors(name: str) -> Iterator[None]:
    """Name the cell in every error that keeps it from being measured again."""
    try:
        yield
    except (UserError, OSError) as error:
        raise UserError(
            f"{name} looks worse and cannot be measured again here: {error}; --no-confirm judges without"
        ) from None


def cell_of(record: Record) -> Cell:
    """Return the cell of a record without its inputs, which are computed anew when it runs."""
    record.cell.refuse_unmeasurable()
    return dataclasses.replace(record.cell, inputs=None)


@dataclasses.dataclass(frozen=True)
class PrunedModel:
    """Holds a cell's model in memory, with its tokenizer and what its card says (bench.runs.saving.facts_of_card).

    `probe` are the tokens on which the cost of rounding is measured; None for those of methods.checkpoint.save_load.
    """

    model: Decoder
    tokenizer: Any
    facts: dict[str, Any]
    probe: torch.Tensor | None


def refuse_trained(record: Record) -> None:
    """Raise UserError for a record whose model no decisions make again."""
    cell = record.cell
    if cell.healing or cell.earlier:
        how = "`run --save-models --save-dtype float32` keeps its model whole"
        how = how if record.measured.saved else "`run --save-models` keeps its model"
        raise UserError(f"{cell.label} was trained or goes on from another cell, and is not made again; {how}")


def prune_again(record: Record, device: str, trust: Trust) -> PrunedModel:
    """Make a record's model again without measuring it, from its decisions.

    The removals that the record names are cut. That is the model where its sha256 says so, and then the record may be
    of another machine. Otherwise the method prunes again, with the record's order of removals, and does what no list of
    removals holds: a fit (a compensation, LaCo, laco-ls, FLAP), a rotation, factors, a layer that is trained, and what
    tyr and laco-puzzle search behind their first decisions. Another machine may decide otherwise there; other layers or
    units are refused. Raises UserError where weights, tokens or decisions are no longer the same, for a cell that was
    trained or goes on from another cell, and for what `trust` does not let the record name.
    """
    cell, measured, protocol = record.cell, record.measured, record.cell.protocol
    own_code = cell.trust_remote_code
    refuse_trained(record)
    trust.refuse(record.cell)
    pretrained.check(cell.model, own_code)
    if pretrained.sha256_of_weights(cell.model) != measured.weights_sha256:
        raise UserError(f"{cell.model} is not the model of the record: the sha256 of its weights differs")
    texts.check_calibrations([protocol.calibration])
    on = pretrained.resolve_device(cell.device if device == "auto" else device)
    tokenizer = pretrained.load_tokenizer(cell.model, own_code)
    block = draw_calibration(cell, tokenizer, WRITTEN_HERE)
    if block.sha256 != record.decisions["calibration"]["sha256"]:
        raise UserError(f"the calibration tokens are not those of the record: {protocol.calibration} has changed")

    def dense() -> Decoder:
        gc.collect()  # what has been cut in vain, since models refer to themselves
        return Decoder(pretrained.load(cell.model, on, getattr(torch, cell.dtype), own_code)[0])

    model = _cut(dense, record)
    if model is None:
        states = measured.calibration_memory_mib or protocol.calibration_memory_mib
        model = dense()
        _prune(
            model,
            record,
            dataclasses.replace(block, memory=states * 2**20, order=removals_of_decisions(record.decisions)),
        )
    return PrunedModel(model, tokenizer, facts_of_card(cell, record.decisions, measured), block.ids[:1, :PROBE_TOKENS])


def _cut(dense: Callable[[], Decoder], record: Record) -> Decoder | None:
    """Return the dense model without the record's removals, where that equals its model to the last bit; else None."""
    if "compensation" in record.decisions or not any(_cuts_of_decisions(record.decisions).values()):
        return None
    model = dense()
    _cut_what_is_named(model, record.decisions)
    same = parameters(model) == record.measured.parameters
    return model if same and inputs.sha256_of_state(model.model) == record.measured.pruned_sha256 else None


def _prune(model: Decoder, record: Record, block: Calibration) -> None:
    """Prune as the record says. Raises UserError where the method is another version, or other units are removed."""
    cell, measured = record.cell, record.measured
    if cell.method == "dense":
        return
    torch.manual_seed(cell.seed)
    try:
        pruner = methods.make(cell.method, cell.parameters)
    except ValueError as error:
        raise UserError(f"the record of {cell.label} is of another version of the method: {error}") from None
    if isinstance(pruner, CompensatedPruner) and pruner.pruner.only_cuts:
        pruner = dataclasses.replace(pruner, pruner=RecordedRemovals(record.decisions))
    ratio = measured.budget.ratio if measured.budget is not None else (measured.ratio_budget or 0.0)
    decided = decisions.prune(pruner, model, block, ratio)
    if _cuts_of_decisions(decided) != _cuts_of_decisions(record.decisions) or parameters(model) != measured.parameters:
        where = record.environment.get("gpu") or record.environment.get("cpu", "another machine")
        raise UserError(f"{cell.label} does not remove here what it removed for the record, on {where}")


@dataclasses.dataclass(frozen=True)
class RecordedRemovals(methods.Pruner):
    """Is a pruner that makes the removals of a record."""

    decisions: Mapping[str, Any]

    name = "recorded"
    takes_ratio = False

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return an empty plan: the decisions are known."""
        return {}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Cut what the decisions name, and return them without the removed units."""
        _cut_what_is_named(model, self.decisions)
        return {name: what for name, what in self.decisions.items() if name not in decisions.UNITS}  # counts may be old


def _cut_what_is_named(model: Decoder, decided: Mapping[str, Any]) -> None:
    """Make the removals of a record, in place. Raises UserError where the model has no such layers or units."""
    if wrong := decisions.misfit_of_decisions(decided, model):
        raise UserError(f"the record names removals that its model cannot have had: {wrong}; run the cell again")
    structures.cut(model, decided)


def _cuts_of_decisions(decisions: Mapping[str, Any]) -> dict[str, Any]:
    return {name: units for name, units in decisions.items() if name.startswith("removed_")}


def removals_of_decisions(decisions: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the removals of a record as methods take them (Calibration.order)."""
    if "trace" in decisions:
        return tuple(f"window {step['pointer']}" for step in decisions["trace"] if step["accepted"])
    units = (
        f"{kind} {layer} {'+'.join(map(str, removed))}"
        for kind in ("kv_heads", "channels")
        for layer, removed in enumerate(decisions.get(f"removed_{kind}", []))
        if removed
    )
    return tuple(decisions.get("removal_order") or units)
