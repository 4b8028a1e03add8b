"""Describes and watches the machine: its processes, signals, memory and GPUs."""
