"""Writes tables as text: terminal, Markdown, LaTeX, HTML, CSV."""
