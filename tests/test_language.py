"""Words and names that make a reader read twice must not come back into code, messages and pages."""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A pattern, and what to write instead. Patterns are looked for in docstrings, comments, strings and pages.
INSTEAD = {
    r"\bin force\b": "applied",
    r"\bto be had\b|\b(can|can't|cannot) be had\b": "is available; can be loaded",
    r"\bgradients? by\b": "gradient with respect to",
    r"\b(one|an?) (entry|value|score|row|column|line|file|figure|number) an? \w+": "one ... per ...",
    r"\b(nats|tokens|texts|prompts|samples|neurons) an? (token|text|prompt|layer|site|method|second)\b": "per",
    # Only at the end of a clause: "the one layer that" is plain.
    r"\b(each|every|this|that|which|the|either|any|no|first|last|right|wrong|other|new|old) one\b(?! \w)": (
        "name the thing"
    ),
    r"\b(the|these|those|which|only|other|new|old|good|large|small) ones\b": "name the things",
    r"\bof (its|their) own\b": "its, or: separate",
    r"\bas it (now )?is( now)?\b": "unchanged; current",
    r"\bthat is none\b": "invalid; unknown",
    r"\bfor want of\b|\blest\b|\bhence\b|\bthereof\b|\bwherein\b|\bwhereof\b|\bshall\b|\bought\b": "plain words",
    r"\b(dealt?|deals|dealing) (out|anew)\b": "distribute; shuffle",
    r"\blikewise\.": "say again what it is",
    r"\ball that is\b": "name the things",
    r"\bwhat became of\b|\bbecame of\b": "what happened to",
    r"\bleaves as\b": "is exported as",
    r"\bat a time of\b|\bby and by\b|\bnothing of the kind\b|\bas much as it\b": "plain words",
    r"\bseeds?: of the\b": "seed for the",
    r"\bmeans it\b|\bmean it\b": "plain words",
    r"\bstands? beside\b|\bstands? for itself\b|\bstanding beside\b": "is next to",
}

NAMES = {"one", "found", "how", "told", "said", "apart", "here", "mine", "theirs", "ours", "such", "thing"}


# Text that must stay as it is: (file, what the pattern finds).
QUOTED = {  # sentences that others wrote, and texts of tests
    ("guard_presets.py", "shall"),
    ("test_loading.py", "first one"),
}


def prose_of_code(path):
    """Yield (line, text) for each comment and string of a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            yield token.start[0], token.string


def prose(path):
    if path.suffix == ".py":
        yield from prose_of_code(path)
    elif path.suffix == ".ipynb":
        for cell in json.loads(path.read_text())["cells"]:
            yield 0, "".join(cell["source"])
    else:
        yield 1, path.read_text()


def files(*suffixes, folders=("toxloc", "benchmarks", "examples", "notebooks", "docs")):
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.suffix in suffixes]
    return [path for path in paths if ".ipynb_checkpoints" not in path.parts]


READ = [
    *files(".py", ".md", ".j2", ".ipynb", ".yaml"),
    *(path for path in files(".py", folders=("tests",)) if path != Path(__file__)),
    *sorted(ROOT.glob("*.md")),
]


def test_the_patterns_catch_what_they_are_for():
    """The left column of the language table that the patterns come from."""
    riddles = [
        "gradient by W_out",
        "one entry a layer",
        "in force",
        "cannot be had",
        "a name that is none",
        "of their own",
    ]
    plain = ["gradient with respect to W_out", "one entry per layer", "applied", "cannot be loaded", "an unknown name"]
    caught = [text for text in [*riddles, *plain] if any(re.search(pattern, text) for pattern in INSTEAD)]
    assert caught == riddles


@pytest.mark.parametrize("path", READ, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_plain(path):
    bad = []
    for start, text in prose(path):
        for pattern, instead in INSTEAD.items():
            for match in re.finditer(pattern, text, re.IGNORECASE):
                if (path.name, match[0].lower()) in QUOTED:
                    continue
                line = start + text.count("\n", 0, match.start())
                bad.append(f"{path.name}:{line}: {' '.join(match[0].split())!r}; write: {instead}")
    assert not bad, "\n".join(bad)


def names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


@pytest.mark.parametrize("path", files(".py"), ids=lambda path: str(path.relative_to(ROOT)))
def test_names_say_what_they_hold(path):
    tree = ast.parse(path.read_text())
    bad = [f"{path.name}:{line}: {name}" for line, name in names(tree) if name.strip("_").lower() in NAMES]
    assert not bad, "\n".join(bad)
