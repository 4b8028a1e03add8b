"""How methods choose what goes: scores in one pass, trials, evolution, and windows of layers."""
