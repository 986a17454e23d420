"""Where toxicity is: statistics in hooks, scores of sites and units, and views of single neurons and texts."""
