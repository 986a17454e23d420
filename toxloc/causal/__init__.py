"""Causal tests: remove parts of a model and measure what that does to toxic and to neutral text."""
