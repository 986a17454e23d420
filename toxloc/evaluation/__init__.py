"""How toxic a model is, and what an intervention costs in language quality."""
