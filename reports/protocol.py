"""How cells were measured: the conditions and the ratio in a table's title, the protocol as a table, the environment.

A row of the protocol is a quantity with how it was measured. If the cells of a table do not agree, each version has a
row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from bench.plan.cell import Cell, words_of_amount
from bench.plan.protocol import Recipe, split_range
from bench.records.frame import STAGES, keep_standard_tasks, main_timing, tasks_with_accuracies
from bench.records.measured import RangeScore, TextScore
from bench.records.quantities import quantity_of_column
from bench.records.quantity import format_bytes, shorten_name
from bench.records.record import Record
from methods.counted import QUANTITIES
from reports.groups import names_of_seeds, recipe_of_cell, seeds_of, words_of_recipe_differences

KINDS = ("perplexity", "kl", "checks", "tasks", "speed")  # kinds of columns that a table may have
LENGTH_OF_COMMIT = 12  # enough of a hash to find it
CALIBRATION = ("calibration", "calibration_sequences", "calibration_length")  # fields of the protocol
BOS = {"every window": "each begins with BOS", "none": "no BOS"}
RECIPES = {
    "lora": "LoRA of rank {rank}",
    "full": "all parameters",
    "norms": "the norms' parameters",
    "beside": "the layers beside a cut",
}
LOSSES = {"next-token": "for the next token", "kl": "towards the dense model's predictions"}
FURTHER = {  # what a recipe has beside its loss, where it is not the default
    "top": "{:,} likeliest tokens and the rest as one",
    "temperature": "temperature {:g}",
    "hidden": "{:g} of the last states' cosine",
    "attention": "{:g} of the last attention's relations",
    "patience": "until {} points bring no lower held-out loss",
}

ProtocolRow = tuple[str, str]


def conditions_of(records: Sequence[Record]) -> list[str]:
    """Return the conditions of rows: device, dtype and threads; then the profile. Each has every value that occurs."""
    threads = {
        record.environment["threads"]
        for record in records
        if record.cell.device == "cpu" and record.environment.get("threads") is not None
    }
    where = [
        _either(sorted(map(_device, records))) + _processors(records),
        _either(sorted(record.cell.dtype for record in records)),
        *([f"{_either(sorted(threads))} {'thread' if threads == {1} else 'threads'}"] if threads else []),
    ]
    return [", ".join(where), _either(sorted(record.cell.protocol.profile for record in records))]


def _device(record: Record) -> str:
    return str(record.environment.get("gpu") or record.cell.device)


def _processors(records: Sequence[Record]) -> str:
    """Return the processors of cells on a CPU if there are several, in brackets; otherwise nothing."""
    names = [record.environment.get("cpu") for record in records if record.cell.device == "cpu"]
    several = sorted({str(name) for name in names if name})
    return f" ({_either(several)})" if len(several) > 1 else ""


def _either(values: Iterable[Any]) -> str:
    """Return each value once: 'H100 or H200'."""
    return " or ".join(dict.fromkeys(map(str, values)))


def words_of_ratio(records: Sequence[Record]) -> str:
    """Return the title of a ratio: 'ratio 0.3: 11 of 30 layers, 95.6 M parameters'.

    For a budget it is 'budget macs=0.8: 78.9 % of the MACs per token, in whole layers'. A method whose parameters
    decide has a sentence that says so; the dense model alone has an empty title.
    """
    pruned = [record for record in records if record.cell.method != "dense"]
    if not pruned:
        return ""
    requested = pruned[0].cell.ratio
    if requested is None:
        return "ratio fixed by the method's parameters"
    budgets = set(filter(None, map(_words_of_budget, pruned)))
    amount = words_of_amount(requested, pruned[0].cell.ratio_of)
    return amount + (f": {budgets.pop()}" if len(budgets) == 1 else "")


def _words_of_budget(record: Record) -> str:
    """Return the budget in parameters; in layers too if the request was rounded to whole layers; empty without one."""
    measured = record.measured
    if budget := measured.budget:
        rounded = ", in whole layers" if record.cell.match == "layers" else ""
        return f"{quantity_of_column('ratio').show(budget.share)} of {QUANTITIES[budget.of]}{rounded}"
    dense, inner, total = measured.dense_parameters, measured.dense_parameters_without_embeddings, measured.dense_layers
    if measured.ratio_budget is None or dense is None or inner is None:
        return ""
    removed = measured.ratio_budget * dense
    parameters = f"{quantity_of_column('parameters').show(dense - removed)} parameters"
    if record.cell.match == "exact" or not total:
        return parameters
    layers = removed / (inner / total)
    whole = abs(layers - round(layers)) < 0.05  # layers of one model can differ; then they are not counted
    return f"{round(layers)} of {total} layers, {parameters}" if whole else parameters


def protocol_of_records(
    records: Sequence[Record], about: Collection[str] = KINDS, *, calibration: bool = True
) -> list[ProtocolRow]:
    """Return the rows of the protocol of some cells, each once.

    about        the kinds of columns whose measurement is told, from KINDS
    calibration  whether the calibration is told
    """
    rows = [row for kind, tell in TELLERS.items() if kind in about for record in records for row in tell(record)]
    if not {"perplexity", "tasks"}.isdisjoint(about):
        rows += [row for record in records for row in _servers(record)]
    rows += _calibrations(records) if calibration else []
    return list(dict.fromkeys([*rows, *protocol_of_healing([record.cell for record in records])]))


def _perplexities(record: Record) -> Iterator[ProtocolRow]:
    """Yield for each text its windows, how they lie in it, and how many tokens count."""
    for text, result in record.measured.text_scores.items():
        facts = [
            *_facts_of_windows(result),
            f"stride {result.stride:,}",
            BOS.get(result.bos, result.bos),
            f"{result.tokens:,} tokens scored",
            *["of every document of the text"] * bool(result.whole),
        ]
        yield quantity_of_column(f"perplexity_{text}").heading, ", ".join(facts)


def _facts_of_windows(result: TextScore | RangeScore) -> Iterator[str]:
    """Yield how many windows there are and how long they are; of several, how they lie in the text."""
    windows = result.windows
    yield f"{windows:,} {'window' if windows == 1 else 'windows'} of {result.window:,} tokens"
    if windows > 1:
        yield "drawn from the text" if result.drawn else "one behind the other"


def _positions(record: Record) -> Iterator[ProtocolRow]:
    """Yield for each text its long windows, and whether each lies in one document."""
    for name, result in record.measured.range_scores.items():
        within = "each within a document" if result.within else "of joined documents"
        facts = [*_facts_of_windows(result), within, BOS.get(result.bos, result.bos)]
        yield f"{quantity_of_column(f'perplexity_{split_range(name)[0]}').heading} by position", ", ".join(facts)


def _tasks(record: Record) -> Iterator[ProtocolRow]:
    """Yield for the tasks that are measured alike their metric, documents and shots."""
    tasks_by_facts: dict[str, list[str]] = {}
    averaged = keep_standard_tasks(tasks_with_accuracies([record]))
    for task, result in record.measured.task_scores.items():
        documents = result.documents
        every = "all " if documents == result.available else ""
        count = f"{every}{documents:,} {'document' if documents == 1 else 'documents'}"
        apart = "" if task in averaged else ", not in the average"
        facts = f"{result.main}, {count}, {result.fewshot}-shot{_words_of_chat(record)}{apart}"
        tasks_by_facts.setdefault(facts, []).append(shorten_name(task))
    for facts, tasks in tasks_by_facts.items():
        yield ", ".join(tasks), facts


def _words_of_chat(record: Record) -> str:
    """Return how prompts were turns of a chat, with the system text; nothing where they were plain text."""
    chat = record.cell.protocol.chat
    if chat is None:
        return ""
    return ", in the chat template" + (f", system {chat.system!r}" if chat.system else "")


def _servers(record: Record) -> Iterator[ProtocolRow]:
    """Yield the server that scored the cell, and how far its log-probabilities are from this suite's."""
    if engine := record.cell.inputs and record.cell.inputs.scored_by:
        facts = [f"{engine.name} {engine.version}".strip(), f"by {engine.way}"]
        if near := record.measured.agreement:
            apart = f"{near.mean:.1g} nats apart in the mean and {near.largest:.1g} at most"
            facts.append(f"held against the weights on {near.tokens:,} tokens: {apart}")
        yield "scored by", ", ".join(facts)


