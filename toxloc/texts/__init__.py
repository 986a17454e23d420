"""Contrast sets, prompts and neutral text: the texts that toxloc reads."""
