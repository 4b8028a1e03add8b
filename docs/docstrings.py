"""Show lists in docstrings, names and meanings in columns, as tables on the page of the Python interface."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))

from method_pages import listed

ENTRY = r"\s*[\w.]+(?:, [\w.]+)*\s{2,}\S.*"


class Lists(griffe.Extension):
    """Rewrites the lists in every docstring that is collected."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            blocks = re.split(r"\n{2,}", obj.docstring.value)
            obj.docstring.value = "\n\n".join(listed(block) if re.match(ENTRY, block) else block for block in blocks)
