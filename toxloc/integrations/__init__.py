"""The judges inside other evaluation tools: lm-evaluation-harness, Hugging Face evaluate and Inspect."""
