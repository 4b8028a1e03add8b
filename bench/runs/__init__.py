"""Turns cells into records, in a run folder."""
