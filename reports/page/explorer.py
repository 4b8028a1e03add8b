"""The data of the explorer: values, intervals, groups of ties and verdicts of every pair, as the script shows them.

records -> groups of cells -> rows, `Ties` of each column, answers beside the dense model's, methods' cards -> plain
JSON

The script chooses, sorts and draws. It computes no statistic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import Any

from bench.data.task_descriptions import describe_tasks
from bench.plan.cell import words_of_ratio
from bench.plan.command import command_of_cell
from bench.records.frame import (
    columns_of_quantity,
    columns_with_values,
    keep_standard_tasks,
    may_be_guessed,
    tasks_with_accuracies,
)
from bench.records.quantities import list_quantities, quantity_of_column
from bench.records.quantity import Quantity
from bench.records.record import Record, name_of_model
from bench.records.samples import Samples, pair_whole
from bench.records.served import ServedRecord
from methods.cards import Card, CodeComparison, cards_of_compensations, cards_of_methods, head_of, read_comparisons
from reports import legend, protocol
from reports.families import find_family
from reports.groups import TableGroup, group_records
from reports.page.answers import AnswersBeside
from reports.page.flags import flags_of_order, flags_of_steps
from reports.page.served import columns_of_served, setups_of_served
from reports.page.values import value_of_cell
from reports.removed import removals_of
from reports.tables.rows import GroupTests, sort_rows, sorting_quantity
from reports.tables.table import cell_of
from reports.tables.ties import Ties
from reports.text import to_printable

KINDS = {  # of columns, by the part of the frame
    "text": "quality",
    "mean": "quality",
    "checks": "checks",
    "task": "tasks",
    "answers": "tasks",
    "flips": "answers",
    "written": "answers",
    "skills": "skills",
    "speed": "speed",
    "amount": "size",
    "size": "size",
    "cost": "cost",
    "healing": "cost",
}
LEFT_OUT = (
    "miss",
    "bits_per_byte_",
    "byte_perplexity_",
    "word_perplexity_",
    "macs_context",
    "changed_",
    "lost_",
    "gained_",
)
SIZES = ("parameters", "active_parameters", "macs_per_token")  # of which a reader wants less at one quality


def data_of_explorer(
    records: Sequence[Record], samples: Samples, served: Sequence[ServedRecord] = ()
) -> dict[str, Any]:
    """Return the data of the script as plain values: columns, methods, and setups with their amounts and rows.

    served  the models in inference engines, which stand in setups of their own behind the others
    """
    setups = group_records(records, samples)
    rows = [row for groups in setups for group in groups for row in group.rows]
    columns = list(_columns(records, rows))
    names = [str(column["name"]) for column in columns]
    used = {name for record in records for name in record.cell.method.split("+")}
    return {
        "columns": [*columns, *columns_of_served(served)],
        "methods": {name: card for name, card in _cards() if name in used},
        "setups": [
            *(_setup(groups, samples, names, setups) for groups in setups),
            *setups_of_served(served),
        ],
    }


def _columns(records: Sequence[Record], rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for quantity in list_quantities():
        for name in columns_with_values(rows, _names(quantity, records)):
            own = quantity_of_column(name)
            heading = {"agreement": "same next token", "kept": "average kept"}.get(name, own.heading)
            yield {
                "name": name,
                "heading": heading,
                "title": own.title or heading,
                "unit": own.unit if not own.unit_in_cell else "",
                "meaning": own.meaning,
                "better": own.better or ("lower" if name in SIZES else ""),
                "kind": KINDS[own.part],
                "log": own.is_logarithmic or own.part == "cost",
                "scale": own.axis_scale,
                "axis": own.unit,
            }


def _names(quantity: Quantity, records: Sequence[Record]) -> list[str]:
    """Return the columns of a quantity that the page shows; of what changes with the text or task, its main values."""
    if quantity.part not in KINDS or quantity.name.startswith(LEFT_OUT):
        return []
    return [] if quantity.is_each and quantity.part == "flips" else columns_of_quantity(quantity, records)


def _setup(
    groups: Sequence[TableGroup], samples: Samples, names: Sequence[str], setups: Sequence[Sequence[TableGroup]]
) -> dict[str, Any]:
    records = [record for group in groups for record in chain(*group.drawn)]
    model = name_of_model(records[0])
    alike = [several for several in setups if name_of_model(several[0].records[0]) == model]
    beside = AnswersBeside(groups, samples)
    return {
        "name": ", ".join([model, *(groups[0].apart if len(alike) > 1 else ())]),
        "conditions": protocol.conditions_of(records),
        "protocol": protocol.protocol_of_records(records),
        "notes": legend.describe_flags(flags_of_steps(groups)),
        "amounts": [_amount(group, samples, names, records, beside) for group in groups],
        "prompts": beside.prompts,  # which the rows of the amounts have filled
    }


def _amount(
    group: TableGroup, samples: Samples, names: Sequence[str], records: Sequence[Record], beside: AnswersBeside
) -> dict[str, Any]:
    group = sort_rows(group, sorting_quantity(group))
    tests = GroupTests(group, samples, records)
    ties = {name: Ties(tests, name) for name in columns_with_values(group.rows, names)}
    tested = {name: tie for name, tie in ties.items() if quantity_of_column(name).better and tie.is_tested}
    flags = [*legend.flags_of_records(group.records_with_notes(), beside=group.beside), *flags_of_order(tests)]
    drawn = list(chain(*group.drawn))
    tasks = chain.from_iterable(record.cell.protocol.tasks for record in drawn)
    return {
        "name": words_of_ratio(group.ratio, group.ratio_of) or "fixed by parameters",
        "title": protocol.words_of_ratio(group.records),
        "rows": [_row(group, place, names, beside) for place in range(len(group.records))],
        "ties": {name: _tie(tie) for name, tie in tested.items()},
        "verdicts": {name: _verdicts(tie) for name, tie in tested.items()},
        "sides": _changed_sides(group, samples, records),
        "notes": legend.describe_flags(flags),
        "reading": [*legend.describe_columns(drawn, list(chain(*group.each))), *describe_tasks(tasks)],
    }


def _row(group: TableGroup, place: int, names: Sequence[str], beside: AnswersBeside) -> dict[str, Any]:
    record, row = group.records[place], group.rows[place]
    answers = beside.describe_row(group, place)
    is_measured = record.status == "ok"
    removals = removals_of(record).items() if is_measured else ()
    seeds = sorted({each.cell.seed for each in group.drawn[place]})
    return {
        "label": to_printable(group.label(place)),
        "method": record.cell.method,
        "failure": "" if is_measured else legend.words_of_status(record),
        "little": group.removes_too_little(place),
        "missed": "missed_ratio" in str(row["flags"]),
        "removed": "; ".join(f"{name}: {words}" for name, words in removals),
        "command": to_printable(command_of_cell(record.cell, seeds) or ""),
        "values": {name: _value(row, name, drawn=group.is_drawn(place)) for name in columns_with_values([row], names)}
        if is_measured
        else {},
        **({} if answers is None else {"answers": answers}),
    }


def _value(row: Mapping[str, Any], name: str, *, drawn: bool) -> list[Any]:
    """Return what `value_of_cell` does, of a row's cell."""
    return value_of_cell(cell_of(row, name), may_be_guess=not drawn and may_be_guessed(row, name))


