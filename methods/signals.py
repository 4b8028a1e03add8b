"""Passes on `methods.model.activations` under its earlier name, by which plugins import it."""

from methods.model.activations import *  # noqa: F403
