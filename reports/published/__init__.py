"""Holds the printed figures of papers, a file for each source, and compares them with records."""
