"""Says which cells may be compared, in which figures, and which cells are draws of one row.

Conditions. One table names everything that figures depend on. Kinds of figures are size, text (perplexities), task and
speed. A table of a report sets cells apart where any condition of its figures differs. The gate and `compare` refuse
only what their own column says.

Draws. Cells that differ only in what a seed chooses are draws of one row. A random method makes such a choice, and its
cells have a parameter for its seed. A cell's own seed draws the calibration and the documents of the tasks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from bench.plan.cell import Cell, words_of_ratio
from bench.plan.kinds import to_plain
from bench.records.quantities import find_quantity
from bench.records.record import Record, name_of_model, names_of_models

FIGURES = ("size", "text", "task", "speed")
MOST = 4  # fields that are named where setups differ in many, but for those that alone tell two apart


class Condition(NamedTuple):
    """Holds a field of a record that figures depend on.

    place    the path of the field: in the record's cell, in the protocol or inputs of the cell, or elsewhere
    table    the kinds of figures that stand in tables of their own where it differs; "columns" where it sets which
             figures there are; "decision" where a pruner depends on it, so that no other cell's search is reused
    gate     the kinds of figures that the gate and `compare` do not compare where it differs
    name     its name in their messages and in --allow
    pruned   whether it does not concern the dense model
    """

    place: str
    table: str
    gate: str = ""
    name: str = ""
    pruned: bool = False


EVERY = "size text task speed"
CONDITIONS = tuple(  # in the order in which messages name them; a field that is not here touches every kind
    Condition(*row)
    for row in (
        ("cell.model", f"{EVERY} decision"),
        ("measured.weights_sha256", "", EVERY, "weights"),
        ("inputs.weights_sha256", f"{EVERY} decision"),
        ("inputs.config_sha256", f"{EVERY} decision", EVERY, "config"),
        ("cell.dtype", f"{EVERY} decision", EVERY, "dtype"),
        ("inputs.tokenizer_sha256", f"{EVERY} decision", "text task", "tokenizer"),
        ("inputs.chat_template_sha256", "task", "task", "chat_template"),
        ("inputs.calibration_sha256", f"{EVERY} decision"),
        ("decisions.calibration.sha256", "", "text task", "calibration", True),
        ("protocol.calibration", f"{EVERY} decision"),
        ("protocol.calibration_sequences", f"{EVERY} decision"),
        ("protocol.calibration_length", f"{EVERY} decision"),
        ("protocol.calibration_memory_mib", "text task"),
        ("cell.device", f"{EVERY} decision", "text task speed", "device"),
        ("environment.gpu", "", "text task speed", "gpu"),
        ("environment.versions.torch", "", "text task speed", "torch"),
        ("environment.cuda", "", "text task speed", "cuda"),
        ("environment.versions.transformers", "", "text task speed", "transformers"),
        ("protocol.batch_tokens", "text task", "text task", "batch_tokens"),
        ("protocol.save_dtype", EVERY, "text task", "save_dtype", True),
        ("environment.versions.lm_eval", "", "task", "lm_eval"),
        ("protocol.scorer", "text task", "task", "scorer"),
        ("inputs.scored_by", "text task", "text task", "scored_by"),
        ("environment.cpu", "", "speed", "cpu"),
        ("environment.threads", "", "speed", "threads"),
        ("environment.omp_wait_policy", "", "speed", "omp_wait_policy"),
        ("environment.gomp_spincount", "", "speed", "gomp_spincount"),
        ("environment.gpu_driver", "", "speed", "gpu_driver"),
        ("environment.gpu_power_limit_w", "", "speed", "gpu_power_limit"),
        ("protocol.cache", "speed", "speed", "cache"),
        ("protocol.compile", "text speed", "speed", "compile"),
        ("protocol.mode", "speed", "speed", "mode"),
        ("protocol.pin", "speed", "speed", "pin"),
        ("protocol.decode_steps", "speed", "speed", "decode_steps"),
        ("protocol.prefill", "speed"),
        ("protocol.decode", "speed"),
        ("protocol.batches", "speed"),
        ("protocol.max_batch", "speed"),
        ("protocol.speed_rounds", "speed"),
        ("protocol.speed_limit", "speed"),
        ("inputs.timed_on", "speed"),
        ("protocol.window", "text"),
        ("protocol.stride", "text"),
        ("protocol.windows", "text"),
        ("protocol.windows_drawn", "text"),
        ("inputs.texts", "text"),
        ("protocol.tasks", "task columns"),
        ("protocol.documents", "task"),
        ("protocol.fewshot", "task"),
        ("protocol.apply_chat_template", "task"),  # the gate goes by the template's hash
        ("protocol.system", "task", "task", "system"),
        ("protocol.task_data", "task"),
        ("protocol.task_files", "task"),
        ("inputs.tasks", "task"),
        ("protocol.profile", "columns"),
        ("protocol.texts", "columns"),
        ("protocol.positions", "columns"),
        ("protocol.checks", "columns"),
        ("cell.seed", "decision"),
        ("inputs.versions", "decision"),  # which a table marks, see `other_versions`
        ("inputs.parent", "decision"),
        ("inputs.revision", ""),  # methods and their healing are what a table compares
        ("inputs.healing", ""),
    )
)
BY_PLACE = {condition.place: condition for condition in CONDITIONS}


def _names_in_gate(kind: str) -> tuple[str, ...]:
    return tuple(condition.name for condition in CONDITIONS if kind in condition.gate.split())


GATE = {kind: _names_in_gate(kind) for kind in FIGURES}


@cache
def is_condition_of(place: str, *kinds: str) -> bool:
    """Say whether a table of any of these kinds depends on a condition."""
    return not set(kinds).isdisjoint(BY_PLACE[place].table.split())


def conditions_for(cell: Cell, *kinds: str) -> dict[str, Any]:
    """Return the conditions of a cell, as plain values, that cells must share to be compared in these kinds."""
    names = ("model", "device", "dtype", "seed")
    conditions = {name: getattr(cell, name) for name in names if is_condition_of(f"cell.{name}", *kinds)}
    for part in ("protocol", "inputs"):
        fields = (to_plain(getattr(cell, part)) or {}).items()
        conditions[part] = {name: value for name, value in fields if is_condition_of(f"{part}.{name}", *kinds)}
    return conditions


def conditions_of_table(record: Record) -> dict[str, Any]:
    """Return the conditions that cells must share to stand in one table."""
    return conditions_for(record.cell, *FIGURES, "columns")


def setup_of_record(record: Record) -> str:
    """Return `conditions_of_table` of a record as one text, equal for cells of one table."""
    return json.dumps(conditions_of_table(record), sort_keys=True)


def setups_of_records(records: Sequence[Record]) -> list[str]:
    """Return the setup of each record as one text, equal for cells that may stand in one table.

    It is `setup_of_record` without the calibration and the documents that the seed draws, so that cells of several
    seeds stand in one table. Where one seed has drawn two, as from two versions of a text, nobody knows which belong
    together. Each draw then stands alone.
    """
    setups = [conditions_of_table(record) for record in records]
    alike = [json.dumps(setup | {"inputs": inputs_without_draw(setup["inputs"])}, sort_keys=True) for setup in setups]
    exact = [json.dumps(setup, sort_keys=True) for setup in setups]
    drawn: dict[tuple[str, int], set[str]] = {}
    for record, family, whole in zip(records, alike, exact, strict=True):
        drawn.setdefault((family, record.cell.seed), set()).add(whole)
    unclear = {family for (family, _), several in drawn.items() if len(several) > 1}
    return [whole if family in unclear else family for family, whole in zip(alike, exact, strict=True)]


def setup_of_perplexity(record: Record, text: str) -> str:
    """Return the setup of the perplexity of `text` as one text, equal for cells whose perplexities share an axis."""
    conditions = conditions_for(record.cell, "text")
    conditions["inputs"]["texts"] = conditions["inputs"].get("texts", {}).get(text)
    return json.dumps(conditions, sort_keys=True)


def setup_of_study(record: Record) -> str:
    """Return the setup of an ablation as one text, without the calibration, since its cells may vary it."""
    conditions = conditions_of_table(record)
    protocol = {
        name: value
        for name, value in conditions["protocol"].items()
        if not is_condition_of(f"protocol.{name}", "decision")
    }
    more = {"protocol": protocol, "inputs": inputs_without_draw(conditions["inputs"]), "match": record.cell.match}
    return json.dumps(conditions | more, sort_keys=True)


def setup_of_models(record: Record) -> str:
    """Return the setup of qualities of several models as one text, without the conditions that follow from a model.

    Each model has the same texts in its own tokens. The seed's draw is left out as in `setups_of_records`.
    """
    conditions = conditions_for(record.cell, "text", "task")
    inputs = {"tasks": inputs_without_draw(conditions["inputs"]).get("tasks"), "protocol": conditions["protocol"]}
    inputs["scored_by"] = conditions["inputs"].get("scored_by")
    return json.dumps(inputs | {name: conditions[name] for name in ("device", "dtype")}, sort_keys=True)


def group_by_setup(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records in groups that can be compared: {setup: its records}, by `setups_of_records`."""
    groups: dict[str, list[Record]] = {}
    for record, key in zip(records, setups_of_records(records), strict=True):
        groups.setdefault(key, []).append(record)
    return groups


