"""The served page: for this machine alone, of one run, and as new as its records."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from html import unescape
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import needs_chromium, opened
from made_records import DENSE, LACO, SLICEGPT, failed

from bench.cli.main import main
from bench.records.record import save
from reports.page import server

FAST = {  # records without figures to draw, so that a page takes no time
    "laco": failed("error", "laco", "no"),
    "slicegpt": failed("timed_out", "slicegpt", "late"),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(FAST["laco"], tmp_path / "my-run" / "cells" / "laco--0.3--1.json")
    return tmp_path / "my-run"


@pytest.fixture
def served(run: Path) -> Iterator[ThreadingHTTPServer]:
    found = server.open_server(run, 0, {})
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def ask(
    served: ThreadingHTTPServer,
    path: str = "/",
    method: str = "GET",
    hosts: tuple[str, ...] | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", served.server_port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for host in (f"127.0.0.1:{served.server_port}",) if hosts is None else hosts:
        connection.putheader("Host", host)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def test_the_page_has_a_name_for_its_state_that_changes_with_the_records(served, run):
    status, headers, text = ask(served)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "<h1>my-run</h1>" in text
    assert f'data-live="{headers["ETag"].strip(chr(34))}"' in text
    assert "connect-src 'self'" in unescape(text)
    assert ask(served, If_None_Match=headers["ETag"])[::2] == (304, "")
    save(FAST["slicegpt"], run / "cells" / "slicegpt--0.3--2.json")
    status, newer, text = ask(served, If_None_Match=headers["ETag"])
    assert status == 200
    assert newer["ETag"] != headers["ETag"]
    assert "slicegpt" in text


def test_a_page_is_made_once_for_each_state(served, monkeypatch):
    made = []
    real = server.page.render_page
    monkeypatch.setattr(server.page, "render_page", lambda *a, **k: made.append(1) or real(*a, **k))
    assert ask(served)[2] == ask(served)[2]
    assert len(made) == 1


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_only_get(served, method):
    status, headers, _ = ask(served, method=method)
    assert (status, headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize("path", ["/index.html", "/?x", "/../etc/passwd", "/cells/laco--0.3--1.json", "/%2e%2e/"])
def test_only_that_page(served, path):
    assert ask(served, path)[0] == 404


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (("127.0.0.1",), 200),
        (("localhost",), 200),
        (("LOCALHOST",), 421),
        ((), 421),
        (("example.org",), 421),
        (("127.0.0.1.example.org",), 421),
        (("127.0.0.1:1",), 421),
        (("localhost", "example.org"), 421),
    ],
)
def test_another_name_for_this_machine_is_refused(served, hosts, status):
    assert ask(served, hosts=hosts)[0] == status


def test_it_listens_on_this_machine_alone(served):
    assert served.server_address[0] == "127.0.0.1"
    assert ask(served)[1]["X-Content-Type-Options"] == "nosniff"


def test_a_run_that_has_only_begun_has_a_page(served, run):
    (run / "cells" / "laco--0.3--1.json").unlink()
    status, _, text = ask(served)
    assert status == 200
    assert "No cell of this run has been measured yet." in text


def test_a_record_that_cannot_be_read_is_named(served, run):
    (run / "cells" / "laco--0.3--1.json").write_text("{")
    status, headers, text = ask(served)
    assert (status, headers["Content-Type"]) == (500, "text/plain; charset=utf-8")
    assert re.search(r"laco--0.3--1.json is not JSON", text)


def test_a_port_that_is_taken_is_a_mistake(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(run), "--port", str(port)]) == 2
    assert re.fullmatch(
        rf"prunebench: port {port} cannot be had: .*; say another with --port\n", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["no-such-folder"], "there is no folder no-such-folder"),
        ([], "no run has a record below results/ yet"),
        (["{run}", "--port", "70000"], "--port is a number from 0 to 65535; got 70000"),
    ],
)
def test_what_cannot_be_served_is_a_mistake(run, words, error, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    assert main(["serve", *(word.format(run=run) for word in words)]) == 2
    assert error in capsys.readouterr().err


def test_the_newest_run_is_served_until_it_is_interrupted(run, tmp_path):
    for age, name in ((100, "older"), (0, "newer"), (50, "other")):
        path = tmp_path / "results" / name / "cells" / "laco--0.3--1.json"
        save(FAST["laco"], path)
        os.utime(path, (1e9 - age, 1e9 - age))
    command = [sys.executable, "-m", "bench", "serve", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # ignored below a shell's &
    )
    assert child.stdout is not None
    line = child.stdout.readline().decode()
    assert re.fullmatch(r"results/newer: http://127\.0\.0\.1:\d+/   \(Ctrl-C ends it\)\n", line)
    child.send_signal(signal.SIGINT)
    out, errors = child.communicate(timeout=60)
    assert (child.returncode, out) == (0, b"")
    assert b"Traceback" not in errors


@needs_chromium
def test_an_open_page_renews_itself_keeps_its_filter_and_says_when_the_server_is_gone(run, chromium):
    save(DENSE, run / "cells" / "dense--fixed--0.json")
    save(LACO, run / "cells" / "laco--0.3--1.json")
    served = server.open_server(run, 0, {})
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with opened(chromium) as view:
            view.set_default_timeout(60_000)
            view.goto(f"http://127.0.0.1:{served.server_port}/")
            assert view.locator("#live").inner_text() == "live"
            view.get_by_role("searchbox").fill("slice laco")
            save(SLICEGPT, run / "cells" / "slicegpt--0.3--2.json")
            view.locator("#table tbody button", has_text="slicegpt").wait_for()
            assert view.get_by_role("searchbox").input_value() == "slice laco"
            assert view.complaints == []
            (run / "cells" / "laco--0.3--1.json").write_text("{")
            view.get_by_text("is not JSON").wait_for()
            served.shutdown()
            served.server_close()
            view.get_by_text("the server is gone").wait_for()
    finally:
        served.shutdown()
        served.server_close()
        thread.join()
