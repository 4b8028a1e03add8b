"""Reads and writes records, their samples, and the runs that hold them."""
