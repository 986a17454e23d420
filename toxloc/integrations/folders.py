"""Folders of toxloc that other evaluation tools take as an argument. The module imports none of these tools."""

from pathlib import Path

ROOM = Path(__file__).parent
FOLDERS = {"lm-eval": ROOM / "lm_eval", "evaluate": ROOM / "evaluate" / "toxicity"}  # by the name of the extra
