"""griffe extension: renames the docstring section "Example:" to "Examples:", the name that griffe reads."""

from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Renames "Example:" sections before griffe parses the docstrings."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section in the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
