"""Docstrings here say "Example:"; griffe knows the section as "Examples:"."""

from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Renames the section before it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename it in one object's docstring."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
