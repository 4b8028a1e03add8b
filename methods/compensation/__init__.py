"""Repairs of a pruned model, closed-form or trained, one file per paper."""
