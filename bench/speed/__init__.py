"""Measures the speed and the memory of one model."""
