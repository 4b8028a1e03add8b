"""Names the packages that an answer stands on, and refuses a machine that has others. Imports none of them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from methods.errors import UserError

PACKAGES = ("prunebench", "torch", "transformers", "lm_eval")


def installed() -> dict[str, str]:
    """Return {package: version}, "none" for one that is missing."""
    found = dict.fromkeys(PACKAGES, "none")
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def refuse_unlike(machine: str, there: Mapping[str, str], run: Mapping[str, str]) -> None:
    """Refuse a machine on which one of the run's packages, or whatever else has a version, is another one.

    machine     what the message calls it
    there, run  {name: version} of that machine, and of the run

    Raises UserError, which names both.
    """
    if unlike := [f"{name} {there.get(name)} and not {run[name]}" for name in run if there.get(name) != run[name]]:
        raise UserError(f"{machine} has {', '.join(unlike)}, which the run has; install the same there")
