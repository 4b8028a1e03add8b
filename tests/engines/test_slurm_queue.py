"""What Slurm refuses for a while, holds back or forgets costs no cell that runs, and changes no outcome."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from engine_jobs import job
from made_slurm import Enough, MadeSlurm, wait_a_little
from slurm_jobs import session_needs

from bench.engines import slurm
from bench.engines.engine import PARTS, InUse
from bench.engines.slurm import ENDED, JOB, LOGS, Slurm, measure_on_node
from bench.system import interrupt
from methods.errors import UserError
from methods.files import write_atomically

LIMIT = "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates a limit\n"


@pytest.fixture
def made(tmp_path, monkeypatch):
    return MadeSlurm.put_in_place(monkeypatch, tmp_path / "slurm")


def waits(session) -> None:
    with pytest.raises(Enough):
        wait_a_little(session)


def is_measured(folder, key: str) -> None:
    """Write what an element leaves that has measured its cell."""
    part = folder / PARTS / key
    (part / "cells").mkdir(parents=True)
    (part / "cells" / f"{key}.json").write_text("{}")
    (part / ENDED).write_text(json.dumps({"refused": None}))


def test_what_sbatch_refuses_for_a_while_is_submitted_again_and_cancels_nothing(made, tmp_path, capsys):
    with Slurm().start(session_needs(tmp_path)) as session:
        session.submit(job("a"))
        waits(session)
        (made.place / "refuses").write_text("sbatch: error: Batch job submission failed: Socket timed out\n")
        session.submit(job("b"))
        waits(session)
        is_measured(tmp_path, "a")
        assert session.next_result().key == "a"
        waits(session)  # though nothing is in the queue any more
        said = capsys.readouterr().err
        assert said.count("sbatch takes no cells: sbatch: error: Batch job submission failed: Socket timed out;") == 1
        (made.place / "refuses").unlink()
        waits(session)
        is_measured(tmp_path, "b")
        assert session.next_result().key == "b"
        assert made.cancelled() == set()
        assert (made.place / "78.sh").exists()


def test_what_sbatch_refuses_from_the_start_or_for_long_ends_the_run(made, tmp_path, monkeypatch):
    (made.place / "refuses").write_text(LIMIT)
    refused_alike = pytest.raises(UserError, match="Job violates a limit; see --slots, the most")
    with refused_alike, Slurm().start(session_needs(tmp_path)) as session:
        session.submit(job("a"))
        session.next_result()
    (made.place / "refuses").unlink()
    monkeypatch.setattr(slurm, "REFUSED_FOR", 0.0)
    with Slurm().start(session_needs(tmp_path)) as session:
        session.submit(job("a"))
        waits(session)
        (made.place / "refuses").write_text(LIMIT)
        session.submit(job("b"))
        waits(session)
        is_measured(tmp_path, "a")
        assert session.next_result().key == "a"
        with pytest.raises(UserError, match="Job violates a limit"):
            wait_a_little(session)


@pytest.mark.parametrize(
    ("known", "log", "status"),
    [
        (("", "TIMEOUT"), "", "timed_out"),
        (("RUNNING", "OUT_OF_MEMORY"), "", "out_of_memory"),  # as accounts say that lag behind
        (("", ""), "slurmstepd: error: *** JOB 77 ON n1 CANCELLED AT 2026-01-01 DUE TO TIME LIMIT ***", "timed_out"),
        (("", ""), "slurmstepd: error: Detected 1 oom_kill event in StepId=77.batch.", "out_of_memory"),
        (("", "NODE_FAIL"), "slurmstepd: error: Detected 1 oom_kill event in StepId=77.batch.", "lost"),
        (("TIMEOUT", "COMPLETED"), "", "timed_out"),
    ],
)
def test_how_a_job_ended_is_known_without_accounts(made, tmp_path, known, log, status):
    with Slurm().start(session_needs(tmp_path)) as session:
        session.submit(job("a"))
        waits(session)
        (tmp_path / PARTS / LOGS / "77_0_log.err").write_text(f"{log}\nand what was said behind that\n")
        accounts, shown = known
        if shown:
            (made.place / "shown" / "77").write_text(shown)
        made.ends("77", accounts)
        assert session.next_result().outcome["status"] == status


def test_what_may_wait_for_ever_is_said_once(made, tmp_path, capsys):
    with Slurm().start(session_needs(tmp_path)) as session:
        for key in "abc":
            session.submit(job(key))
        for name in ("77_0", "77_1"):
            (made.place / "reasons" / name).write_text("launch failed requeued held")
        waits(session)
        (made.place / "down").touch()
        waits(session)
    said = capsys.readouterr().err
    assert said.count("job 77_0 does not start, and may never: Slurm says launch failed requeued held") == 1
    assert (said.count("does not start"), said.count("squeue gives no answer")) == (1, 1)
    assert "Priority" not in said


def test_a_job_that_has_ended_is_given_time_for_its_record_and_is_lost_without_it(made, tmp_path):
    with Slurm().start(session_needs(tmp_path)) as session:
        session.submit(job("a"))
        waits(session)
        (tmp_path / PARTS / "a" / ENDED).write_text(json.dumps({"refused": None}))
        waits(session)
        made.ends("77", "COMPLETED")
        found = session.next_result().outcome
    assert (found["status"], "Slurm says COMPLETED" in found["error"]) == ("lost", True)


def test_a_part_that_another_job_measures_is_lost_and_ends_no_run(made, tmp_path):
    def is_in_use(text, part, place):
        raise InUse(f"{part} is in use")

    with Slurm().start(session_needs(tmp_path)) as session:
        session.submit(job("a"))
        waits(session)
        assert (tmp_path / PARTS / "a" / JOB).exists()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("signal.signal", lambda *_: None)
            measure_on_node(is_in_use, str(tmp_path / PARTS / "a"))
        found = session.next_result().outcome
    assert (found["status"], "a is in use" in found["error"]) == ("lost", True)


def test_a_job_that_slurm_takes_away_leaves_its_cell_without_an_outcome(tmp_path):
    """Although submitit has had the signal pass unheard."""
    write_atomically(tmp_path / JOB, "{}")

    def is_taken_away(text, part, place):
        with interrupt.keep_prompt():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(interrupt.EndedBySignal) as ended:
            measure_on_node(is_taken_away, str(tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
    assert not (tmp_path / ENDED).exists()


def test_nothing_is_removed_while_it_is_not_known_whether_a_job_still_writes_it(made, tmp_path):
    with Slurm().start(session_needs(tmp_path)) as session:
        session.submit(job("a"))
        waits(session)
    written = tmp_path / PARTS / "a" / "written"
    written.touch()
    (made.place / "down").touch()
    with Slurm().start(session_needs(tmp_path)) as session:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session, "next_result", lambda: session.submit(job("a", seconds=1.0)))  # another than before
            waits(session)
        assert written.exists()
        (made.place / "down").unlink()
        session.submit(job("a", seconds=1.0))
        assert not written.exists()


@pytest.mark.parametrize(
    ("state", "status"), [("TIMEOUT", "timed_out"), ("OUT_OF_MEMORY", "out_of_memory"), ("NODE_FAIL", None)]
)
def test_a_job_that_slurm_ends_while_no_run_looks_has_that_outcome_and_is_not_submitted_again(
    made, tmp_path, state, status
):
    waits_with(tmp_path, "a")
    made.ends("77", state)
    with Slurm().start(session_needs(tmp_path)) as session:
        session.submit(job("a"))
        if status:
            assert wait_a_little(session).outcome["status"] == status
        else:
            waits(session)
    assert (made.place / "78.sh").exists() == (status is None)
    shutil.rmtree(tmp_path / PARTS / "a", ignore_errors=True)  # as the run does once there is a record
    for _ in range(2):  # with --retry-failed, the first of which is killed at once
        session = Slurm().start(session_needs(tmp_path))
        session.submit(job("a"))
    waits(session)
    assert (made.place / ("79.sh" if status is None else "78.sh")).exists()


def waits_with(folder, *keys: str) -> None:
    """Submit these, and be killed."""
    session = Slurm().start(session_needs(folder))
    for key in keys:
        session.submit(job(key))
    waits(session)


def test_a_run_that_is_killed_while_it_notes_what_it_has_submitted_submits_nothing_twice(made, tmp_path, monkeypatch):
    class Killed(BaseException):
        """Says so."""

    written = list[str]()

    def until_then(path, content):
        if written and made.place.joinpath("77.sh").exists():
            raise Killed
        write_atomically(path, content)
        if made.place.joinpath("77.sh").exists():
            written.append(path.name)

    with monkeypatch.context() as patch:
        patch.setattr(slurm, "write_atomically", until_then)
        patch.setattr(slurm, "write_atomically", until_then)
        with pytest.raises((Killed, Enough)):
            session = Slurm().start(session_needs(tmp_path))
            for key in "abc":
                session.submit(job(key))
            wait_a_little(session)
    waits_with(tmp_path, "a", "b", "c")
    assert not (made.place / "78.sh").exists()


def test_jobs_of_cells_that_are_not_asked_for_any_more_are_named_once(made, tmp_path, capsys):
    waits_with(tmp_path, "a", "b", "c")
    assert "scancel" not in capsys.readouterr().err
    with Slurm().start(session_needs(tmp_path)) as session:
        session.submit(job("a"))
        waits(session)
        waits(session)
    said = capsys.readouterr().err
    assert said.count("2 jobs are in the queue, of an earlier run, for cells that are not asked for") == 1
    assert "scancel 77_1 77_2\n" in said
    assert made.cancelled() == {"77_0"}


def test_a_node_that_an_earlier_run_has_asked_is_asked_anew(made, tmp_path):
    for _ in range(2):
        session = Slurm().start(session_needs(tmp_path, timed=True))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session, "next_result", lambda session=session: session.machine)
            waits(session)
    assert made.cancelled() == {"77"}
    assert [path.name for path in (made.place / "queue").iterdir()] == ["78"]


@pytest.mark.parametrize("fails", [True, False])
def test_jobs_that_cannot_be_cancelled_are_named(fails, made, tmp_path, capsys):
    with Slurm().start(session_needs(tmp_path)) as session:
        for key in "ab":
            session.submit(job(key))
        waits(session)
        if fails:
            (made.place / "down").touch()
    said = "scancel fails, and jobs may go on: end them with scancel 77\n"
    assert (said in capsys.readouterr().err) == fails


def test_a_record_that_the_file_system_has_not_shown_yet_is_asked_for_before_a_job_is_lost(made, tmp_path, monkeypatch):
    listed, is_file, iterdir = set[Path](), Path.is_file, Path.iterdir

    def is_shown(path):
        return is_file(path) and (path.suffix != ".json" or path.parent in listed)

    def lists(path):
        listed.add(path)
        return iterdir(path)

    with Slurm().start(session_needs(tmp_path)) as session:
        session.submit(job("a"))
        waits(session)
        is_measured(tmp_path, "a")
        (tmp_path / PARTS / "a" / ENDED).unlink()
        made.ends("77", "COMPLETED")
        monkeypatch.setattr(Path, "is_file", is_shown)
        monkeypatch.setattr(Path, "iterdir", lists)
        assert wait_a_little(session).part == tmp_path / PARTS / "a"


def test_what_an_attempt_has_left_outlives_a_job_that_measures_otherwise(made, tmp_path):
    waits_with(tmp_path, "a")
    kept = tmp_path / PARTS / "a" / "partial" / "a" / "prune" / "removals.json"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with Slurm().start(session_needs(tmp_path)) as session:
        session.submit(job("a", threads=2))
        waits(session)
    assert kept.exists()
    assert (made.place / "78.sh").exists()
