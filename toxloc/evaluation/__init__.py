"""Toxicity of a model, and the cost of an intervention in language quality."""
