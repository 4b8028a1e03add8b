"""One HTML page about a run, in a single file that loads nothing else: summary, tables, figures, every cell.

records -> summary, views, figures, cells -> templates/page.html, with its style and scripts inside

Equal records give equal bytes. The template escapes every text. Data for the script stand in a block of JSON. The
page's content security policy lets it run and load only its own parts.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bench.records.record import Record, name_of_model
from bench.records.samples import Samples
from bench.records.served import ServedRecord
from reports import legend, protocol
from reports.figures.catalogue import figures_of_report
from reports.figures.figure import Figure, to_svg
from reports.groups import names_of_draws, names_of_seeds, seeds_of
from reports.page.charts import shapes_of_chart, to_inline
from reports.page.sections import VIEWS, PageRow, list_rows, ratios_of, sections_of_views, tables_of_summary
from reports.page.summary import summarise_setups
from reports.tables import whole_cell
from reports.tables.table import Table
from reports.tables.views import build_views
from reports.text import to_printable

LONG = 600  # characters of a value that the page shows; `show` prints all


def render_page(
    records: Sequence[Record],
    title: str | None = None,
    *,
    samples: Samples | None = None,
    needs: Mapping[str, str] | None = None,
    remarks: Sequence[str] = (),
    served: Sequence[ServedRecord] = (),
    live: str = "",
    tables: Mapping[str, Sequence[Table]] | None = None,
    drawings: Iterable[tuple[Figure, str]] | None = None,
) -> str:
    """Return the page of a run's records as HTML, with its summary, tables, figures and cells.

    samples   the samples of the records, for paired tests
    needs     what each method looks at, by its name: "calibration, gradients"
    remarks   sentences on the records as a whole, such as which runs cannot be compared
    served    the served records of the models
    live      the ETag of a page that is served; its script asks whether the ETag still holds
    tables    the tables of reports.page.sections.VIEWS, if they are made already
    drawings  every figure with its SVG, if they are made already or a gallery makes them
    """
    samples = samples or Samples()
    rows, targets = list_rows(records)
    tables = build_views(VIEWS, records, samples=samples, needs=needs, served=served) if tables is None else tables
    parts = sections_of_views(tables, targets, {row.ratio_title: row.ratio for row in rows})
    style, theme, script = (_template(name) for name in ("page.css", "theme.js", "page.js"))
    models = ", ".join(dict.fromkeys(name_of_model(record) for record in records))
    summary, cells = tables_of_summary(summarise_setups(records, samples)), [_cell(row) for row in rows]
    if drawings is None:
        drawings = (
            (figure, to_svg(figure)) for figure in figures_of_report(records, samples, served=served, needs=needs)
        )
    drawn = [_drawing(*figure_and_svg) for figure_and_svg in drawings]  # last, since a gallery may still write them
    first = _first(drawn)
    rest = [figure for figure in drawn if figure not in first]
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title or (f"Structured pruning of {models}" if models else "No record yet"),
            conditions=_conditions(records),
            policy=_policy(style, [theme, script], live),
            remarks=remarks,
            live=live,
            style=Markup(style),
            theme_script=Markup(theme),
            script=Markup(script),
            links=_links(parts, first, rest),
            first=first,
            summary=summary,
            ratios=ratios_of(rows),
            sections=parts,
            figures=rest,
            cells=cells,
            environment=list(protocol.describe_environment(records)),
            footer=f"prunebench, {len(records):,} {'record' if len(records) == 1 else 'records'}",
            data=Markup(to_json(_data([{"tables": summary}, *parts], rows))),
        )
    )


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("reports.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )


def _visible(value: Any) -> Any:
    """Return text with its control and direction characters written out."""
    return to_printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _template(name: str) -> str:
    return (files("reports.page") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, scripts: Sequence[str], live: str) -> str:
    """Return the content security policy: the given style and scripts, pictures inside the page, and nothing else."""
    rules = [
        "default-src 'none'",
        f"style-src {_hash_of(style)}",
        f"script-src {' '.join(map(_hash_of, scripts))}",
        "img-src data:",
        *(["connect-src 'self'"] if live else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(rules)


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def to_json(value: Any) -> str:
    """Return a value as JSON that ends neither a script element nor a line of a script."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(parts: Sequence[dict[str, Any]], rows: Sequence[PageRow]) -> dict[str, Any]:
    """Return the data of the script: columns and raw values of tables, titles of cells, and their deviating columns."""
    return {
        "columns": {table["id"]: table["names"] for part in parts for table in part["tables"]},
        "tables": {table["id"]: table["figures"] for part in parts for table in part["tables"]},
        "titles": {row.id: to_printable(_title(row)) for row in rows},
        "drawn": {row.id: row.deviating for row in rows if row.deviating},
    }