def _speeds(record: Record) -> Iterator[ProtocolRow]:
    """Yield how the speed in the main table was timed, for each stage of generation."""
    protocol = record.cell.protocol
    for stage in STAGES:
        if point := main_timing(record, stage):
            facts = [
                f"{'a prompt of' if stage == 'prefill' else 'one token behind'} {point.tokens:,} tokens",
                f"batch {point.batch}",
                "in turns with dense" if point.speedup is not None else "timed alone",
                f"up to {protocol.speed_rounds} rounds",
                f"{protocol.cache} cache",
                *["compiled"] * bool(protocol.compile),
                *["each step captured once and replayed"] * (point.mode == "graph" and not protocol.compile),
            ]
            yield stage, ", ".join(facts)


TELLERS: dict[str, Callable[[Record], Iterator[ProtocolRow]]] = {
    "perplexity": _perplexities,
    "positions": _positions,
    "tasks": _tasks,
    "speed": _speeds,
}


def _calibrations(records: Sequence[Record]) -> Iterator[ProtocolRow]:
    for several in group_by_calibration(records):
        protocol = several[0].cell.protocol
        yield (
            "calibration",
            f"{protocol.calibration_sequences} sequences of {protocol.calibration_length} tokens of "
            f"{protocol.calibration}, {names_of_seeds(seeds_of(several))}",
        )


