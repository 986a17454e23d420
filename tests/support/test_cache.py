import pytest

from toxloc import ToxlocError
from toxloc.support.cache import cache_folder, check_room


def test_the_cache_is_where_the_user_keeps_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "toxloc"
    assert not cache_folder().exists()


def test_what_does_not_fit_is_refused(tmp_path):
    check_room(tmp_path / "a" / "b", 1, "This")
    with pytest.raises(ToxlocError, match=r"This needs up to 1099511627776 MiB in .*a, where \d+ MiB are free"):
        check_room(tmp_path / "a" / "b", 1 << 60, "This")
