"""The report of a run: an HTML page, and the same as Markdown."""
