"""Every block of the how-to pages is run, in the order of the page, in a folder for that page."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from toxloc import ToxlocError

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(
    [*(DOCS / "howto").glob("*.md"), DOCS / "get-started.md", DOCS / "export.md", DOCS / "concepts" / "sites.md"]
)
BLOCK = re.compile(r"^``` ?(\{\.)?(\w+)(?: \.([\w-]+)\})?\n(.*?)^```", re.M | re.S)
ABSENT = {"needs-network": "hub"}  # and what the error of a block that needs it speaks of
if not torch.cuda.is_available():
    ABSENT["needs-cuda"] = "CUDA"
if find_spec("vllm") is None:
    ABSENT["needs-vllm"] = "vllm"
LONG = ("pip install", "toxloc run\n", "path/to")  # what tests/cli and CI run, or no page can


def blocks(page):
    return [(language, needs, code) for _, language, needs, code in BLOCK.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.lesson
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    names = {"__name__": "page"}
    for language, needs, code in blocks(page):
        if needs in ABSENT:
            with pytest.raises((ToxlocError, ImportError), match=ABSENT[needs]):
                exec(code, names)
        elif language == "python" and not any(part in code for part in LONG):
            exec(code, names)
        elif language == "sh" and not any(part in code for part in LONG):
            done = subprocess.run(["bash", "-ec", code], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_pages_have_blocks():
    assert all(any(language in ("python", "sh") for language, _, _ in blocks(page)) for page in PAGES)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_every_link_and_picture_is_there(page):
    """Links into headings are checked by `mkdocs build --strict`."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), target
