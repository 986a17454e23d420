"""Measurements whose numbers the documentation quotes; each is a command that anyone can rerun."""
