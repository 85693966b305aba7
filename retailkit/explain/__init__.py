"""Explanations: what a classifier looks at, and how far to trust the answer."""