def _tie(tie: Ties) -> dict[str, Any]:
    return {"letters": {str(place): words for place, words in tie.letters.items()}, "best": tie.best}


def _verdicts(tie: Ties) -> str:
    """Return the verdict of each pair of rows, the first row with all behind it, then the second."""
    return "".join(tie.verdict(a, b) for a, b in combinations(range(len(tie.tests.group.records)), 2))


def _changed_sides(group: TableGroup, samples: Samples, records: Sequence[Record]) -> list[list[int] | None]:
    """Return for each pair of rows the answers that only the first, and only the second has right, and all of them.

    The answers are of the tasks in the average, at the first seed. None where no samples of the same documents are.
    """
    tasks = keep_standard_tasks(tasks_with_accuracies(records))
    numbers = [several[0] for several in group.numbers]
    return [_count_sides(samples, numbers, pair, group, tasks) for pair in combinations(range(len(numbers)), 2)]


def _count_sides(
    samples: Samples, numbers: Sequence[int], places: tuple[int, int], group: TableGroup, tasks: Sequence[str]
) -> list[int] | None:
    first, second, documents = 0, 0, 0
    for task in tasks:
        scores = [group.records[place].measured.task_scores.get(task) for place in places]
        mains = {score.main for score in scores if score is not None and score.is_accuracy}
        if None in scores or len(mains) != 1:
            return None
        both = pair_whole(*(samples.of(numbers[place], task, next(iter(mains))) for place in places))
        if both is None:
            return None
        first += int((both.differences < 0).sum())
        second += int((both.differences > 0).sum())
        documents += len(both.differences)
    return [first, second, documents] if documents else None


def _cards() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the card of each built-in method and compensation."""
    comparisons = read_comparisons()
    for card in cards_of_methods():
        yield card.name, _card(card, comparisons) | {"family": find_family(card)}
    for card in cards_of_compensations():
        yield card.name, _card(card, comparisons) | {"family": ""}


def _card(card: Card, comparisons: Mapping[str, CodeComparison]) -> dict[str, Any]:
    head = head_of(card.module)
    compared = comparisons.get(card.module.rpartition(".")[2])
    is_compared = compared is not None and card.name in compared.methods
    return {
        "summary": card.summary,
        "source": head.source,
        "equation": head.equation,
        "reproduced": _words_of_comparison(compared) if compared is not None and is_compared else "",
        "cost": card.cost,
        "needs": card.needs,
        "parameters": ", ".join(f"{name}={default}" for name, default, _ in card.parameters),
    }


def _words_of_comparison(compared: CodeComparison) -> str:
    """Return what of the authors' code was compared, with its commit, and how far both are apart."""
    whose = "the authors' code" if compared.by_the_authors else "other people's code"
    where = ", ".join(f"{name}{f' at {commit[:7]}' if commit else ''}" for name, commit in compared.code)
    return f"Compared with {whose} ({where}): {compared.compared}. Apart at most: {compared.apart or 'nothing'}."