def conditions_of_gate(record: Record, *, timed: bool | None = None) -> dict[str, Any]:
    """Return the gate's conditions of a measured record by name; a condition that does not apply is absent.

    timed  whether those of speed apply; None: where the record has a speed
    """
    cell, values = record.cell, dict[str, Any]()
    parts = {"protocol": cell.protocol, "inputs": cell.inputs, **vars(record)}
    timed = record.measured.speed is not None if timed is None else timed
    for condition in CONDITIONS:
        if (
            condition.gate
            and (timed or condition.gate != "speed")
            and not (condition.pruned and cell.method == "dense")
        ):
            value: Any = parts
            for name in condition.place.split("."):
                value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
            value = to_plain(value)
            if value not in (None, "", {}):
                values[condition.name] = version_without_build(value) if ".versions." in condition.place else value
    return values


def version_without_build(version: str) -> str:
    """Return a version without the local part that names a build: 2.13.0 of 2.13.0+cpu.

    Builds of torch for CUDA differ in their CUDA. That is a condition of its own.
    """
    return version.partition("+")[0]


def conditions_of_metric(record: Record, metric: str) -> dict[str, Any]:
    """Return the conditions, text and documents that must be equal for a metric to be compared over runs."""
    quantity, text = find_quantity(_without_end(metric)), _text_of(record, metric)
    kind = quantity.conditions if quantity else "size" if getattr(record.measured, metric, None) is not None else "task"
    costs, kind = kind == "cost", "speed" if kind == "cost" else kind
    names = {
        condition.name
        for condition in CONDITIONS
        if kind in condition.gate.split() and not (costs and "protocol." in condition.place)
    }
    names |= {BY_PLACE["decisions.calibration.sha256"].name} if costs else set()
    conditions = {
        name: value for name, value in conditions_of_gate(record, timed=kind == "speed").items() if name in names
    }
    if text:
        conditions["text"] = record.measured.text_scores[text].sha256
    for task, result in record.measured.task_scores.items():
        if (kind == "task" and quantity and not quantity.is_each) or f"_{task}" in metric:
            conditions[task] = (result.main, result.version, result.documents, result.fewshot)
    return conditions


