"""The types of the packages hold, strictly, as pyproject.toml has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_types_hold():
    found = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
