"""Headless Chromium for tests of pages, and the engine that finds what hinders readers with a disability."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; as root: apt-get install chromium")


@contextmanager
def started() -> Iterator[Any]:
    """A browser. Nothing that runs a loop of asyncio may be called while it is open."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, **context: Any) -> Iterator[Any]:
    """A blank page that remembers nothing of another. It collects `complaints`: errors of scripts and of the policy."""
    page = browser.new_context(**context).new_page()
    page.complaints, page.requests = [], []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("dialog", lambda dialog: (page.complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: page.requests.append(request.url))
    try:
        yield page
    finally:
        page.context.close()


# What axe would go through for long: strokes of drawings that are no charts, what nobody sees before it is opened, and
# entries of a list behind its fifth, which are as those before unless they hold a list.
NOTHING_NEW = (
    ".scroll svg g, details:not([open]) > :not(summary), "
    "dd:nth-of-type(n + 6):not(:has(dl)), dt:nth-of-type(n + 6):not(:has(+ dd > dl))"
)


# Of all elements with text it marks those whose colours, size, weight and grounds no element before them has. Axe looks
# for what lies behind each, which for a page of 1,500 figures takes six times as long as all its other rules.
MARK_EACH_KIND_OF_TEXT = """(inside) => {
  const kinds = new Set(), hasText = (node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim();
  for (const element of document.querySelectorAll(`${inside} *`)) {
    if (![...element.childNodes].some(hasText) && !element.matches("input, select, textarea")) continue;
    const style = getComputedStyle(element), kind = [style.color, style.fill, style.fontSize, style.fontWeight];
    for (let each = element; each; each = each.parentElement) {
      const { backgroundColor, backgroundImage, opacity, filter } = getComputedStyle(each);
      const ground = [backgroundColor, backgroundImage, opacity, filter].join();
      if (ground !== "rgba(0, 0, 0, 0),none,1,none") kind.push(ground);
    }
    if (!kinds.has(kind.join(";"))) element.dataset.kindOfText = kinds.size;
    kinds.add(kind.join(";"));
  }
  return kinds.size;
}"""


def findings(page: Any, inside: str = "html") -> list[str]:
    """What axe finds serious or critical in an element, each with its nodes. NOTHING_NEW is taken out of the page.

    Contrast is looked at once for each kind of text.
    """
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate("all => document.querySelectorAll(all).forEach((element) => element.remove())", NOTHING_NEW)
    assert page.evaluate(MARK_EACH_KIND_OF_TEXT, inside)
    violations = [
        found
        for context, rules in (
            (inside, {"rules": {"color-contrast": {"enabled": False}}}),
            (f"{inside} [data-kind-of-text]", {"runOnly": ["color-contrast"]}),
        )
        for found in Axe()
        .run(page, context=context, options={"resultTypes": ["violations"], **rules})
        .response["violations"]
    ]
    return [
        f"{found['id']}: {[node['html'][:120] for node in found['nodes'][:3]]}"
        for found in violations
        if found["impact"] in ("serious", "critical")
    ]
