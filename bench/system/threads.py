"""Says how threads of a CPU wait while they have no work, which is read once, when torch is imported."""

from __future__ import annotations

import os


def let_threads_wait() -> None:
    """Have threads without work wait 0.1 ms awake and then asleep, unless the user has said how they wait.

    Asleep at once they slow an idle machine down, awake for long a shared one, by much (tests/benchmarks/README.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # of libgomp, which torch's own packages have for Linux


def waiting() -> dict[str, str]:
    """Return how threads wait, where that was said; it decides how fast small operations are on a CPU."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    return {name.lower(): os.environ[name] for name in names if name in os.environ}
