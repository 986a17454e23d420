"""`python -m toxloc`."""

from .cli import entry

entry()
