"""The view positions: perplexity by the position of a token in long windows, and its multiple of the dense model's.

A later range has more context, and other tokens too, so that a model's values at two ranges are not compared. The ratio
to the dense model at one range is of the same tokens, and the ratio of the last range over that of the first is of the
same windows. It says whether a method loses more where a model has more context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from bench.plan.protocol import split_range
from bench.records.frame import ranges_of_records
from bench.records.quantity import shorten_name
from bench.regression.contrasts import LEVEL
from bench.stats.intervals import Contrast
from reports import legend, protocol
from reports.groups import TableGroup
from reports.tables.pivots import cell_of_change
from reports.tables.rows import TESTS, GroupTests, ReportData, compare_rows, row_of, sort_rows, table_of_group
from reports.tables.table import Column, Table, column_of

ABOUT = ("positions",)
GROWTH = "last / first"
BESIDE = (
    "times dense: the perplexity as a multiple of the dense model's on the same tokens, with its 95 % interval over "
    f"windows. {GROWTH}: that multiple at the last positions over that at the first; above 1 the method loses more "
    f"where there is more context. †: p < {LEVEL} ({{}}; adjusted by Holm for the cells of a column)."
)


def column_of_range(name: str) -> str:
    """Return the column of the frame of a range of positions: 'position_perplexity_wiki:512-1024'."""
    return f"position_perplexity_{name}"


def ranges_by_text(group: TableGroup) -> dict[str, list[str]]:
    """Return {text: the names of its ranges of positions} of a group, the first positions first."""
    names: dict[str, list[str]] = {}
    for name in ranges_of_records(list(chain(*group.drawn))):
        names.setdefault(split_range(name)[0], []).append(name)
    return names


def tables_of_positions(data: ReportData) -> list[Table]:
    """Return two tables for each group and text: the perplexities, and their multiples of the dense model's."""
    tables = []
    for group in data.groups:
        for text, names in ranges_by_text(group).items():
            sorted_group = sort_rows(group, column_of_range(names[0]))
            tables.append(_perplexities(sorted_group, text, names, data))
            tables += _beside_dense(sorted_group, text, names, data)
    return tables


def _perplexities(group: TableGroup, text: str, names: Sequence[str], data: ReportData) -> Table:
    columns = [replace(column_of(column_of_range(name)), label=split_range(name)[1]) for name in names]
    rows, tests = compare_rows(group, columns, data)
    records = list(chain(*group.drawn))
    flags = legend.flags_of_records(group.records_with_notes(), beside=group.beside)
    return table_of_group(
        "positions",
        group,
        columns,
        rows,
        legend.describe_columns(records, list(chain(*group.each)), ABOUT),
        name=f"positions-{shorten_name(text)}-{group.ratio}",
        title=f"perplexity on {shorten_name(text)} by position, {protocol.words_of_ratio(group.records)}",
        remarks=legend.describe_flags([*flags, *tests]),
        measured=protocol.protocol_of_records(records, ABOUT),
    )


def contrasts_with_dense(tests: GroupTests, names: Sequence[str]) -> dict[int, list[Contrast]]:
    """Return for each row that samples pair with the dense one its contrast at each range of positions, and the growth.

    The growth is the last contrast: the ratio at the last range over that at the first. Rows are single models.
    """
    if tests.dense is None:
        return {}
    pairs = [(tests.dense, place) for place in tests.rows if len(tests.models(place)) == 1]
    every = [tests.test_pairs(pairs, column_of_range(name)) for name in names]
    every.append(tests.test_pairs(pairs, column_of_range(names[-1]), base=names[0]))
    tested = set(pairs).intersection(*every)
    contrasts = {}
    for pair in (pair for pair in pairs if pair in tested):
        contrasts[pair[1]] = [each[pair] for each in every]
    return contrasts


def _beside_dense(group: TableGroup, text: str, names: Sequence[str], data: ReportData) -> list[Table]:
    """Return the table of the multiples of the dense model's perplexity; empty where no samples pair."""
    contrasts = contrasts_with_dense(GroupTests(group, data.samples), names)
    if not contrasts:
        return []
    labels = [*(split_range(name)[1] for name in names), GROWTH]
    columns = [Column(f"times_dense_{label}", label, "x") for label in labels]
    rows = []
    for place, of_row in contrasts.items():
        cells = [cell_of_change(contrast, column.name) for contrast, column in zip(of_row, columns, strict=True)]
        rows.append(row_of(group.records[place], group.label(place), cells))
    how = ", ".join(dict.fromkeys(TESTS[contrast.test] for of_row in contrasts.values() for contrast in of_row))
    title = f"perplexity on {shorten_name(text)} by position, times dense, {protocol.words_of_ratio(group.records)}"
    name = f"positions-beside-dense-{shorten_name(text)}-{group.ratio}"
    return [table_of_group("positions", group, columns, rows, [BESIDE.format(how)], name=name, title=title)]
