"""What trackers have kept, read through their own interfaces: {key of a cell: Kept}."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Kept:
    """One run of a tracker: the last value of each metric, every (step, value) of it, and the bytes of its page."""

    name: str
    group: str
    ended: bool
    parameters: dict[str, Any]
    metrics: dict[str, float]
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    page: bytes | None = None


def mlflow() -> list[tuple[str, Kept]]:
    from mlflow import MlflowClient

    client, found = MlflowClient(), list[tuple[str, Kept]]()
    for run in client.search_runs([client.get_experiment_by_name("prunebench").experiment_id]):
        number, tags = run.info.run_id, run.data.tags
        histories = {name: client.get_metric_history(number, name) for name in run.data.metrics}
        [artifact] = client.list_artifacts(number)
        assert artifact.path == "report.html"
        kept = Kept(
            run.info.run_name,
            tags["prunebench.run_folder"],
            run.info.status in ("FINISHED", "FAILED"),
            run.data.params,
            run.data.metrics,
            {name: [(point.step, point.value) for point in points] for name, points in histories.items()},
            Path(client.download_artifacts(number, artifact.path)).read_bytes(),
        )
        found.append((tags["prunebench.cell"], kept))
    return found


def trackio() -> list[tuple[str, Kept]]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    found = list[tuple[str, Kept]]()
    for run in trackio.Api().runs("prunebench"):
        history = dict[str, list[tuple[int, float]]]()
        for row in SQLiteStorage.get_logs("prunebench", run.name, run_id=run.id):
            for name, value in row.items():
                if name not in ("step", "timestamp"):
                    history.setdefault(name, []).append((row["step"], value))
        [report] = SQLiteStorage.get_run_artifacts("prunebench", run.name, run.id)["output"]
        manifest = SQLiteStorage.get_artifact_manifest("prunebench", report["name"], f"v{report['version']}")[
            "manifest"
        ]
        assert [file["path"] for file in manifest] == ["report.html"]
        from trackio.cas import blob_path

        page = blob_path("prunebench", manifest[0]["digest"]).read_bytes()
        config, last = run.config, {name: points[-1][1] for name, points in history.items()}
        found.append((run.name, Kept(config["name"], config["_Group"], True, config, last, history, page)))
    return found


def wandb(folder: Path = Path("wandb")) -> list[tuple[str, Kept]]:
    """Read the files that a later `wandb sync` would send."""
    import wandb as package
    from google.protobuf.json_format import MessageToDict

    package.teardown()  # which writes what is left
    found = list[tuple[str, Kept]]()
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        kept = Kept("", "", False, {}, {})
        key = ""
        for record in map(MessageToDict, _records(path.read_bytes())):
            if "run" in record:
                key, kept.name, kept.group = (record["run"][name] for name in ("runId", "displayName", "runGroup"))
                assert not record["run"].get("host")
            _keep(record, kept)
        found.append((key, kept))
    return found


def _keep(record: dict[str, Any], kept: Kept) -> None:
    """Add what a record of wandb's file holds."""
    for item in record.get("config", {}).get("update", ()):
        kept.parameters[_name(item)] = json.loads(item["valueJson"])
    summary = record.get("summary", {}).get("update", ())
    kept.metrics |= {_name(item): json.loads(item["valueJson"]) for item in summary if not _name(item).startswith("_")}
    if "history" in record:
        step = int(record["history"]["step"].get("num", 0))
        for item in record["history"]["item"]:
            if not _name(item).startswith("_"):
                kept.history.setdefault(_name(item), []).append((step, json.loads(item["valueJson"])))
    if "artifact" in record:
        [file] = record["artifact"]["manifest"]["contents"]
        assert file["path"] == "report.html"
        kept.page = Path(file["localPath"]).read_bytes()
    kept.ended |= "exit" in record
    assert "environment" not in record  # of the machine


def _name(item: dict[str, Any]) -> str:
    return item["key"] if "key" in item else ".".join(item["nestedKey"])


def _records(content: bytes) -> list[Any]:
    """The records of a file in the format of LevelDB's logs: blocks of 32 KiB with parts of records."""
    from wandb.proto.wandb_internal_pb2 import Record

    found, whole, at = list[Any](), b"", 7  # behind the head of the file
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found


READERS = {"mlflow": mlflow, "trackio": trackio, "wandb": wandb}
