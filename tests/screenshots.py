"""Pictures of a run's page for the docs:  python tests/screenshots.py RUN docs/images

A window of 1400 pixels at the summary, at the first table and, in the dark, at the figures; one of 400 at the summary.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from browser import opened

from bench.records import run_folder
from reports.page.page import page

PICTURES = {  # name: width, height, theme, section at the top
    "page-1400.png": (1400, 1500, "light", ""),
    "page-1400-table.png": (1400, 1200, "light", "results"),
    "page-1400-dark.png": (1400, 1500, "dark", "figures"),
    "page-400.png": (400, 2300, "light", ""),
}


def main(run: Path, folder: Path) -> None:
    """Write every picture of `run` into `folder`."""
    merged = run_folder.load_runs([run])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "report.html"
        path.write_text(page(merged.records, samples=merged.samples, remarks=merged.remarks), encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        for name, (width, height, theme, section) in PICTURES.items():
            with opened(
                viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
            ) as view:
                view.goto(f"{path.as_uri()}#{section}")
                view.screenshot(path=folder / name)
                print(f"{name}: {(folder / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
