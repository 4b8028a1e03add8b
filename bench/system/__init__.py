"""Knows the machine: its processes, signals, memory and GPUs."""
