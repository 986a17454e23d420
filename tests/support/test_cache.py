import pytest

from toxloc import ToxlocError
from toxloc.support.cache import cache_folder, check_room


def test_the_cache_is_in_the_cache_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "toxloc"
    assert not cache_folder().exists()


def test_too_little_free_space_is_refused(tmp_path):
    check_room(tmp_path / "a" / "b", 1, "This")
    with pytest.raises(ToxlocError, match=r"This .*1099511627776 MiB in .*a, .*\d+ MiB.*XDG_CACHE_HOME"):
        check_room(tmp_path / "a" / "b", 1 << 60, "This")
