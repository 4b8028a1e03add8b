"""Pictures of runs for the docs:  python tests/screenshots.py docs/images RUN...

Of the page of them all a window of 1400 pixels at its top.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from browser import opened, started
from PIL import Image

from bench.records import run_folder
from reports.page.page import render_page

PICTURES = {  # name: width, height, theme, section at the top
    "page-1400.png": (1400, 1450, "light", ""),
}


def main(folder: Path, *runs: Path) -> None:
    """Write every picture of the page of some runs into `folder`."""
    merged = run_folder.load_runs([*runs])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, started() as browser:
        path = Path(scratch) / "report.html"
        path.write_text(render_page(merged.records, samples=merged.samples, remarks=merged.remarks), encoding="utf-8")
        for name, (width, height, theme, section) in PICTURES.items():
            context = {"viewport": {"width": width, "height": height}, "color_scheme": theme}
            with opened(browser, **context, reduced_motion="reduce") as view:
                view.goto(path.as_uri())
                view.evaluate("(name) => document.getElementById(name)?.scrollIntoView()", section)
                view.screenshot(path=folder / name)
                with Image.open(folder / name) as picture:  # a third of the bytes, by colours that nobody misses
                    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(folder / name, optimize=True)
                print(f"{name}: {(folder / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
