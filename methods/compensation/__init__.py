"""Closed-form repairs of a pruned model, one file per paper."""
