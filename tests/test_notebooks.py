import os
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
WIDTH = 82  # characters; the documentation cuts longer lines off
KEEP = os.environ.get("TOXLOC_NOTEBOOKS")  # folder for the notebooks with their outputs, which the documentation shows


@pytest.mark.lesson
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_from_top_to_bottom(path, monkeypatch, few_texts):
    if not KEEP:  # what readers see is computed on all texts
        monkeypatch.setenv("PYTHONPATH", few_texts["PYTHONPATH"])
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")  # figures as data, without a script
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm warns if ipywidgets is missing
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "strip outputs before committing"
    nbclient.NotebookClient(notebook, timeout=180, kernel_name="python3").execute()
    errors = [
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"
    ]
    assert not errors, "the notebook shows readers warnings or progress bars"
    if KEEP:
        Path(KEEP).mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, Path(KEEP) / path.name)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_warns_about_its_content(path):
    assert "Content warning" in nbformat.read(path, as_version=4).cells[0].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_fits_the_page(path):
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [line for source in code for line in source.splitlines() if len(line) > WIDTH] == []
