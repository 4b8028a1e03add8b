"""What tasks of a Ray cluster do in tests/engines instead of measuring a cell. Imports no torch."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from bench.engines.engine import InUse, Job, Workplace
from bench.system.worker import Limits, Worker


def tries(folder: Path, key: str) -> list[dict]:
    """What was put down when a task of that key began, one for each time."""
    return [json.loads(path.read_text()) for path in sorted((folder / "tries").glob(f"{key}.*"))]


def _begin(asked: Job) -> dict:
    import ray

    began = {
        "pid": os.getpid(),
        "node": ray.get_runtime_context().get_node_id(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "directory": str(Path.cwd()),
        "slots": asked.run.slots,
        "began": time.monotonic(),
    }
    put_down = Path(asked.folder, "tries", f"{asked.key}.{time.time_ns()}")
    put_down.parent.mkdir(exist_ok=True)
    put_down.with_name(f".{put_down.name}").write_text(json.dumps(began))
    put_down.with_name(f".{put_down.name}").rename(put_down)
    return began


def naps(text: str, out: str, place: object = None) -> None:
    """Sleep for the job's seconds, and put down in its part where, and from when to when."""
    asked = Job.from_json(text)
    began = _begin(asked)
    time.sleep(asked.search.seconds[0])
    _put_down(asked, out, began)


def _put_down(asked: Job, out: str, began: dict) -> None:
    Path(out, "cells").mkdir(parents=True, exist_ok=True)
    Path(out, "cells", f"{asked.key}.json").write_text(json.dumps(began | {"ended": time.monotonic()}))
    Path(out, "other").write_text("which is not sent")


def sleeps(text: str, out: str, place: object = None) -> None:
    """Sleep for the job's seconds, and leave nothing."""
    time.sleep(Job.from_json(text).search.seconds[0])


def meets(text: str, out: str, place: object = None) -> None:
    """Wait until as many have begun as the job's number of seconds."""
    asked = Job.from_json(text)
    began = _begin(asked)
    while len(list(Path(asked.folder, "tries").glob("[!.]*"))) < asked.search.seconds[0]:
        time.sleep(0.05)
    _put_down(asked, out, began)


def stays_once(text: str, out: str, place: object = None) -> None:
    """Sleep for ever when it is tried for the first time, and not at all then."""
    asked = Job.from_json(text)
    if not tries(Path(asked.folder), asked.key):
        _begin(asked)
        time.sleep(600)
    naps(text, out)


def falls(text: str, out: str, place: object = None) -> None:
    """Be killed, whenever it is tried."""
    _begin(Job.from_json(text))
    os.kill(os.getpid(), signal.SIGKILL)


def has_child(text: str, out: str, place: object = None) -> None:
    """Sleep in a process of its own, as a cell is measured, and put down which."""
    asked = Job.from_json(text)

    def hear(found: dict) -> None:
        Path(asked.folder, f"{asked.key}.child").write_text(str(found["pid"]))

    with Worker() as process:
        process.run(_naps_as_child, (asked,), limits=Limits(), hear=hear)


def _naps_as_child(line, asked: Job) -> None:
    line.send({"pid": os.getpid()})
    time.sleep(asked.search.seconds[0])


def fails(text: str, out: str, place: object = None) -> None:
    """Fail as nobody foresaw."""
    raise RuntimeError("no such thing")


def is_in_use(text: str, out: str, place: object = None) -> None:
    """Find that another process measures the cell."""
    raise InUse("the part is in use")


def fills_memory(text: str, out: str, place: object = None) -> None:
    """Work until it is ended."""
    _begin(Job.from_json(text))
    time.sleep(600)


def tells_child(text: str, out: str, place: Workplace) -> None:
    """Nap in a process of the place, and put down which GPUs that sees and which the task has."""
    asked = Job.from_json(text)
    began, told = _begin(asked), dict[str, object]()
    place.run(_sees_as_child, (asked.search.seconds[0],), variables={}, limits=Limits(), hear=told.update)
    _put_down(asked, out, began | told)


def _sees_as_child(line, seconds: float) -> None:
    line.send({"child": os.getpid(), "child_gpus": os.environ.get("CUDA_VISIBLE_DEVICES")})
    time.sleep(seconds)
