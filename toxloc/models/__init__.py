"""Load language models, and read and change their weights and activations."""
