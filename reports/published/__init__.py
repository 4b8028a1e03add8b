"""Holds what papers have printed: a file for each source, and how they are read."""
