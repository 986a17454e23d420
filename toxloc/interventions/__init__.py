"""Methods that reduce toxicity, with a common interface."""
