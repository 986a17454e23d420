import subprocess
import sys

PROGRAM = """
import pkgutil, sys
sys.modules["torch"] = None  # importing it is an error
import toxloc.texts
for module in pkgutil.iter_modules(toxloc.texts.__path__):
    __import__(f"toxloc.texts.{module.name}")
    print(module.name)
from toxloc.generation.decoding import Decoding
from toxloc.texts.loading import load_contrast
print(len(load_contrast().toxic), Decoding().samples)
"""


def test_texts_and_decoding_need_no_torch():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *modules, pairs, samples = done.stdout.split()
    assert {"contrast", "detection", "drawing", "languages", "layouts", "loading", "multilingual"} <= set(modules)
    assert {"neutral", "prompts", "records", "tables"} <= set(modules)
    assert (pairs, samples) == ("520", "5")
