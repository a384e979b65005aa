"""Figures, a page and a table of what was found: from an answer to the bytes of a file."""
