"""Makes a cell again from its record: measured a second time to confirm a regression, or only pruned for an export."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch

import methods
from bench.data import pretrained, texts
from bench.plan import chain
from bench.plan.cell import Cell, from_plain
from bench.records import comparability, run_folder
from bench.records.comparability import identity, name_of
from bench.records.record import Record
from bench.regression import cell_results
from bench.regression.cell_results import CellResults
from bench.run import fingerprint
from bench.run.saving import PROBE_TOKENS, facts
from methods.errors import UserError
from methods.model.decoder import Decoder
from methods.model.sizes import parameters


def measure(run: Path, name: str) -> CellResults:
    """Prune and measure the cell `name` of a run folder again, as its record says, into a folder below RUN/again.

    That folder is named after the cell and the time of its record, so that a measurement is repeated once and not with
    every gate. Raises UserError where that is not possible here.
    """
    from bench.run import runner

    found = {comparability.name_of(comparability.identity(r)): (key, r) for key, r in run_folder.records(run).items()}
    key, record = found[name]
    folder = run / "again" / f"{key}-{re.sub(r'[^0-9]', '', str(record.environment.get('date', '')))[:14]}"
    threads = record.environment.get("threads")
    if record.cell["device"] == "cpu" and threads:
        torch.set_num_threads(threads)
    try:
        cell = cell_of(record)
        *_, again = runner.run([*chain.ancestors(cell), cell], folder)
    except (UserError, OSError) as error:
        raise UserError(
            f"{name} looks worse and cannot be measured again here: {error}; --no-confirm judges without"
        ) from None
    return cell_results.of_run(folder)[name_of(identity(again))]


def cell_of(record: Record) -> Cell:
    """Return the cell that a record was made from; what its answer stands on is found out anew when it runs."""
    return from_plain(fingerprint.of_today(record.cell) | {"inputs": {}})


@dataclasses.dataclass(frozen=True)
class PrunedModel:
    """Holds a cell's model in memory, with its tokenizer and what its card says (bench.run.saving.facts).

    `probe` are the tokens on which the cost of rounding is measured; None for those of methods.checkpoint.save_load.
    """

    model: Decoder
    tokenizer: Any
    facts: dict[str, Any]
    probe: torch.Tensor | None


def prune_again(record: Record, device: str) -> PrunedModel:
    """Prune again as the record says, without measuring.

    Raises UserError where weights, tokens or decisions are no longer the same, and for a cell that was trained or goes
    on from another cell.
    """
    cell, measured, protocol = fingerprint.of_today(record.cell), record.measured, record.cell["protocol"]
    if "healing" in cell or "earlier" in cell:
        raise UserError(
            f"{cell['label']} was trained or goes on from another cell; `run --save-models` keeps its model"
        )
    pretrained.check(cell["model"], cell["trust_remote_code"])
    if pretrained.weights_sha256(cell["model"]) != measured["weights_sha256"]:
        raise UserError(f"{cell['model']} is not the model of the record: the sha256 of its weights differs")
    texts.check(protocol["calibration"])
    on = pretrained.resolve_device(cell["device"] if device == "auto" else device)
    torch.manual_seed(cell["seed"])
    loaded, tokenizer = pretrained.load(cell["model"], on, getattr(torch, cell["dtype"]), cell["trust_remote_code"])
    sizes = (protocol["calibration_sequences"], protocol["calibration_length"])
    block = texts.calibration(tokenizer, protocol["calibration"], *sizes, cell["seed"])
    if block.sha256 != record.decisions["calibration"]["sha256"]:
        raise UserError(f"the calibration tokens are not those of the record: {protocol['calibration']} has changed")
    states = measured.get("calibration_memory_mib", protocol["calibration_memory_mib"])
    block = dataclasses.replace(block, memory=states * 2**20)
    model = Decoder(loaded)
    decided: dict[str, Any] = {}
    if cell["method"] != "dense":
        pruner = methods.make(cell["method"], cell["parameters"])
        decided = pruner.prune(model, block, measured.get("ratio_budget", 0.0))
    removed = [{k: v for k, v in d.items() if k.startswith("removed_")} for d in (decided, record.decisions)]
    if removed[0] != removed[1] or parameters(model) != measured["parameters"]:
        where = record.environment.get("gpu") or record.environment.get("cpu", "another machine")
        raise UserError(f"{cell['label']} does not remove here what it removed for the record, on {where}")
    return PrunedModel(model, tokenizer, facts(cell, record.decisions, measured), block.ids[:1, :PROBE_TOKENS])
