"""The package as other projects see it: its types, and its metadata."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

import toxloc

ROOT = Path(__file__).parents[1]
PROJECT = """
import toxloc

lm = toxloc.load_model("toxloc-tiny")
reveal_type(lm)
reveal_type(toxloc.localize(lm, toxloc.load_contrast("builtin")).top_neurons("attribution", 3))
reveal_type(toxloc.TRNE.fit(lm, toxloc.load_contrast("builtin")))
toxloc.load_model(3)
"""


@pytest.mark.slow
def test_a_project_that_uses_toxloc_sees_its_types(tmp_path):
    (tmp_path / "project.py").write_text(PROJECT)
    # The libraries below toxloc are not followed: that takes most of the time, and their types are not in question.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\n"
        "[mypy-torch.*,transformers.*,transformer_lens.*,numpy.*,pandas.*,plotly.*,pydantic.*,jaxtyping.*,scipy.*]\n"
        "follow_imports = skip\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "project.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    revealed = re.findall(r'Revealed type is "([^"]+)"', done.stdout)
    assert [name.replace("builtins.", "") for name in revealed] == [
        "toxloc.models.loaded.LoadedModel",
        "list[tuple[int, int]]",
        "toxloc.interventions.methods.trne.TRNE",
    ], done.stdout
    assert re.search(r'project.py:8: error: Argument 1 to "load_model" .*"int"', done.stdout), done.stdout
    assert done.stdout.rstrip().endswith("Found 1 error in 1 file (checked 1 source file)"), done.stdout


def test_the_version_is_the_same_everywhere():
    assert metadata("toxloc")["Version"] == toxloc.__version__
    assert f"\nversion: {toxloc.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest[0] == toxloc.__version__


def test_the_metadata_links_to_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"Source", "Issues", "Changelog"} <= set(project["urls"])
    assert all(url.startswith("https://") for url in project["urls"].values())
