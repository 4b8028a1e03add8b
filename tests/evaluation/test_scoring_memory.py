"""Scoring needs less memory than lm-eval's own backend on the same documents, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from bench.data import pretrained, task_loading
from bench.evaluation import tasks
from bench.evaluation.scoring import Scorer, make_stock_scorer
model, tokenizer = pretrained.load("smollm2-135m", torch.device("cpu"), torch.float32)
lm = (Scorer if sys.argv[1] == "shared" else make_stock_scorer)(model, tokenizer)
task = task_loading.load_tasks(["hellaswag"])["hellaswag"]
tasks.evaluate(lm, {"hellaswag": task}, {"hellaswag": task_loading.draw_documents(task, 8, 0)})
print([int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""

pytestmark = [
    pytest.mark.default_model,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc"),
]


def peak_kib(scorer: str) -> int:
    """The most memory that the process had resident."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, scorer], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@pytest.mark.nightly
def test_the_peak_is_below_that_of_lm_eval():
    assert peak_kib("shared") < peak_kib("stock")
