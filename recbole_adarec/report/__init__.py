"""The report of a run: text, figures, page."""
