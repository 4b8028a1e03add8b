"""Stands for vLLM's server: it writes words at once, and does as the file beside its notes says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Lock

sys.path.append(str(Path(__file__).parents[4]))

from stream_server import QuietServer, StreamHandler

from vllm import misbehave, note

if __name__ == "__main__":
    given = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
    child = subprocess.Popen(["sleep", "600"])  # as an engine that it starts
    note(server=sys.argv[1:], process=os.getpid(), child=child.pid, environment=dict(os.environ))
    behaviour = Path(os.environ["STUB_NOTES"]).with_suffix(".behaviour")
    misbehave(behaviour.read_text() if behaviour.exists() else "")
    facts = {"key": os.environ["VLLM_API_KEY"], "name": given["--served-model-name"], "lock": Lock(), "requests": []}
    server = QuietServer((given["--host"], int(given["--port"])), type("Handler", (StreamHandler,), facts))
    server.serve_forever()
