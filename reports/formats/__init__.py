"""Tables into text: terminal, Markdown, LaTeX, HTML, CSV."""
