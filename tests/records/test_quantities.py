"""The table of quantities: what follows from the declaration of a field, and what the frame makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from made_records import DENSE, LACO

from bench.plan.kinds import declare_optional_field
from bench.records import frame, measured, quantities
from bench.records.quantities import find_quantities, find_quantity, list_quantities, quantity_of_column
from bench.records.quantity import PARTS, declare_quantity, format_bits
from bench.records.record import RecordLayout
from bench.records.schema import schema_of_layout
from reports import legend
from reports.groups import pool_draws
from reports.tables.views import build_view


@dataclass(frozen=True, kw_only=True)
class Task(measured.TaskScore):
    """A task with a quantity that no record has yet."""

    hesitation: measured.TaskMetric | None = declare_quantity(
        "hesitation {}", "entropy of the choices' likelihoods", format_bits, unit="bits", spread="stderr"
    )


@dataclass(frozen=True, kw_only=True)
class Measured(measured.Measured):
    """What is measured, with such a task."""

    tasks: dict[str, Task] | None = declare_optional_field("by task")


@pytest.fixture
def hesitant(monkeypatch):
    """A dense and a pruned record that hold the new quantity of piqa alone."""
    monkeypatch.setattr(measured, "Measured", Measured)
    for function in (list_quantities, find_quantity, quantity_of_column):
        function.cache_clear()
    records = []
    for record, value in ((DENSE, 1.25), (LACO, 1.5)):
        tasks = {name: Task(**vars(task)) for name, task in record.measured.task_scores.items()}
        tasks["piqa"] = replace(tasks["piqa"], hesitation=measured.TaskMetric(value=value, stderr=0.125))
        records.append(replace(record, measured=Measured(**vars(record.measured) | {"tasks": tasks})))
    yield records
    monkeypatch.undo()
    for function in (list_quantities, find_quantity, quantity_of_column):
        function.cache_clear()


def test_a_declared_field_is_all_that_a_new_quantity_needs(hesitant):
    (row,) = [row for row in frame.rows_of_records(hesitant) if row["method"] == "laco"]
    assert (row["hesitation_piqa"], row["hesitation_piqa_stderr"]) == (1.5, 0.125)
    assert not any(name.startswith("hesitation") and "piqa" not in name for name in row)
    (table, *_) = build_view("per-task", hesitant)
    (place,) = [at for at, column in enumerate(table.columns) if column.name == "hesitation_piqa"]
    assert table.columns[place].head == "hesitation piqa"
    assert [line.cells[place].text for line in table.rows] == ["1.250 bits ± 0.125", "1.500 bits ± 0.125"]
    assert "hesitation: entropy of the choices' likelihoods, in bits, ± one standard error." in table.footnotes
    assert not any("hesitation" in sentence for one in build_view("main", hesitant) for sentence in one.footnotes)
    properties = schema_of_layout(Measured)["$defs"]["Task"]["properties"]
    assert properties["hesitation"]["description"] == "entropy of the choices' likelihoods"


def test_without_a_value_no_table_has_the_column(hesitant):
    records = []
    for record in hesitant:
        tasks = {name: replace(task, hesitation=None) for name, task in record.measured.task_scores.items()}
        records.append(replace(record, measured=replace(record.measured, tasks=tasks)))
    rows = frame.rows_of_records(records)
    assert not any(name.startswith("hesitation") for row in rows for name in row)
    assert list(legend.describe_quantities("answers", rows)) == list(legend.describe_quantities("tasks", rows))


def test_every_quantity_of_a_record_is_a_field_of_its_layout():
    schema = schema_of_layout(RecordLayout)
    declared = [quantity for quantity in list_quantities() if quantity.path]
    assert len(declared) > 20
    for quantity in declared:
        place = schema["properties"]["measured"]
        for name in quantity.path.split("."):
            inner = schema["$defs"][place["$ref"].rpartition("/")[2]] if "$ref" in place else place
            place = inner["additionalProperties"] if name == "{}" else inner["properties"][name]
        assert place["description"] == quantity.meaning


def test_columns_have_quantities_of_their_own():
    names = [quantity.name for quantity in list_quantities()]
    assert len(names) == len(set(names))
    assert all(quantity.part in PARTS and quantity.heading for quantity in list_quantities())
    assert quantity_of_column("perplexity_a/b/wiki.txt").heading == "ppl wiki.txt"
    assert quantity_of_column("answer_bpb_piqa").heading == "bpb piqa"
    assert quantity_of_column("answer_bpb").heading == "bpb"
    assert quantity_of_column("answer_bpb").title == "bits per byte of the right answer"
    assert find_quantity("average_chance") is None
    assert quantity_of_column("average_chance").heading == "average chance"


def test_fields_of_results_inside_results_have_paths_with_places_for_names():
    paths = {quantity.name: quantity.path for quantity in find_quantities(Measured)}
    assert paths["hesitation_{}"] == "tasks.{}.hesitation"
    assert paths["perplexity_{}"] == "perplexity.{}.perplexity"
    assert (paths["kl"], paths["heal_tokens"], paths["layers"]) == ("checks.kl", "healing.tokens", "layers")
    assert not quantities.quantities_of_part("mean")  # which no record holds


def test_draws_are_pooled_as_their_quantities_say():
    rows = [{"seed": 0, "perplexity_wiki": x, "kl": x, "peak_memory_bytes": x} for x in (10.0, 1000.0)]
    pooled = pool_draws(rows)
    assert pooled["perplexity_wiki"] == pytest.approx(100)
    assert (pooled["kl"], pooled["peak_memory_bytes"]) == (505, 1000)
