"""Runs pruned models in inference engines, each in a process of its own."""
