"""Checker of annotations in tests. It accepts an int where a float is annotated, as PEP 484 does."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
