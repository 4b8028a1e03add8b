"""LaTeX: escaped whatever a name holds, and compiled by a stock TeX Live where there is one."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import made_served
import pytest
from made_records import DENSE, LACO, MENDED, RECORDS, changed, failed
from made_samples import MadeSamples, any_figures
from made_skills import with_what_a_view_needs

from bench.records.record import Record
from reports.formats import markup
from reports.formats.latex import escape, render
from reports.tables.views import VIEWS, build_view

HOSTILE = [
    "a_b&c%$#{}~^\\`",
    "<script>\"x\" 'y' --- ''z'' ,,",
    "größe Øç ž α λ=剪枝",
    "*star",
    "[1em]x",
    "\\input{/etc/passwd}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_latex_would_obey_is_left(text):
    found = escape(text)
    assert found.isascii()
    bare = re.sub(
        r"\\(text[a-z]+|ttfamily|symbol\{34\}|ss|o|ae|v|c|\"|[#$%&_{}])(\{\}|\{[a-z]\})?|\$[\\a-z^{}]+\$",
        "",
        found,
        flags=re.I,
    )
    assert not set(bare) & set('\\$%#&_^~`"<>')
    assert not re.search(r"--|''|,,", found)


@pytest.mark.parametrize("name", VIEWS)
def test_tables_are_whole_and_ascii(name):
    again = changed(LACO, "cell", "parameters", to={"sentences": 9, "tokens": 16})  # something to set against laco
    records = MENDED if name == "grid" else [*RECORDS, again]
    records = records + [changed(record, "cell", "seed", to=1) for record in records] * (name == "seeds")
    records = records + [changed(record, "cell", "model", to="other_model") for record in records] * (name == "models")
    more_tokens = [changed(record, "cell", "protocol", "calibration_sequences", to=64) for record in records]
    records = records + more_tokens * (name == "calibration")
    points = [made_served.point("prefill"), made_served.point()]
    served = [made_served.record(points=points), made_served.record("laco_2", "q8_0", points=points)]
    records = records + [changed(LACO, "cell", "method", to=f"own_{n}") for n in range(4)] * (name == "signal")
    records = [with_what_a_view_needs(record, name) for record in records]
    text = render(build_view(name, records, samples=MadeSamples(any_figures), served=served))
    assert text.isascii()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\toprule") > 0
    for grid in re.findall(r"\\begin\{tabular\}\{([^\n]*)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        columns = len(re.sub(r"@\{\}|\{34mm\}", "", grid[0]))
        for line in grid[1].splitlines():
            if line.endswith(r"\\"):
                spans = [int(width) for width in re.findall(r"\\multicolumn\{(\d+)\}", line)]
                assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) - len(spans) == columns


def test_marks_and_powers():
    third = changed(
        changed(LACO, "cell", "method", to="sleb"), "measured", "perplexity", "wiki", "perplexity", to=3.4e8
    )
    text = render(build_view("main", [DENSE, LACO, third]))
    assert r"\textbf{\boldmath 343} & \,$\pm$ 46" in text
    assert r"$3.4{\times}10^{8}$" in text


def test_labels_of_a_document_are_unique():
    labels = re.findall(r"\\label\{(.*?)\}", "".join(render(build_view(name, RECORDS)) for name in VIEWS))
    assert len(labels) == len(set(labels)) > 10


@pytest.mark.parametrize("name", ["main", "per-task"])
def test_cells_that_all_failed_are_a_table_in_every_format(name):
    tables = build_view(name, [failed("error", method, "it broke") for method in ("laco", "flap")])
    assert ": flap, laco [error: it broke]." in render(tables)
    lines = list(csv.DictReader(io.StringIO(markup.render_csv(tables))))
    assert {(line["label"], line["failure"]) for line in lines} == {("laco", "error"), ("flap", "error")}


def many() -> list[Record]:
    """More rows than a page holds, and more failures than fit below a table."""
    found = [changed(LACO, "cell", "method", to=f"method {number}") for number in range(50)]
    return [DENSE, *found, *(failed("error", f"broken {number}", f"why {number} " * 60) for number in range(70))]


def test_what_is_longer_than_a_page_goes_on_in_another_table():
    for name in ("main", "speed"):
        text = render(build_view(name, many()))
        parts = text.split(r"\end{table}")
        assert max(part.count(r" \\") for part in parts) <= 42  # two of them head and dense model
        for number in range(50):
            assert text.count(f"\nmethod {number} ") + text.count(f"\nmethod {number} at 0.3 ") > 0
        for number in range(70):
            assert len(re.findall(rf"broken {number}(?: at 0.3)?\s(?:\\par\n)?\[error:", text)) == 1
        labels = re.findall(r"\\label\{(.*?)\}", text)
        assert len(labels) == len(set(labels)) > 3
        assert text.count("(continued)") == len([one for one in labels if re.search(r"-\d+$", one)]) > 1


def test_long_words_are_broken_and_short_ones_are_not():
    wide = replace(LACO, decisions={"removed_layers": list(range(0, 30, 2))})
    text = render(build_view("decisions", [DENSE, wide]))
    assert r"\begin{tabular}{lrp{34mm}}" in text
    assert r"{\raggedright 0, 2, 4," in text
    assert "p{" not in render(build_view("decisions", [DENSE, LACO]))


def compiled(folder: Path, text: str) -> str:
    """What pdflatex says; fails where it does not come to its end."""
    (folder / "report.tex").write_text(text, encoding="ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Undefined" not in done.stdout
    return done.stdout


needs_latex = pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="no pdflatex; as root: apt-get install texlive-latex-recommended"
)


@needs_latex
def test_no_table_is_taller_than_its_page(tmp_path):
    said = compiled(tmp_path, render([table for name in VIEWS for table in build_view(name, many())], standalone=True))
    assert "Float too large" not in said
    assert "Overfull" not in said


@needs_latex
def test_every_view_compiles_as_it_is(tmp_path):
    records = [DENSE, LACO, *(changed(LACO, "cell", "method", to=name) for name in HOSTILE)]
    records += [failed("error", HOSTILE[0], HOSTILE[1]), failed("out_of_memory", HOSTILE[2], HOSTILE[3])]
    records = [changed(record, "cell", "display_name", to=HOSTILE[0]) for record in records]
    records = [replace(record, decisions=LACO.decisions) for record in records]
    tables = [table for name in VIEWS for table in build_view(name, records)]
    compiled(tmp_path, render(tables, standalone=True))
    if shutil.which("pdftotext"):
        subprocess.run(["pdftotext", "-layout", "report.pdf"], cwd=tmp_path, check=True)
        shown = (tmp_path / "report.txt").read_text(encoding="utf-8")
        assert "ab&c%$#{}" in re.sub(r"[\s_]", "", shown)  # an underscore is drawn as a rule
        assert "/etc/passwd" in shown
        assert "root:" not in shown
