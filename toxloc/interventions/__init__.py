"""Ways to turn toxicity down, under one interface."""
