"""What engines do in their process when they go wrong; imported by those processes, so that nothing heavy is here."""

import os
import time
from pathlib import Path


def hang(line, task, complaints):
    line.alive("while it thought")
    time.sleep(600)


def crash(line, task, complaints):
    line.alive("while it computed")
    Path(complaints).write_text("/build/ggml.c:12: GGML_ASSERT(rows > 0) failed\n")
    os.abort()
