"""Checks whether this machine gives right numbers. Run it first on a new machine (docs/checks.md)."""

from __future__ import annotations

CHECKS = {  # names for --only, in the order in which they run; bench.doctor.examination has the functions
    "machine": "versions, devices and memory, and products of matrices",
    "methods": "decisions and logits of every method and compensation",
    "scorer": "log-likelihoods beside those of lm-eval, and perplexity",
    "timing": "a model timed against itself",
    "checkpoints": "saving, loading again, and generating with a cache",
    "memory": "running out of it",
    "copies": "to the device and back, and a second device",
}
