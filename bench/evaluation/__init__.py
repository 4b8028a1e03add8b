"""Measures the quality of one model: likelihoods, tasks, generated text, similarity of its layers."""
