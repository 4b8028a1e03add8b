"""What Jupyter shows of a report: tables and figures as the report has them, with everything escaped."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from made_records import DENSE, FIXED, HUGE, LACO, SLICEGPT, UNICODE
from pages import ROOT

import bench
from bench.cli.main import main
from bench.records.run_folder import Merged
from bench.records.samples import Samples
from methods import UserError
from reports.formats import markup, terminal
from reports.report import RunReport
from reports.tables.views import build_view

RESULTS = ROOT / "docs" / "results"
ATTACK = "<script>alert(1)</script>&\"'"


class Elements(HTMLParser):
    """Collects the elements of a fragment, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names, self.attributes, self.text = set[str](), set[str](), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


RECORDS = [DENSE, LACO, SLICEGPT, HUGE, UNICODE, FIXED]  # with names that would be markup


@pytest.fixture
def report():
    """A report of cells of which there is something to be said."""
    return RunReport(Merged(RECORDS, Samples(), [f"remark {ATTACK}"]))


def test_a_report_is_its_tables_and_what_is_to_be_said_of_them_with_all_escaped(report):
    shown = Elements(report._repr_html_())
    assert f"remark {ATTACK}" in shown.text
    assert HUGE.cell.method in shown.text
    allowed = {"table", "caption", "thead", "tbody", "tr", "th", "td", "data", "strong", "u", "ul", "li"}
    assert shown.names <= allowed
    assert shown.attributes <= {"scope", "value", "colspan"}
    tables = build_view("main", RECORDS)
    assert report._repr_html_().endswith(markup.render_html(tables))
    assert str(report) == f"remark {ATTACK}\n{terminal.render(tables)}"
    assert repr(report) == "<report of 6 cells>"


def test_a_view_is_shown_as_the_command_line_has_it(report):
    shown, tables = report.table("by-ratio"), build_view("by-ratio", RECORDS)
    assert (shown._repr_html_(), str(shown)) == (markup.render_html(tables), terminal.render(tables))
    assert repr(shown) == f"<tables {', '.join(table.name for table in tables)}>"
    with pytest.raises(UserError, match="no view 'mian'; there are main, per-task"):
        report.table("mian")
    with pytest.raises(UserError, match="sleb"):
        report.table(reference="sleb")


def test_a_figure_is_drawn_as_an_svg_that_holds_no_markup_of_a_name(report, tmp_path):
    assert "perplexity-wiki-by-ratio" in report.figures
    every = [ElementTree.fromstring(report.figure(name)._repr_svg_()) for name in report.figures]
    assert {one.tag.rpartition("}")[2] for one in every} == {"svg"}
    assert "script" not in {element.tag.rpartition("}")[2] for one in every for element in one.iter()}
    figure = report.figure("perplexity-wiki-by-r")
    figure.save(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8") == figure.svg
    assert repr(figure).startswith("<figure perplexity-wiki-by-ratio: ")
    with pytest.raises(UserError, match="no figure is called 'perplexities'; there are perplexity-wiki"):
        report.figure("perplexities")


def test_a_folder_is_reported_with_its_samples_as_the_command_line_does(capsys):
    run = RESULTS / "inherit"
    assert main(["report", str(run), "--format", "html", "--reference", "laco"]) == 0
    assert bench.report(run).table(reference="laco")._repr_html_() == capsys.readouterr().out
    assert bench.report(str(run))._repr_html_().endswith(bench.report(run).table()._repr_html_())


def test_what_is_no_report_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="a report is of runs"):
        bench.report()
    with pytest.raises(UserError, match="is no run folder"):
        bench.report(tmp_path)