def _without_end(metric: str) -> str:
    """Return the column of the value to which an end of an interval or a standard error belongs."""
    return re.sub("_(low|high|stderr)$", "", metric)


def _text_of(record: Record, metric: str) -> str | None:
    """Return the text of a perplexity; of a check the first text, since it reads its windows; else None."""
    scored = record.measured.text_scores
    bare = _without_end(metric)
    quantity = find_quantity(bare)
    if (
        quantity
        and quantity.part == "checks"
        and quantity.reads_text
        and getattr(record.measured.checks, bare, None) is not None
    ):
        return next((text for text in record.cell.protocol.texts if text in scored), None)
    if quantity and quantity.part == "text":
        return next((text for text in scored if bare == quantity.name.format(text)), None)
    return None


def identity_of_cell(record: Record) -> dict[str, Any]:
    """Return label, ratio, seed, and the draw of a random method: they pair a cell with one of another run."""
    cell = record.cell
    identity: dict[str, Any] = {"label": cell.label, "ratio": cell.ratio, "seed": cell.seed}
    if cell.ratio_of != "all":
        identity["ratio_of"] = cell.ratio_of
    return identity if cell.draw is None else identity | {"draw": cell.draw}


def name_of_identity(identity: Mapping[str, Any]) -> str:
    """Return an `identity` as messages and tables write it: 'laco at 0.1, seed 0'; without a seed that is None."""
    ratio = (
        "" if identity["ratio"] is None else f" at {words_of_ratio(identity['ratio'], identity.get('ratio_of', 'all'))}"
    )
    draw = f", draw {identity['draw']}" if "draw" in identity else ""
    seed = "" if identity["seed"] is None else f", seed {identity['seed']}"
    return f"{identity['label']}{ratio}{seed}{draw}"


