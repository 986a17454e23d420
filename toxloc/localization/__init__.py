"""Localization of toxicity: statistics from hooks, scores of sites and units, and views of single neurons and texts."""
