"""Trains a pruned model a little."""
