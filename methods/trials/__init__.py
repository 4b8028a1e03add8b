"""How methods choose what goes: scores of layers, trials, evolution, and windows of layers."""
