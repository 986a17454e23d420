"""properdocs hook: shows the notebooks with their outputs, and draws the figures with a copy of plotly.js in the site.

`TOXLOC_NOTEBOOKS=FOLDER pytest -m lesson` writes every notebook with its outputs to FOLDER. If the variable is set,
`properdocs build` shows these notebooks; otherwise it shows the notebooks in git, which have no outputs.
"""

import os
import tempfile
from functools import cache
from importlib.resources import files as packaged
from pathlib import Path
from typing import Any

import nbformat
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from properdocs.structure.files import File, Files

from toxloc.plots.style import to_html

FIGURE = "application/vnd.plotly.v1+json"
SCRIPT = "assets/plotly.min.js"
FOLLOW = """
const isDark = () => document.body.dataset.mdColorScheme === "slate";
new MutationObserver(() => paint(isDark())).observe(document.body, {attributeFilter: ["data-md-color-scheme"]});
paint(isDark());"""


def on_files(files: Files, config: Any) -> Files:
    """Replace the notebooks without outputs by the notebooks with outputs."""
    executed = os.environ.get("TOXLOC_NOTEBOOKS")
    if executed is None:
        return files
    folder = _folder().name
    for file in files:
        if file.src_uri.endswith(".ipynb"):
            notebook = nbformat.read(Path(executed) / Path(file.src_uri).name, as_version=4)
            target = Path(folder) / file.src_uri
            target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(with_figures(notebook), target)
            file.src_dir = folder
    files.append(File.generated(config, SCRIPT, content=get_plotlyjs()))
    return files


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return the temporary folder of this process, which is deleted when the process ends."""
    return tempfile.TemporaryDirectory(prefix="toxloc-docs-")


def with_figures(notebook: Any) -> Any:
    """Replace the data of each figure by the HTML that draws it."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if FIGURE in output.get("data", {}):
                output.data = {"text/html": to_html(go.Figure(output.data[FIGURE]))}
    return notebook


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Add the script that draws the figures, and a script that gives them the colours of the page."""
    if "plotly-graph-div" not in html:
        return html
    up = "../" * page.url.count("/")
    paint = (packaged("toxloc.support") / "templates" / "paint.js").read_text(encoding="utf-8")
    return f'<script src="{up}{SCRIPT}"></script>\n{html}\n<script>\n{paint}{FOLLOW}\n</script>'
