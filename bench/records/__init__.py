"""Reads and writes what was measured."""
