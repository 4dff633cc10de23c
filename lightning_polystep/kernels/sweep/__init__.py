"""Outcomes of a number, and what a table of them adds to all candidates: what the outcome kernels share."""
