"""What a job of continuous integration takes from a gate: a comment for a pull request, and JUnit XML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from bench.regression.gate import Verdict
from reports.formats import markdown
from reports.tables import verdicts as tables
from reports.text import markdown_escaped, printable


def comment(verdicts: Sequence[Verdict], *, strict: bool = False) -> str:
    """Return Markdown for a pull request: the outcome, what led to it, and all figures folded away."""
    found = [f"### prunebench: {markdown_escaped(tables.summary(verdicts, strict=strict))}"]
    notable = tables.notable(verdicts)
    if notable.rows:
        found += [markdown.grid(notable), markdown.bullets(notable.notes)]
    details = markdown.render(tables.gate(verdicts, strict=strict), level=4).rstrip()
    found += ["<details><summary>all figures</summary>", details, "</details>"]
    return "\n\n".join(filter(None, found)) + "\n"


def junit(verdicts: Sequence[Verdict], *, strict: bool = False) -> str:
    """Return a test case for each metric: worse is a failure; missing, failed and incomparable are errors.

    Inconclusive is skipped, and an error if `strict`; what does not count always passes and says so.
    """
    suite = ElementTree.Element("testsuite", name="prunebench")
    kinds: Counter[str] = Counter()
    for v in verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname=printable(v.cell), name=printable(v.metric))
        kind = _junit_kind(v, strict)
        kinds[kind] += 1
        text = printable(tables.sentence(v))
        if kind == "system-out":
            ElementTree.SubElement(case, kind).text = text
        else:
            ElementTree.SubElement(case, kind, {"message": text, "type": v.word})
    suite.attrib |= {"tests": str(len(verdicts)), "failures": str(kinds["failure"]), "errors": str(kinds["error"])}
    suite.set("skipped", str(kinds["skipped"]))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _junit_kind(v: Verdict, strict: bool) -> str:
    if not v.gates:
        return "system-out"
    if v.word == "worse":
        return "failure"
    if v.word in ("failed", "missing", "incomparable") or (strict and v.word == "inconclusive"):
        return "error"
    return "skipped" if v.word == "inconclusive" else "system-out"
