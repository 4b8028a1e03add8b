"""Returns the inference engine that is asked for."""

from __future__ import annotations

from bench.plan.served import LLAMA_CPP, ServedProtocol
from bench.served.by_llama_cpp import ByLlamaCpp
from bench.served.by_other_python import ByOtherPython
from bench.served.engine import ServingEngine
from bench.system.threads import usable_cores


def engine(asked: ServedProtocol, threads: int | None) -> ServingEngine:
    """Return what serves models as asked, with as many threads, None for all cores."""
    threads = threads or usable_cores()
    if asked.engine == LLAMA_CPP:
        return ByLlamaCpp(asked, threads)
    return ByOtherPython(asked, threads)
