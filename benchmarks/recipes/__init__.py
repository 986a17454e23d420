"""Programs that made the small models of toxloc; the training data is not included."""
