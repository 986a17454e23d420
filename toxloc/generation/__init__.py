"""Batched sampling of completions whose result does not depend on the batch."""
