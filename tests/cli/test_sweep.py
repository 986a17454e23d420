import json

import pytest

from tests.sweeps.conftest import folder, small_grid  # noqa: F401

from .conftest import invoke, plain


@pytest.fixture
def grid(folder, tmp_path):  # noqa: F811
    """Write the small grid with one model and one method to a file."""
    path = tmp_path / "small.json"
    content = small_grid()
    path.write_text(json.dumps(content | {"models": ["gpt2"], "methods": content["methods"][:1]}))
    return path


def test_a_dry_run_lists_the_cells_and_writes_nothing(grid, folder, tmp_path):  # noqa: F811
    result = invoke("sweep", grid, "--root", folder, "--dry-run", "--out", tmp_path / "out", columns=200)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if "meow2x, budget 0.05, scale" in line]
    assert len(rows) == 4
    assert "1 model × 1 contrast set × 1 seed × 2 settings × 2 benchmarks = 4 cells" in plain(result.output)
    assert [path.name for path in tmp_path.iterdir()] == ["small.json"]


def test_files_that_are_not_there_are_named_before_anything_is_written(grid, tmp_path, refused):
    assert "first.txt" in refused("sweep", grid, "--root", tmp_path, "--out", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["small.json"]
