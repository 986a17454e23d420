"""Causal tests: remove parts of a model and measure the effect on toxic and on neutral text."""
