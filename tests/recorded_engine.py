"""Stands for a Python that has vLLM or SGLang: it notes what it is given and writes what those engines write.

The times follow from the bytes of the model's weights, so that a smaller model is faster. Run as a program.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

STEP, PROMPT = 1e-9, 2e-9  # seconds for a byte of weights


def value(flag: str) -> str:
    return sys.argv[sys.argv.index(flag) + 1]


def weights(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def main() -> None:
    notes = Path(os.environ["RECORDED_NOTES"])
    with notes.open("a", encoding="utf-8") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    if sys.argv[1] == "-c":
        print("FutureWarning: something will change", file=sys.stderr)
        print("hello from sitecustomize")
        print(os.environ.get("RECORDED_DEVICE", '["", 0]') if "torch" in sys.argv[2] else "0.33.0")
    elif behaviour := os.environ.get("RECORDED_ENGINE"):
        misbehave(behaviour)
    else:
        answer()


def misbehave(behaviour: str) -> None:
    if behaviour == "hangs":
        time.sleep(600)
    elif behaviour == "takes its time":
        for number in range(6):
            print(f"\rloading {number}/6", end="", file=(sys.stdout, sys.stderr)[number % 2], flush=True)
            time.sleep(0.5)
        sys.exit("OutOfMemoryError")
    elif behaviour == "says no UTF-8":
        sys.stdout.buffer.write(b"\xff\xfe broken")
        sys.exit(1)
    elif behaviour == "fails":
        print("RuntimeError: Engine core initialization failed")
        sys.exit(1)
    elif behaviour == "has no memory":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "Engine core ended. " * 99)
        sys.exit(1)
    elif behaviour == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    assert behaviour == "is silent"


def answer() -> None:
    if sys.argv[1].endswith("_likelihood.py"):
        sequences = json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
        nats = json.loads(os.environ["RECORDED_NATS"])
        Path(sys.argv[4]).write_text(json.dumps(nats * len(sequences)), encoding="utf-8")
    elif sys.argv[2] == "vllm.entrypoints.cli.main":
        size, tokens = weights(value("--model")), int(value("--output-len"))
        seconds = [
            (PROMPT + STEP * (tokens - 1)) * size * (1 + 0.01 * number) for number in range(int(value("--num-iters")))
        ]
        found = {"avg_latency": sum(seconds) / len(seconds), "latencies": seconds, "percentiles": {"50": seconds[0]}}
        Path(value("--output-json")).write_text(json.dumps(found), encoding="utf-8")
    else:
        size = weights(value("--model-path"))
        found = {"run_name": "default", "prefill_latency": PROMPT * size, "median_decode_latency": STEP * size}
        Path(value("--result-filename")).write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
