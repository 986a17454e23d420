import subprocess
import sys


def test_figures_need_no_deep_learning_library():
    code = (
        "import sys, toxloc.plots; toxloc.plots.layer_heatmap\n"
        "print(*sorted({'torch', 'transformers', 'transformer_lens', 'datasets', 'sklearn'} & set(sys.modules)))\n"
        "print(*sorted({name.split('.')[1] for name in sys.modules if name.startswith('toxloc.')}))"
    )
    loaded, rooms = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split("\n")[:2]
    assert loaded == ""
    assert set(rooms.split()) <= {"plots", "support", "errors", "version"}
