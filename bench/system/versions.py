"""The packages that an answer stands on, without importing them: a node of a cluster names them within a second."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from methods.errors import UserError

COMPARED_PACKAGES = ("prunebench", "torch", "transformers", "lm_eval")


def installed_versions() -> dict[str, str]:
    """Return {package: version}, with "none" for a package that is missing."""
    version_by_package = dict.fromkeys(COMPARED_PACKAGES, "none")
    for package in COMPARED_PACKAGES:
        try:
            version_by_package[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return version_by_package


def refuse_unlike(machine: str, versions: Mapping[str, str], run: Mapping[str, str]) -> None:
    """Refuse a machine whose packages differ from those of the run, or anything else that has a version.

    machine   what the message calls it
    versions  {name: version} of that machine
    run       {name: version} of the run

    Raises UserError, which names both versions.
    """
    if unlike := [
        f"{name} {versions.get(name)} and not {run[name]}" for name in run if versions.get(name) != run[name]
    ]:
        raise UserError(f"{machine} has {', '.join(unlike)}, which the run has; install the same there")
