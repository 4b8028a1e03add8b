"""A hub on the loopback address: what huggingface_hub asks when it makes a repository, uploads to it, and fetches it.

A data set is kept under "datasets/OWNER/NAME", a model under "OWNER/NAME". Each commit has a sha of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import unquote


class HubHandler(BaseHTTPRequestHandler):
    """Answers for the hub; what was sent is in `repositories`, by name."""

    repositories: ClassVar[dict[str, dict[str, Any]]] = {}
    asked: ClassVar[list[tuple[str, str, str]]] = []
    refuses: ClassVar[str] = ""  # a part of a path that is answered with 403

    def _answered(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length)
        self.asked.append((self.command, self.path, self.headers.get("Authorization", "")))
        if self.refuses and self.refuses in self.path:
            self._say(403, {"error": "You may not do that."})
        elif self.headers.get("Authorization") != "Bearer hf_right":
            self._say(401, {"error": "Invalid username or password."})
        else:
            self._say(200, self._found(sent))

    do_POST = _answered

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self._send_file()
        else:
            self._answered()

    do_HEAD = do_GET

    def _send_file(self) -> None:
        """Send a file of a data set, or what is said of it."""
        name, _, rest = self.path.split("?")[0].lstrip("/").partition("/resolve/")
        revision, _, path = rest.partition("/")
        kept = self.repositories[name]
        content = kept["files"].get(unquote(path))
        self.send_response(404 if content is None else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content or b"").hexdigest()}"')
        self.send_header("X-Repo-Commit", revision)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    def _found(self, sent: bytes) -> Any:
        address = f"http://{self.headers['Host']}"
        match self.path.split("?")[0].strip("/").split("/"):
            case ["api", "whoami-v2"]:
                return {"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}}
            case ["api", "repos", "create"]:
                asked = json.loads(sent)
                kind = "datasets/" if asked.get("type") == "dataset" else ""
                name = f"{kind}{asked['organization'] or 'me'}/{asked['name']}"
                private = asked.get("private", False)
                new = {"private": asked.get("visibility") == "private" or private, "files": {}, "said": []}
                self.repositories.setdefault(name, new)
                return {"url": f"{address}/{name}", "name": name}
            case ["api", "validate-yaml"]:
                return {"errors": [], "warnings": []}
            case ["api", kind, owner, name, "preupload", _]:
                assert _name_of(kind, owner, name) in self.repositories
                return {"files": [self._mode(file["path"]) for file in json.loads(sent)["files"]]}
            case ["api", kind, owner, name, "commit", _]:
                kept = self.repositories[_name_of(kind, owner, name)]
                for line in map(json.loads, sent.splitlines()):
                    if line["key"] == "header":
                        kept["said"].append(line["value"]["summary"])
                    elif line["key"] == "deletedFile":
                        del kept["files"][line["value"]["path"]]
                    else:
                        assert (line["key"], line["value"]["encoding"]) == ("file", "base64")
                        kept["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return {"commitUrl": f"{address}/{owner}/{name}/commit/0", "commitOid": "0" * 40}
            case ["api", kind, owner, name, *more]:
                kept = self.repositories[_name_of(kind, owner, name)]
                files, commit = kept["files"], f"{len(kept['said']):040x}"
                listed = [{"type": "file", "path": file, "size": len(files[file]), "oid": "0" * 40} for file in files]
                siblings = [{"rfilename": file} for file in files]
                about = {"id": f"{owner}/{name}", "sha": commit, "siblings": siblings, "tags": [], "downloads": 0}
                return listed if "tree" in more else about | {"private": kept["private"], "gated": False}
        raise AssertionError(self.path)

    def _mode(self, path: str) -> dict[str, Any]:
        return {"path": path, "uploadMode": "regular", "shouldIgnore": False}

    def _say(self, code: int, what: dict[str, Any]) -> None:
        body = json.dumps(what).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


def _name_of(kind: str, owner: str, name: str) -> str:
    return f"datasets/{owner}/{name}" if kind == "datasets" else f"{owner}/{name}"


class LocalHub:
    """Serves a hub of its own while it is open; `handler` holds what was sent."""

    def __enter__(self) -> LocalHub:
        own: dict[str, Any] = {"repositories": {}, "asked": []}
        self.handler: Any = type("OwnHubHandler", (HubHandler,), own)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
