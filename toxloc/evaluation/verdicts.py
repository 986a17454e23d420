"""Names of the combined verdicts. The module imports no numpy, so that names can be checked quickly."""

from typing import Any

COMBINED = ("any", "majority", "all")  # the judgements that `judgement.combine` adds
RESERVED = (*COMBINED, "both")  # names that no evaluator may have; older files use "both" for "all"


def both_read_as_all(data: Any) -> Any:
    """Return JSON data with every key "both" renamed to "all"; files before format version 2 use "both".

    Example:
        >>> both_read_as_all({"toxicity": {"any": 0.2, "both": 0.1}})
        {'toxicity': {'any': 0.2, 'all': 0.1}}
    """
    if isinstance(data, dict):
        return {"all" if name == "both" else name: both_read_as_all(value) for name, value in data.items()}
    return [both_read_as_all(value) for value in data] if isinstance(data, list) else data
