"""Searches over what goes from many parts of a model at once."""
