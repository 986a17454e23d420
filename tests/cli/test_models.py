from toxloc.models.packaged import CATALOGUE

from .conftest import invoke


def test_the_names_are_shown_whole_also_on_a_narrow_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = invoke("models", "list", columns=80).output
    assert all(f" {name} " in text for name in CATALOGUE)
    assert " yes " not in text
