"""griffe extension: shows the settings that a function takes as `**options` in its signature."""

import importlib
import inspect
from typing import Any

import griffe


class SettingsFields(griffe.Extension):
    """Adds the parameters that the decorator `signature_from` adds when the module is imported."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Add the parameters to a decorated function, before `**options`."""
        if not any("signature_from" in str(decorator.value) for decorator in func.decorators):
            return
        function = getattr(importlib.import_module(func.module.path), func.name)
        options = func.parameters["options"]
        del func.parameters["options"]
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name not in func.parameters:
                func.parameters.add(
                    griffe.Parameter(
                        parameter.name,
                        annotation=inspect.formatannotation(parameter.annotation),
                        kind=griffe.ParameterKind.keyword_only,
                        default=repr(parameter.default),
                    )
                )
        func.parameters.add(options)
