"""Shared by several test files."""

from __future__ import annotations

from pathlib import Path

PAGES = Path(__file__).parent.parent / "docs" / "methods"


def rows() -> list[tuple[str, ...]]:
    """Every table row of every page, its cells without backticks."""
    lines = [line for page in PAGES.glob("*.md") for line in page.read_text(encoding="utf-8").splitlines()]
    return [tuple(cell.strip().strip("`") for cell in line.strip("|").split(" | ")) for line in lines if "|" in line]
