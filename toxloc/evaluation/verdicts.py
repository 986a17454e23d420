"""The names of the combined verdicts; importable without numpy, so that names are checked at once."""

from typing import Any

COMBINED = ("any", "all")  # what `judgement.combine` adds to the evaluators
RESERVED = (*COMBINED, "both")  # no evaluator may have one of these names; older files say "both" for "all"


def both_read_as_all(data: Any) -> Any:
    """Return JSON data with every key "both" renamed to "all", which is what files said before version 2.

    Example:
        >>> both_read_as_all({"toxicity": {"any": 0.2, "both": 0.1}})
        {'toxicity': {'any': 0.2, 'all': 0.1}}
    """
    if isinstance(data, dict):
        return {"all" if name == "both" else name: both_read_as_all(value) for name, value in data.items()}
    return [both_read_as_all(value) for value in data] if isinstance(data, list) else data
