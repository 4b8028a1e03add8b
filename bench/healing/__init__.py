"""Trains a pruned model a little: its text and loop, the weights that are trained, and the dense model as teacher."""
