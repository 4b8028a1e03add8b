"""Computes intervals and tests."""
