"""Runs the OpenAI-compatible server of an engine; run by the Python that has the engine.

The words of its command line are the engine, the address, the name of the model, its place, and words of the server:
of vLLM more flags, of llama.cpp a JSON object of threads, slots and context. The key is in the environment as KEY. The
process group ends with the standard input, and so with the process that has started it.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from threading import Event, Thread

KEY = "PRUNEBENCH_SERVER_KEY"


def serve_by_vllm(host: str, port: str, name: str, place: str, words: Sequence[str]) -> None:
    """Run vLLM's own server of a folder until it ends."""
    os.environ["VLLM_API_KEY"] = os.environ[KEY]
    own = ["--host", host, "--port", port, "--served-model-name", name, "--model", place]
    sys.argv = ["api_server", *own, *words]
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


def serve_by_llama_cpp(host: str, port: str, name: str, place: str, words: Sequence[str]) -> None:
    """Run llama.cpp's own server of a GGUF file, on the CPU, until the process is ended."""
    import xllamacpp

    facts, options = json.loads(words[0]), xllamacpp.CommonParams()
    options.model.path, options.model_alias = place, {name}
    options.hostnames, options.port, options.api_keys = [host], int(port), [os.environ[KEY]]
    options.n_parallel, options.n_ctx = facts["slots"], facts["slots"] * facts["context"]
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = facts["threads"]
    options.n_gpu_layers, options.fit_params, options.ui = 0, False, False
    options.cache_prompt, options.cache_ram_mib = False, 0  # each prompt is computed
    server = xllamacpp.Server(options)
    Event().wait()
    del server


SERVERS: dict[str, Callable[[str, str, str, str, Sequence[str]], None]] = {
    "vllm": serve_by_vllm,
    "llama.cpp": serve_by_llama_cpp,
}


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Run the server that the command line names."""
    Thread(target=_end_with_input, daemon=True).start()
    engine, host, port, name, place, *words = sys.argv[1:]
    SERVERS[engine](host, port, name, place, words)


if __name__ == "__main__":
    main()
