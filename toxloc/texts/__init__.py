"""Texts that go in: contrast sets, prompts and neutral text."""
