"""Grids of models, methods and settings, computed by worker processes."""
