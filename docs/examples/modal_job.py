"""Run one spec on a GPU of Modal, from the folder of a checkout, and bring the packed run back.

    modal run docs/examples/modal_job.py
    tar --extract --file packed.tar.gz
    python -m bench report packed

`modal secret create huggingface HF_TOKEN=...` makes the secret, which gated models such as Llama need. Weights stay in
a volume, so that a second run does not fetch them again. The app was built by Modal's own package; no function was run.
"""

import io
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import modal

LOOK = "python -m bench doctor --device cuda"
MEASURE = "python -m bench run --spec published-sleb-llama2-7b --device cuda --out run"
KEEP = "python -m bench pack run --out packed"
HOURS = 8

image = (
    modal.Image.debian_slim(python_version="3.12")
    .add_local_dir(".", "/src", copy=True, ignore=[".git", ".venv", "results", "docs/results"])
    .uv_pip_install("/src[gpu]")
    .env({"HF_HOME": "/cache/huggingface", "PRUNEBENCH_CACHE": "/cache/prunebench"})
)
app = modal.App("prunebench")
cache = modal.Volume.from_name("prunebench-cache", create_if_missing=True)


def call(command: str) -> int:
    """Run a command with the Python of the image, and return its exit code."""
    print(command, flush=True)
    return subprocess.run([sys.executable, *shlex.split(command)[1:]], check=False, cwd="/tmp").returncode


@app.function(
    image=image,
    gpu="H100",
    timeout=HOURS * 3600,
    volumes={"/cache": cache},
    secrets=[modal.Secret.from_name("huggingface")],
)
def measure() -> bytes:
    """Look at the machine, measure, and return the packed run as an archive."""
    if call(LOOK):
        raise SystemExit("this machine does not give right numbers; see above")
    call(MEASURE)  # exit code 3 where a cell has failed: the others are kept all the same
    if call(KEEP):
        raise SystemExit("nothing was measured; see above")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as packed:
        packed.add("/tmp/packed", arcname="packed")
    return archive.getvalue()


@app.local_entrypoint()
def main() -> None:
    """Write packed.tar.gz here."""
    Path("packed.tar.gz").write_bytes(measure.remote())
    print("packed.tar.gz")
