"""Says what scores in place of this process: the server behind a `ServerAddress`, or the vLLM of a `VllmPython`."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from methods.errors import UserError

ENDPOINT = "endpoint"  # the scorer that asks a server
KEY = "PRUNEBENCH_ENDPOINT_KEY"  # the environment variable whose value a server is shown


@dataclass(frozen=True)
class ServerAddress:
    """Holds the address of an OpenAI-compatible server, and how it is asked. No record holds any of it.

    url       without /v1 at its end
    model     by the server's own name; empty: the only one that it has
    requests  that may wait for an answer at once
    seconds   without a word after which the server counts as hanging
    """

    url: str
    model: str = ""
    requests: int = 8
    seconds: int = 300


@dataclass(frozen=True)
class VllmPython:
    """Names the Python that has vLLM, which holds the model of each cell. No record holds any of it.

    arguments  of vLLM, as words of a shell
    seconds    without a word after which it counts as hanging
    """

    python: str
    arguments: str = ""
    seconds: int = 600


def parse_url(url: str) -> str:
    """Return an address as `ServerAddress` has it. Raises UserError for one that is none, or that holds a secret."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, sound = urlsplit(""), False
    if "@" in parts.netloc or parts.query or parts.fragment:  # which is not repeated, since it may be a secret
        raise UserError(f"--endpoint takes no user, password or ?; a key is read from the variable {KEY}")
    if not sound or not url.isprintable() or " " in url:
        raise UserError(f"--endpoint is an address as in http://127.0.0.1:8000; got {url!r}")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