def _links(parts: Sequence[dict[str, Any]], first: Sequence[Any], rest: Sequence[Any]) -> list[tuple[str, str]]:
    links = [
        *[("charts", "At a glance")] * bool(first),
        ("summary", "In short"),
        *((part["name"], part["title"]) for part in parts),
    ]
    return [*links, *[("figures", "Figures")] * bool(rest), *[("cells", "Every cell")] * bool(parts)]


def _conditions(records: Sequence[Record]) -> list[str]:
    """Return the conditions of the records, then the days on which they were measured."""
    conditions = dict.fromkeys(part for record in records for part in protocol.conditions_of([record]))
    dates = sorted({str(record.environment["date"])[:10] for record in records if "date" in record.environment})
    return [*conditions, *([" to ".join(dict.fromkeys((dates[0], dates[-1])))] if dates else [])]


def _drawing(figure: Figure, element: str) -> dict[str, Any]:
    """Return a figure for the template: its charts if it has any, otherwise its SVG."""
    charts, picture = (
        [shapes_of_chart(chart) for chart in figure.charts],
        "" if figure.charts else Markup(to_inline(element)),
    )
    title, _, beside = figure.title.partition("; ")
    return {
        "title": title,
        "beside": beside[:1].upper() + beside[1:],
        "description": figure.description,
        "charts": charts,
        "svg": picture,
        "quality": charts[0]["y"] if charts else figure.name,
    }


def _first(drawn: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the figures at the top, which are those of the first quality; the first of several with one title."""
    quality = [figure for figure in drawn if figure["quality"] == drawn[0]["quality"]]
    return list({figure["title"]: figure for figure in reversed(quality)}.values())[::-1]


def _title(row: PageRow) -> str:
    first, seeds, draws = row.records[0], seeds_of(row.records), len(row.records)
    if len(seeds) > 1:
        return (
            f"{whole_cell.title_of_cell(first).removesuffix(f', {names_of_seeds(seeds_of([first]))}')}, "
            f"{names_of_seeds(seeds)}"
        )
    return whole_cell.title_of_cell(first) + (f", {draws} draws" if draws > 1 else "")


def _cell(row: PageRow) -> dict[str, Any]:
    """Return everything about the records of one row for the template, with the protocol of their measurement."""
    first, several = row.records[0], len(row.records) > 1
    is_measured = first.status == "ok"
    peers, rows = list(row.records), list(row.rows)
    if row.dense and row.dense[0] is not first:
        peers, rows = [row.dense[0], *peers], [row.dense[1], *rows]
    return {
        "id": row.id,
        "label": row.label,
        "ratio": row.ratio,
        "title": _title(row),
        "failure": "" if is_measured else legend.words_of_status(first),
        "reading": legend.describe_columns(peers, rows, seeds=len(seeds_of(row.records)) > 1) if is_measured else [],
        "protocol": protocol.protocol_of_records(peers) if is_measured else [],
        "blocks": [
            {"name": block.name + (f", {which}" if several else ""), "inside": _shorten_fact(block).inside}
            for which, record in zip(names_of_draws(row.records), row.records, strict=True)
            for block in whole_cell.facts_of(record)
        ],
    }


def _shorten_fact(fact: whole_cell.Fact) -> whole_cell.Fact:
    """Return a fact with very long values shortened, such as the numbers of a thousand channels."""
    value = fact.value
    if len(value) > LONG:
        value = f"{value[:LONG].rpartition(' ')[0]} … (`python -m bench show` prints all of it)"
    return whole_cell.Fact(fact.name, value, tuple(_shorten_fact(inside) for inside in fact.inside), fact.table)
