import subprocess
import sys

from toxloc.evaluation.verdicts import both_read_as_all


def test_only_the_keys_both_are_renamed():
    old = {"runs": [{"toxicity": {"any": {"rate": 0.2}, "both": {"rate": 0.1}}}], "name": "both", "n": 3}
    assert both_read_as_all(old) == {
        "runs": [{"toxicity": {"any": {"rate": 0.2}, "all": {"rate": 0.1}}}],
        "name": "both",
        "n": 3,
    }


def test_the_names_import_no_numpy():
    code = "import sys, toxloc.evaluation.verdicts; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
