"""Batched sampling of completions; a completion does not depend on the batch that it was sampled in."""
