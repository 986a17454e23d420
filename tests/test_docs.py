"""Run every code block of the how-to pages, in the order of the page, in one folder per page."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import toxloc

DOCS = Path(__file__).parent.parent / "docs"
CONCEPTS = [DOCS / "concepts" / name for name in ("heads.md", "sites.md")]
PAGES = sorted([*(DOCS / "howto").glob("*.md"), DOCS / "get-started.md", DOCS / "export.md", *CONCEPTS])
BLOCK = re.compile(r"^``` ?(\{\.)?(\w+)(?: \.([\w-]+)\})?\n(.*?)^```", re.M | re.S)
ABSENT = {"needs-network": "hub"}  # missing requirement, and a word in the error of a block that needs it
if not torch.cuda.is_available():
    ABSENT["needs-cuda"] = "CUDA"
if find_spec("vllm") is None:
    ABSENT["needs-vllm"] = "vllm"
# Not run here: tests/cli and CI run it, or a page cannot.
LONG = ("pip install", "toxloc run\n", "path/to", "python -m benchmarks")
INSTALLED = {"without-perspective"}  # pages that need the installed package, in which Inspect looks for scorers


def blocks(page):
    return [(language, needs, code) for _, language, needs, code in BLOCK.findall(page.read_text(encoding="utf-8"))]


def program(page):
    """A program that runs the blocks of a page in their order; Python blocks share their names."""
    lines = ["import os, subprocess", "names = {'__name__': 'page'}"]
    for language, needs, code in blocks(page):
        if needs in ABSENT:
            lines += [
                "try:",
                f"    exec({code!r}, names)",
                "except Exception as error:",
                f"    assert {ABSENT[needs]!r} in str(error), error",
                "else:",
                f"    raise AssertionError('a block that {needs} ran')",
            ]
        elif any(part in code for part in LONG):
            continue
        elif language == "python":
            lines.append(f"exec({code!r}, names)")
        elif language == "sh":
            lines.append(f"subprocess.run(['bash', '-ec', {code!r}], check=True)")
    return "\n".join(lines)


@pytest.mark.lesson
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_run(page, tmp_path, few_texts):
    env = few_texts
    if page.stem in INSTALLED:
        env = {name: value for name, value in few_texts.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program(page)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_pages_have_blocks():
    assert all(any(language in ("python", "sh") for language, _, _ in blocks(page)) for page in PAGES)


def test_the_reference_describes_every_public_name():
    described = re.findall(r"^::: toxloc\.(\w+)$", (DOCS / "reference" / "python.md").read_text(encoding="utf-8"), re.M)
    assert sorted(described) == sorted(set(toxloc.__all__) - {"__version__"})


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_the_targets_of_links_and_pictures_exist(page):
    """`properdocs build --strict` checks links to headings."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), target
