"""Makes a Ray cluster's surroundings, in a process in which another one may have been."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from bench.engines import ray_cluster

TESTS = Path(__file__).parent


def surround_cluster(patch: pytest.MonkeyPatch, **variables: str) -> None:
    """Set what a cluster and its nodes need, with a token of its own."""
    for name, value in ray_cluster.OWN.items():  # before ray is imported, which reads them then
        patch.setenv(name, value)
    patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    patch.setenv("RAY_process_group_cleanup_enabled", "1")
    patch.setenv("RAY_worker_niceness", "0")
    patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    for name, value in variables.items():
        patch.setenv(name, value)
    from ray._private.authentication_test_utils import reset_auth_token_state

    reset_auth_token_state()  # another test of this process may have looked for a token already
