"""`python -m bench`, and the command `prunebench`."""

from __future__ import annotations

import sys
from typing import NoReturn

from bench.cli.main import main
from bench.system import interrupt


def command() -> NoReturn:
    """Run one command, and end the process with its exit code: within seconds where it was interrupted."""
    code = main()
    if code in interrupt.CODES:
        interrupt.end_soon(code)
    sys.exit(code)


if __name__ == "__main__":
    command()
