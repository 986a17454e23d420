import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
ARGUMENTS = {"detoxify_folder": ["toxloc-tiny", "detoxified"], "heatmaps": ["figures"], "sweep": ["results"]}
WRITTEN = {
    "detoxify_folder": "detoxified/model.safetensors",
    "heatmaps": "figures/depth.png",
    "sweep": "results/summary.html",
}


@pytest.mark.lesson
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(path, tmp_path, few_texts):
    if path.stem == "heatmaps":
        pytest.importorskip("kaleido", reason="needs the png extra")
    done = subprocess.run(
        [sys.executable, str(path), *ARGUMENTS.get(path.stem, [])],
        cwd=tmp_path,
        env=few_texts,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if path.stem in WRITTEN:
        assert (tmp_path / WRITTEN[path.stem]).is_file()