def group_by_calibration(records: Sequence[Record]) -> list[list[Record]]:
    """Return the pruned records in groups that share a calibration, whatever its seed."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if record.cell.method != "dense":
            protocol = record.cell.protocol
            groups.setdefault(tuple(getattr(protocol, name) for name in CALIBRATION), []).append(record)
    return list(groups.values())


def protocol_of_healing(cells: Sequence[Cell]) -> list[ProtocolRow]:
    """Return the recipes by which cells were healed, each once: ('healed (loss kl)', 'LoRA of rank 8, ...')."""
    rows = dict[ProtocolRow, None]()
    for cell in cells:
        recipe = recipe_of_cell(cell)
        if recipe:
            rows[f"healed{words_of_recipe_differences(cell, cells)}", words_of_recipe(recipe)] = None
    return list(rows)


def words_of_recipe(recipe: Recipe) -> str:
    """Return a recipe in words: 'LoRA of rank 8, for the next token, 4,096 tokens of wiki, batches of 8 x 256, ...'."""
    passes = "" if recipe.passes == 1 else f", {recipe.passes:,} passes"
    further = "".join(
        f", {words.format(getattr(recipe, name))}"
        for name, words in FURTHER.items()
        if getattr(recipe, name) != getattr(Recipe, name)
    )
    loss = f"towards the predictions of {shorten_name(recipe.teacher)}" if recipe.teacher else LOSSES[recipe.loss]
    return (
        f"{RECIPES[recipe.kind].format(**vars(recipe))}, {loss}{further}, {recipe.tokens:,} tokens of "
        f"{shorten_name(recipe.text)}{passes}, batches of {recipe.batch} x {recipe.length}, learning rate up to "
        f"{recipe.highest:g}, seed {recipe.seed}"
    )


def describe_environment(records: Sequence[Record]) -> Iterator[str]:
    """Yield the environment of the cells, as in 'torch: 2.13.0', with every value that occurs."""
    values_by_name: dict[str, list[str]] = {}
    for record in records:
        flat = {name: value for name, value in record.environment.items() if name != "versions"}
        for name, value in flat.items():
            values_by_name.setdefault(name.removesuffix("_bytes").replace("_", " "), []).append(_fact(name, value))
        for package, version in record.environment.get("versions", {}).items():
            values_by_name.setdefault(package, []).append(version)
    for name, values in values_by_name.items():
        distinct = sorted(set(values))
        if name == "date" and len(distinct) > 1:
            distinct = [f"{distinct[0]} to {distinct[-1]}"]
        yield f"{name}: {', '.join(distinct)}"


def _fact(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "commit":
        return str(value)[:LENGTH_OF_COMMIT]
    return format_bytes(float(str(value))) if name.endswith("_bytes") else str(value)