def find_dense_peer(record: Record, peers: Sequence[Record]) -> Record | None:
    """Return the measured dense cell that a record is compared with; None where there is none.

    It has the same seed, or else another seed that has drawn the same documents. Of several it is the one whose
    versions differ least.
    """
    dense = [peer for peer in peers if peer.cell.method == "dense" and peer.status == "ok"]
    same_seed = [peer for peer in dense if peer.cell.seed == record.cell.seed]
    candidates = same_seed or [peer for peer in dense if _documents(peer) == _documents(record)]
    return min(candidates, key=lambda peer: len(find_unlike_versions(record, peer)), default=None)


def _documents(record: Record) -> Any:
    return record.cell.inputs and record.cell.inputs.tasks


def find_unlike_versions(record: Record, dense: Record | None) -> dict[str, tuple[str, str]]:
    """Return the packages whose version is not the dense cell's: {name: (version, dense version)}; {} without one."""
    versions = record.environment.get("versions", {})
    dense_versions = dense.environment.get("versions", {}) if dense else {}
    return {
        name: (versions[name], dense_versions[name])
        for name in versions
        if name in dense_versions and versions[name] != dense_versions[name]
    }


def differences_of_setups(records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """Return {setup: words on the fields in which it differs from the others}, but model, device, dtype and profile.

    Inputs are left out where the other fields tell all setups apart. A model is named where another model is shown by
    the same name. Of more than MOST fields, further ones are named only where they alone tell two setups apart.
    """
    groups = group_by_setup(records)
    fields_by_setup = {key: flatten(conditions_of_table(group[0])) for key, group in groups.items()}
    names_of_groups = {key: name_of_model(group[0]) for key, group in groups.items()}
    names = names_of_models({record.cell.model for record in records})
    in_heading = ("model", "device", "dtype", "protocol.profile")
    varying = names_of_differences(list(fields_by_setup.values()))
    without_inputs = [name for name in varying if name.partition(".")[0] != "inputs"]
    rest_by_setup = {key: values_of_fields(fields, without_inputs) for key, fields in fields_by_setup.items()}
    if _distinct(rest_by_setup) == len(fields_by_setup):
        varying = without_inputs
    named = list[str]()
    heads = {
        key: [names_of_groups[key], *values_of_fields(fields, in_heading)] for key, fields in fields_by_setup.items()
    }
    for name in (name for name in varying if name not in in_heading):
        with_it = {key: [*head, shorten_value(fields_by_setup[key].get(name))] for key, head in heads.items()}
        if len(named) < MOST or _distinct(with_it) > _distinct(heads):
            named.append(name)
            heads = with_it
    differences = {}
    for key, fields in fields_by_setup.items():
        words = [f"{name.rpartition('.')[2]} {shorten_value(fields.get(name))}" for name in named]
        model = (
            [f"model {names[fields['model']]}"] if _is_name_of_several(names_of_groups, fields_by_setup, key) else []
        )
        differences[key] = (*model, *words)
    return differences


def values_of_fields(fields: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    """Return the values of some fields, None where one is missing."""
    return [fields.get(name) for name in names]


def _distinct(heads: Mapping[str, Any]) -> int:
    """Count the different headings."""
    return len({json.dumps(head) for head in heads.values()})


def _is_name_of_several(names: Mapping[str, str], conditions: Mapping[str, Mapping[str, Any]], key: str) -> bool:
    """Say whether another model is shown by the same name as this setup's."""
    return any(
        names[setup] == names[key] and conditions[setup]["model"] != conditions[key]["model"] for setup in conditions
    )


def names_of_differences(conditions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the fields in which flat conditions differ, without the inputs of a text or task that only some have."""
    names = dict.fromkeys(name for fields in conditions for name in fields)
    differing = []
    for name in names:
        is_input = name.startswith(("inputs.texts", "inputs.tasks"))
        if is_input and any(name not in fields for fields in conditions):
            continue
        if len({json.dumps(fields.get(name)) for fields in conditions}) > 1:
            differing.append(name)
    return differing


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Return a nested dictionary as a flat one: {"a": {"b": 1}} as {"a.b": 1}."""
    if isinstance(value, dict) and value:
        return {name: leaf for key, inner in value.items() for name, leaf in flatten(inner, f"{path}.{key}").items()}
    return {path.lstrip("."): value}


def shorten_value(value: Any) -> str:
    """Return the value of a condition, shortened so that a sentence can hold it."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "+".join(value) or "none"
    text = json.dumps(value)
    if len(text) <= 40:
        return text
    return json.dumps(f"{value[:12]}...") if isinstance(value, str) else f"{text[:12]}..."


def group_draws(records: Sequence[Record], *, seeds: bool = True) -> list[list[int]]:
    """Return the places of the records that share a row: measured cells that differ only in their draw.

    The draw is the choice of a random method, whose cells have a parameter for its seed, and the calibration and
    documents of the cell's own seed; without `seeds` the choice alone. Cells that cannot be measured share a row over
    the seeds too. In a row a timed cell comes first, then the lowest seed.
    """
    rows: dict[str, list[int]] = {}
    seeds = seeds and len({record.cell.seed for record in records}) > 1
    for number, record in enumerate(records):
        random = record.status == "ok" and any(stage.is_draw for stage in record.cell.stages)
        key = _cell_without_draw(record, random=random, seeds=seeds) if random or seeds else str(number)
        seeds_of_row = {records[place].cell.seed for place in rows.get(key, ())}
        rows.setdefault(key if random or record.cell.seed not in seeds_of_row else str(number), []).append(number)
    return [
        sorted(numbers, key=lambda n: (records[n].measured.speed is None, records[n].cell.seed))
        for numbers in rows.values()
    ]


def _cell_without_draw(record: Record, *, random: bool, seeds: bool) -> str:
    """Return the status, the cell and its inputs as one text, without the draw."""
    cell = record.cell.without_draws if random else record.cell
    plain = {name: value for name, value in cell.plain().items() if name != "inputs"} | (
        {"seed": None} if seeds else {}
    )
    inputs = {name: value for name, value in (to_plain(cell.inputs) or {}).items() if name != "parent"}
    plain["inputs"] = inputs_without_draw(inputs) if seeds else inputs
    return json.dumps([record.status, plain], sort_keys=True)


def inputs_without_draw(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs without the seed's draw: the calibration, and the documents of each task."""
    kept = {name: value for name, value in inputs.items() if name != "calibration_sha256"}
    if "tasks" in kept:
        kept["tasks"] = {name: task.get("version") for name, task in kept["tasks"].items()}
    return kept
