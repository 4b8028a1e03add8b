"""Keeps a recipe."""

from types import SimpleNamespace as QuantizationModifier  # noqa: F401
