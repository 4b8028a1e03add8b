"""Estimates of all shipped cells beside what they took: `python tests/schedule/test_shipped_estimates.py` prints them.

The rate of a run's machine is the one that perplexity had there, since other work ran beside most of these cells: a run
may have had half of the rate of another on the same machine. Shares are held, and no cell alone.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen2Config

from bench.records import run_folder
from bench.records.record import Record
from bench.schedule.estimate import Amounts, Cost, Estimator
from bench.schedule.memory_needs import bytes_of
from bench.schedule.shape import Shape
from bench.system.rates import Rates
from methods.model.decoder import Decoder

RESULTS = Path(__file__).parents[2] / "docs/results"
CONFIGS = {
    "smollm2-135m": LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "gemma3-270m": Gemma3TextConfig(
        hidden_size=640,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        intermediate_size=2048,
        vocab_size=262144,
    ),
    "qwen2.5-coder-0.5b": Qwen2Config(
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
}
EXACT = {"AMD EPYC": 1.6e10, "Intel(R) Xeon(R) Processor": 4e10}  # float64 products of one of their cores per second
BYTES = 2e10
SHORT = 0.3  # seconds below which a stage is not compared

Machine = tuple[str, int, str]  # processor, threads, dtype


@dataclass(frozen=True)
class Compared:
    """One stage of a shipped cell: estimated and measured seconds."""

    run: str
    model: str
    label: str
    stage: str  # "prune sleb" for pruning
    estimated: float
    measured: float

    @property
    def factor(self) -> float:
        return self.estimated / self.measured


@functools.cache
def shape(model: str) -> Shape:
    with torch.device("meta"):
        return Shape.of(Decoder(AutoModelForCausalLM.from_config(CONFIGS[model])))


@functools.cache
def shipped() -> dict[tuple[str, Machine], list[Record]]:
    """The measured records of each run by machine, without those of models that are made by hand."""
    records = defaultdict(list)
    for run in sorted(path.parent for path in RESULTS.glob("*/records.jsonl")):
        for record in run_folder.load_run(run, run_folder.ignore_warning):
            if record.status == "ok" and record.cell.model in CONFIGS:
                where = record.environment
                records[run.name, (where["cpu"], where["threads"], where["dtype"])].append(record)
    return dict(records)


def seconds_of(record: Record) -> dict[str, float]:
    found, prune = dict(record.measured.seconds or {}), record.measured.prune_seconds
    return found | ({} if prune is None else {"prune": prune})


def costs_of(records: list[Record], machine: Machine) -> dict[str, Cost]:
    """Costs of the models of records, at the rate that perplexity had; without models whose perplexity is unknown."""
    processor, threads, dtype = machine
    rates = defaultdict(list)
    for record in records:
        model = record.cell.model
        products = Cost(shape(model), Rates(1.0, 1.0, 1.0), 4).seconds(record.cell, Amounts.of(record))
        if "perplexity" in products:
            rates[model].append(products["perplexity"] / seconds_of(record)["perplexity"])
    exact = EXACT[processor] * threads
    return {
        model: Cost(shape(model), Rates(median(rate), exact, BYTES), bytes_of(dtype)) for model, rate in rates.items()
    }


def compare(*, by_records: bool) -> list[Compared]:
    """Each stage of each cell; with `by_records` estimated from the records of all other runs of the machine."""
    compared = []
    for (run, machine), records in shipped().items():
        costs = costs_of(records, machine)
        estimator = Estimator(costs)
        for (other_run, other_machine), others in shipped().items() if by_records else ():
            if other_run != run and other_machine == machine:
                for record in others:
                    estimator.learn(record)
        for record in records:
            if record.cell.model not in costs:
                continue
            cell, took = record.cell, seconds_of(record)
            for stage, seconds in estimator.estimate(cell, Amounts.of(record)).stages.items():
                if seconds and took.get(stage, 0.0) > SHORT:  # no seconds: its parameters have gone since
                    name = f"prune {cell.method.partition('+')[0]}" if stage == "prune" else stage
                    compared.append(Compared(run, cell.model, cell.label, name, seconds, took[stage]))
    return without_load(compared) if by_records else compared


def without_load(compared: list[Compared]) -> list[Compared]:
    """Return the stages, but for perplexity, with what they would take by records at the rate that perplexity had."""
    loads = defaultdict(list)
    for each in compared:
        if each.stage == "perplexity":
            loads[each.run, each.model].append(each.factor)
    return [
        each
        if each.stage == "perplexity" or (each.run, each.model) not in loads
        else replace(each, estimated=each.estimated / median(loads[each.run, each.model]))
        for each in compared
    ]


def by_stage(compared: list[Compared]) -> dict[str, list[float]]:
    factors = defaultdict(list)
    for each in compared:
        factors[each.stage].append(each.factor)
    return dict(sorted(factors.items()))


def share_within_two(factors: list[float]) -> float:
    return sum(0.5 <= factor <= 2 for factor in factors) / len(factors)


def test_the_median_estimate_of_every_stage_and_of_every_methods_pruning_is_within_a_factor_of_two():
    """Without a record of like work: by multiply-accumulates and a rate."""
    medians = {stage: median(factors) for stage, factors in by_stage(compare(by_records=False)).items()}
    assert len(medians) > 30
    assert {stage: each for stage, each in medians.items() if not 0.5 <= each <= 2} == {}


def test_most_estimates_are_within_a_factor_of_two_of_what_the_cell_took():
    """Most are, although the machines were busy: {stage: share without records, share by records of other runs}."""
    least = {"perplexity": (0.95, 0.85), "tasks": (0.9, 0.9), "speed": (0.95, 0.9), "prune": (0.85, 0.8)}
    for number in (0, 1):
        compared = compare(by_records=bool(number))
        for stage, shares in least.items():
            factors = [each.factor for each in compared if each.stage.partition(" ")[0] == stage]
            assert share_within_two(factors) >= shares[number], (stage, number)


def main() -> None:
    tables = [by_stage(compare(by_records=by_records)) for by_records in (False, True)]
    print(f"{'':30}{'cells':>6}   by products: within 2, median, range    by records: within 2, median, range")
    for stage in tables[0]:
        words = [
            f"{share_within_two(factors):8.0%}{median(factors):8.2f}{min(factors):8.2f} - {max(factors):.2f}"
            for factors in (table[stage] for table in tables)
        ]
        print(f"{stage:30}{len(tables[0][stage]):6}   {words[0]:40}{words[1]}")
    for table in tables:
        pruning = [factor for stage, factors in table.items() if stage.startswith("prune") for factor in factors]
        print(f"pruning: {len(pruning)} cells, {share_within_two(pruning):.0%} within 2")


if __name__ == "__main__":
    main()
