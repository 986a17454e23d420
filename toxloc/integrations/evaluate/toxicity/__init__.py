"""The measurement of toxicity. This folder is the path that `evaluate.load` takes."""
