"""The site builds without a warning, asks nothing of other hosts, and can be read on a phone and in the dark."""

from __future__ import annotations

import configparser
import functools
import html
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import findings, needs_chromium, opened
from filelock import FileLock
from pages import ROOT

pytest.importorskip("material", reason="mkdocs-material is not installed; pip install 'prunebench[docs]'")
EXPLORER = "explorer.html"
LOOKED_AT = (
    "index.html",
    EXPLORER,
    "studies/all-methods.html",
    "studies/compensation.html",
    "methods/laco.html",
    "commands.html",
    "record.html",
    "api.html",
)


# KaTeX raises where it cannot read one; the strict one also where TeX could not.
DRAW_EACH = """all => all.map(tex => katex.renderToString(tex, {throwOnError: true, strict: "error"})).length"""


def tex_of_all_methods(site: Path) -> Iterator[str]:
    """Yield the TeX of each equation on the pages of methods, as a browser reads it."""
    for page in sorted((site / "methods").glob("*.html")):
        for tex in re.findall(r'<pre class="equation" data-tex="([^"]*)"', page.read_text(encoding="utf-8")):
            yield html.unescape(tex)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_: object) -> None:
        pass


def built(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a configuration below a folder, with the command that `tox -e docs` gives."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    words = tox["testenv:docs"]["commands"].replace("{work_dir}", str(folder)).split()
    command = [sys.executable, "-m", *(word for word in words if word != "{posargs}"), "--config-file", str(config)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site once for all workers, strictly: a broken link or a page outside of the navigation is an error."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(shared / "site.lock"):
        if not (shared / "site" / "sitemap.xml").exists():
            done = built(ROOT / "mkdocs.yml", shared)
            assert done.returncode == 0, done.stderr
    return shared / "site"


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Serve the site on the loopback address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def test_the_site_has_a_page_for_each_method_and_holds_no_records(site):
    assert len(list((site / "methods").glob("*.html"))) >= 23
    assert not (site / "results").exists()
    assert not list(site.glob("*.py"))


def test_the_build_refuses_a_broken_link_a_broken_anchor_and_a_page_in_no_list(tmp_path):
    """A site of two pages, built as ours is: with its settings and the command of tox."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Start\n\n[page](no-such-page.md) [part](index.md#no-such-part)\n")
    (tmp_path / "docs" / "in-no-list.md").write_text("# A page\n")
    settings = {"INHERIT": str(ROOT / "mkdocs.yml"), "docs_dir": str(tmp_path / "docs"), "nav": ["index.md"]}
    (tmp_path / "mkdocs.yml").write_text(json.dumps(settings | {"hooks": [], "plugins": [], "extra_css": []}))
    refused = built(tmp_path / "mkdocs.yml", tmp_path)
    assert refused.returncode == 1
    for wrong in ("no-such-page.md", "#no-such-part", "in-no-list.md"):
        assert any(line.count(wrong) for line in refused.stderr.splitlines()), wrong


@needs_chromium
@pytest.mark.parametrize(("width", "theme"), [(400, "dark"), (1400, "light")])
def test_pages_can_be_read_and_ask_nothing_of_other_hosts(site, address, width, theme, chromium):
    with opened(chromium, viewport={"width": width, "height": 900}, color_scheme=theme) as view:
        for path in LOOKED_AT:
            view.goto(address + path, wait_until="load")
            if path == EXPLORER:
                assert view.locator("header a").get_attribute("href") == "index.html"
                assert view.locator("#model option").count() == 5  # three models in memory, one of them in two engines
            if path == "methods/laco.html":
                view.locator("div.equation .katex").first.wait_for(state="attached", timeout=60_000)
                assert view.evaluate(DRAW_EACH, list(tex_of_all_methods(site))) > 30
            assert view.evaluate("document.documentElement.scrollWidth") <= width, path
            # but that Chromium itself lets the keyboard reach what scrolls
            hindering = findings(view, "body" if path == EXPLORER else "article")
            assert [found for found in hindering if "scrollable-region-focusable" not in found] == [], path
        assert [url for url in view.requests if not url.startswith((address, "data:", "blob:"))] == []
        assert view.complaints == []


@pytest.mark.nightly
@needs_chromium
def test_the_search_answers_without_another_host(address, chromium):
    with opened(chromium, viewport={"width": 1400, "height": 900}) as view:
        view.goto(address + "index.html")
        view.evaluate("document.querySelector('label[for=__search]').click()")
        view.get_by_text("Type to start searching").wait_for(timeout=60_000, state="attached")
        view.locator("input.md-search__input").press_sequentially("least squares")
        view.wait_for_selector(".md-search-result__item", timeout=60_000, state="attached")
        assert [url for url in view.requests if not url.startswith((address, "data:", "blob:"))] == []
