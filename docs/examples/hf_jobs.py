# /// script
# requires-python = ">=3.11"
# dependencies = ["prunebench @ git+https://HOST/OWNER/prunebench@COMMIT"]
# ///
"""Run one spec on a GPU of Hugging Face Jobs, and keep the packed run as a private data set.

Fill in above where prunebench comes from, at one commit, since no package index has it; and below ORG/NAME. Then:

    hf jobs uv run --flavor a100-large --timeout 8h --secrets HF_TOKEN docs/examples/hf_jobs.py
    python -m bench report hf://datasets/ORG/NAME

Jobs are billed by the minute. The flags were tried with `--dry-run`; no job was run.
"""

import shlex
import subprocess
import sys

LOOK = "python -m bench doctor --device cuda"
MEASURE = "python -m bench run --spec published-sleb-llama2-7b --device cuda --out run"
KEEP = "python -m bench pack run --push ORG/NAME"


def call(command: str) -> int:
    """Run a command with the Python of this script, and return its exit code."""
    print(command, flush=True)
    return subprocess.run([sys.executable, *shlex.split(command)[1:]], check=False).returncode


if code := call(LOOK):
    sys.exit(code)
measured = call(MEASURE)  # 3 where a cell has failed: the others are kept all the same
sys.exit(call(KEEP) or measured)
