"""LaTeX: escaped whatever a name holds, and compiled by a stock TeX Live where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from test_reports import DENSE, LACO, MENDED, RECORDS, changed, failed

from reports.latex import escaped, render
from reports.views import VIEWS, view

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
    found = escaped(text)
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
    text = render(view(name, MENDED if name == "grid" else [*RECORDS, again]))
    assert text.isascii()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\toprule") > 0
    for grid in re.findall(r"\\begin\{tabular\}\{([^\n]*)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        columns = len(re.sub(r"@\{\}", "", grid[0]))
        for line in grid[1].splitlines():
            if line.endswith(r"\\"):
                spans = [int(width) for width in re.findall(r"\\multicolumn\{(\d+)\}", line)]
                assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) - len(spans) == columns


def test_marks_and_powers():
    third = changed(
        changed(LACO, "cell", "method", to="sleb"), "measured", "perplexity", "wiki", "perplexity", to=3.4e8
    )
    text = render(view("main", [DENSE, LACO, third]))
    assert r"\textbf{\boldmath 343} & \,$\pm$ 46" in text
    assert r"\underline{$3.4{\times}10^{8}$}" in text


def test_labels_of_a_document_are_unique():
    labels = re.findall(r"\\label\{(.*?)\}", "".join(render(view(name, RECORDS)) for name in VIEWS))
    assert len(labels) == len(set(labels)) > 10


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex; texlive-latex-recommended has it")
def test_every_view_compiles_as_it_is(tmp_path):
    records = [DENSE, LACO, *(changed(LACO, "cell", "method", to=name) for name in HOSTILE)]
    records += [failed("error", HOSTILE[0], HOSTILE[1]), failed("out_of_memory", HOSTILE[2], HOSTILE[3])]
    records = [changed(record, "cell", "display_name", to=HOSTILE[0]) for record in records]
    records = [replace(record, decisions=LACO.decisions) for record in records]
    tables = [table for name in VIEWS for table in view(name, records)]
    (tmp_path / "report.tex").write_text(render(tables, standalone=True), encoding="ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Undefined" not in done.stdout
    if shutil.which("pdftotext"):
        subprocess.run(["pdftotext", "-layout", "report.pdf"], cwd=tmp_path, check=True)
        shown = (tmp_path / "report.txt").read_text(encoding="utf-8")
        assert "ab&c%$#{}" in re.sub(r"[\s_]", "", shown)  # an underscore is drawn as a rule
        assert "/etc/passwd" in shown
        assert "root:" not in shown
