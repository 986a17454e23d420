"""Run the command line with `python -m toxloc`."""

from .cli import entry

entry()
