"""One HTML page about runs, in a single file that requests nothing: the explorer, other views, conditions, environment.

records -> data of the explorer, views -> templates/page.html, with its style, scripts and libraries inside

Equal records give equal bytes. The template escapes every text. Data for the script stand in a block of JSON, and its
elements are made of text. The page's content security policy lets it run its own scripts alone, and load nothing. The
libraries, which draw, are left out where fewer than two cells could be drawn.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bench.records.record import Record, name_of_model
from bench.records.samples import Samples
from bench.records.served import ServedRecord
from reports import protocol
from reports.families import give_custom_properties
from reports.formats.markup import render_html
from reports.page.explorer import data_of_explorer
from reports.tables.table import Table
from reports.tables.views import build_views
from reports.text import to_printable

VIEWS = {  # that the explorer does not have, with their titles
    "models": "Several models",
    "grid": "Compensations",
    "skills": "Skills",
    "positions": "Perplexity by position",
    "needle": "A needle in a haystack",
    "speed": "Speed at every size",
    "served": "Served by an inference engine",
    "recovery": "Recovery by healing",
    "ablation": "One factor at a time",
    "calibration": "Calibration tokens",
    "seeds": "Draws of the calibration",
    "signal": "Signal and noise",
}
FAMILIES = "  /* families: reports/families.py */"  # what stands in page.css for their colours
LIBRARIES = ("d3", "plot")  # in reports/page/vendored, in the order in which they load


def render_page(
    records: Sequence[Record],
    title: str = "",
    *,
    samples: Samples | None = None,
    needs: Mapping[str, str] | None = None,
    remarks: Sequence[str] = (),
    served: Sequence[ServedRecord] = (),
    live: str = "",
    tables: Mapping[str, Sequence[Table]] | None = None,
    home: str = "",
) -> str:
    """Return the page of records as HTML.

    samples  the samples of the records, for paired tests
    needs    what each method looks at, by its name: "calibration, gradients"
    remarks  sentences on the records as a whole, such as which runs cannot be compared
    served   the served records of the models
    live     the ETag of a page that is served; its script asks whether the ETag still holds
    tables   the tables of VIEWS, if they are made already
    home     the address of the site that the page is part of, to which a link leads
    """
    samples = samples or Samples()
    tables = build_views(VIEWS, records, samples=samples, needs=needs, served=served) if tables is None else tables
    style, theme, script = (_read("templates", name) for name in ("page.css", "theme.js", "page.js"))
    style = style.replace(FAMILIES, give_custom_properties())
    models = ", ".join(dict.fromkeys(name_of_model(record) for record in records))
    drawn = sum(record.status == "ok" and record.cell.method != "dense" for record in records)
    libraries = [_library(name) for name in LIBRARIES if drawn > 1]
    scripts = [theme, *(library["source"] for library in libraries), script]
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title or (f"Structured pruning of {models}" if models else "No record yet"),
            conditions=_conditions(records),
            policy=_policy(scripts, live),
            remarks=remarks,
            live=live,
            home=home,
            style=Markup(style),
            theme_script=Markup(theme),
            script=Markup(script),
            libraries=libraries,
            is_filled=bool(records),
            others=_render_others(tables),
            environment=list(protocol.describe_environment(records)),
            footer=f"prunebench, {len(records):,} {'record' if len(records) == 1 else 'records'}",
            data=Markup(to_json(data_of_explorer(records, samples, served))),
        )
    )


def _render_others(tables: Mapping[str, Sequence[Table]]) -> list[tuple[str, Markup]]:
    """Return title and HTML of each view with more than the explorer."""
    several = {VIEWS[name]: _list_other_tables(tables, name) for name in VIEWS}
    return [(title, Markup(render_html(of_view))) for title, of_view in several.items() if of_view]


def _list_other_tables(tables: Mapping[str, Sequence[Table]], name: str) -> list[Table]:
    """Return the tables of a view with more than the explorer: those of speed only where something was timed."""
    several = [table for table in tables.get(name, ()) if table.name != "served"]
    return several if any(name != "speed" or not table.name.startswith("speed-sizes") for table in several) else []


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


def _read(folder: str, name: str) -> str:
    return (files("reports.page") / folder / name).read_text(encoding="utf-8")


def _library(name: str) -> dict[str, str]:
    """Return the source of a library, as markup, and its licence."""
    return {
        "source": Markup(_read("vendored", f"{name}.min.js").strip()),
        "licence": _read("vendored", f"{name}.LICENSE.txt"),
    }


def _policy(scripts: Sequence[str], live: str) -> str:
    """Return the content security policy: the given scripts, styles inside the page, and nothing else."""
    rules = [
        "default-src 'none'",
        "style-src 'unsafe-inline'",  # of the picture, which the library styles
        f"script-src {' '.join(map(_hash_of, scripts))}",
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


def _conditions(records: Sequence[Record]) -> list[str]:
    """Return the conditions of the records, then the days on which they were measured."""
    conditions = dict.fromkeys(part for record in records for part in protocol.conditions_of([record]))
    dates = sorted({str(record.environment["date"])[:10] for record in records if "date" in record.environment})
    return [*conditions, *([" to ".join(dict.fromkeys((dates[0], dates[-1])))] if dates else [])]
