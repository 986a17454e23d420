import os
import tempfile

import pytest

from toxloc import ToxlocError
from toxloc.support.files import check_free, new_folder, read_json, replacing, write_json


def test_the_folder_appears_only_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / "a" / "out") as partial:
        (partial / "x").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert (tmp_path / "a" / "out" / "x").read_text() == "1"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_after_a_failure_nothing_new_is_there_and_the_old_is_as_it_was(tmp_path, error):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("kept")
    with pytest.raises(error), new_folder(tmp_path / "out", overwrite=True) as partial:
        (partial / "new").write_text("half")
        raise error
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "old"]


def test_overwriting_replaces_the_whole_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with new_folder(tmp_path / "out", overwrite=True) as partial:
        (partial / "new").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "new"]


def test_an_empty_folder_may_be_filled(tmp_path):
    with new_folder(tmp_path) as partial:
        (partial / "x").touch()
    assert (tmp_path / "x").exists()


def test_targets_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ToxlocError, match="is a file; give the name of a folder"):
        check_free(tmp_path / "file", overwrite=True)
    with pytest.raises(ToxlocError, match="is not empty"):
        check_free(tmp_path / "full", overwrite=False)
    check_free(tmp_path / "full", overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ToxlocError, match="cannot be written"):
        check_free(tmp_path / "out", overwrite=False)


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ToxlocError, match="cannot be written"):
        check_free(tmp_path / "file" / "out", overwrite=False)


def test_json_goes_and_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, "ä"]})
    assert read_json(tmp_path / "a.json", "thing") == {"b": [1, 2.5, "ä"]}
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ToxlocError, match="does not hold a thing"):
        read_json(tmp_path / "list.json", "thing")


def test_what_cannot_be_written_leaves_the_old_file_as_it_was(tmp_path):
    write_json(tmp_path / "a.json", {"kept": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"cannot": object()})
    assert read_json(tmp_path / "a.json", "thing") == {"kept": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_others_can_read_what_is_in_a_new_folder(tmp_path):
    with new_folder(tmp_path / "new") as partial:
        (partial / "inner").mkdir()
        for path in (partial / "a", partial / "inner" / "b"):
            path.write_text("x")
            path.chmod(0o600)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").rglob("*")}
    assert modes["a"] == modes["b"] == 0o644


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with (
        pytest.raises(ToxlocError, match=r"out cannot be written \(Permission denied\); choose another"),
        new_folder(tmp_path / "out"),
    ):
        pass


def test_a_file_is_replaced_when_the_new_one_is_complete_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    with replacing(path) as partial:
        partial.write_text("old")
    with replacing(path) as partial, replacing(path) as other:
        assert partial != other
        partial.write_text("new")
        other.write_text("other")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, FileNotFoundError(2, "No", "another")])
def test_after_a_failure_the_old_file_stays_and_the_error_is_that_of_the_block(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error if isinstance(error, type) else type(error)), replacing(path) as partial:
        partial.write_text("half")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for path in (tmp_path / "folder", tmp_path / "file" / "a", tmp_path / "file" / "a" / "b"):
        with pytest.raises(ToxlocError, match=rf"{path.name} cannot be written \(.*\); choose another place"):
            write_json(path, {})
    with pytest.raises(ToxlocError, match="No space left on device"), replacing(tmp_path / "x"):
        raise OSError(28, "No space left on device")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_read_json_says_what_is_missing_or_broken(tmp_path):
    with pytest.raises(ToxlocError, match=r"holds no localization: a\.json is missing"):
        read_json(tmp_path / "a.json", "localization")
    (tmp_path / "a.json").write_text("{half")
    with pytest.raises(ToxlocError, match=r"is not valid JSON .*; was the localization saved by toxloc"):
        read_json(tmp_path / "a.json", "localization")
