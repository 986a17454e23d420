"""Parse YAML that somebody else may have written, within bounds on its size."""

from collections import Counter
from typing import Any

import yaml

MAX_CHARACTERS = 1_000_000
MAX_NODES = 100_000  # values and keys, after aliases are replaced by what they refer to


def parse_yaml(text: str) -> Any:
    """Parse a YAML document of plain values, lists and mappings.

    PyYAML's safe loader executes nothing, but a few lines with nested aliases expand to billions of values, and of a
    key that occurs twice it silently keeps the last value. Both are refused here.

    Raises:
        ValueError: it is not valid YAML, is too large or nested too deeply, refers to itself, or has a key twice; the
            message is a phrase that says which, with the line if it is known.

    Example:
        >>> parse_yaml("models: [a, b]")
        {'models': ['a', 'b']}
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{error.problem}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _is_text(value: str) -> bool:
    """Return whether UTF-8 can encode a string."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _count(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return the number of values and keys in a node, where aliases count as often as they occur.

    Args:
        node: the node.
        known: the counts of nodes, by id; None for nodes that are being counted.
    """
    if id(node) in known:
        if (count := known[id(node)]) is None:
            raise ValueError(f"the value in line {node.start_mark.line + 1} contains itself")
        return count
    known[id(node)] = None
    if isinstance(node, yaml.ScalarNode) and not _is_text(node.value):
        raise ValueError(f"the value in line {node.start_mark.line + 1} has a lone surrogate, which is no character")
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for (_, name), times in Counter(keys).items():
            if times > 1:
                raise ValueError(f"the key {name!r} occurs {times} times in one mapping")
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    count = 1 + sum(_count(child, known) for child in children)
    if count > MAX_NODES:
        raise ValueError(f"it has more than {MAX_NODES:,} values, with its aliases expanded")
    known[id(node)] = count
    return count
