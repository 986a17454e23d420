"""Data files of the package: the bundled models and the built-in texts."""

from pathlib import Path

ASSETS = Path(__file__).parent
