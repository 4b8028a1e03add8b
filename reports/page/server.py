"""The page of one run on the loopback address, rendered again after each new record.

The server answers GET / alone, and only for a Host that names this machine, so that no other site's name can lead to
it. The page asks every few seconds whether its ETag still holds. That lists the folder and renders nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from bench.records import run_folder, served
from bench.records.samples import Samples
from methods.errors import UserError
from reports.page import page

ADDRESS = "127.0.0.1"
HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Live:
    """The page of a run folder, kept until its records change."""

    def __init__(self, run: Path, needs: Mapping[str, str]) -> None:
        self.run, self.needs = run, needs
        self._lock = Lock()  # so that two browsers do not render the same page twice
        self._stamped_page: tuple[str, bytes] | None = None

    def stamp(self) -> str:
        """Return a hash of the state of the records: the names, sizes and times of their files."""
        state = []
        for path in (*run_folder.files_of_records(self.run), self.run / served.FILE):
            with suppress(FileNotFoundError):  # a record that has just been removed, or no file of served records
                stat = path.stat()
                state.append((path.name, stat.st_size, stat.st_mtime_ns))
        return hashlib.sha256(repr(state).encode()).hexdigest()[:32]

    def page(self) -> tuple[str, bytes]:
        """Return (stamp, HTML), from the last call if the records have not changed.

        The stamp is taken first, so that a record that comes during rendering makes the page old. Raises UserError if
        no record can be read.
        """
        with self._lock:
            stamp = self.stamp()
            if self._stamped_page is None or self._stamped_page[0] != stamp:
                self._stamped_page = stamp, self._render(stamp).encode()
            return self._stamped_page

    def _render(self, stamp: str) -> str:
        files = run_folder.files_of_records(self.run)
        merged = run_folder.load_runs([self.run]) if files else run_folder.Merged([], Samples(), [])
        title = self.run.resolve().name
        extras: dict[str, Any] = {"samples": merged.samples, "remarks": merged.notes, "served": merged.served}
        return page.render_page(merged.records, title=title, needs=self.needs, live=stamp, **extras)


def open_server(run: Path, port: int, needs: Mapping[str, str]) -> ThreadingHTTPServer:
    """Return a server for the page of `run` that listens and does not yet answer.

    Raises OSError if the port is taken.

    needs  as in reports.page.page.render_page
    """
    live = Live(run, needs)

    class Handler(_Handler):
        source = live

    return _Server((ADDRESS, port), Handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True  # a port with no more than closing connections is free


class _Handler(BaseHTTPRequestHandler):
    source: Live
    server_version, sys_version = "prunebench", ""
    timeout = 30  # seconds for a request that does not come to its end

    def do_GET(self) -> None:
        if not self._meant_for_us():
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "this page is served to this machine alone")
        elif self.path != "/":
            self._answer(HTTPStatus.NOT_FOUND, "there is one page, /")
        elif self.headers.get("If-None-Match") == f'"{self.source.stamp()}"':
            self._answer(HTTPStatus.NOT_MODIFIED)
        else:
            self._page()

    def _refuse(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is answered", Allow="GET")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _meant_for_us(self) -> bool:
        port = self.connection.getsockname()[1]
        hosts = [name for host in (ADDRESS, "localhost") for name in (host, f"{host}:{port}")]
        return self.headers.get_all("Host", []) in [[host] for host in hosts]

    def _page(self) -> None:
        try:
            stamp, html = self.source.page()
        except UserError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            return
        except Exception as error:  # otherwise the browser would get no answer
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"no page can be made: {type(error).__name__}: {error}")
            raise
        self._answer(HTTPStatus.OK, html, ETag=f'"{stamp}"')

    def _answer(self, status: HTTPStatus, body: str | bytes = b"", **headers: str) -> None:
        """Send one whole answer: a body of str as plain text, a body of bytes as HTML."""
        kind = "text/plain" if isinstance(body, str) else "text/html"
        content = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in (HEADERS | headers).items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing, since a page that asks every few seconds would fill the terminal."""
