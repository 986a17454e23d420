import os
import re
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
def test_a_failed_block_leaves_the_old_folder_unchanged(tmp_path, error):
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


def test_invalid_targets_are_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ToxlocError, match="/file is a file"):
        check_free(tmp_path / "file", overwrite=True)
    with pytest.raises(ToxlocError, match=r"/full is not empty.*overwrite=True"):
        check_free(tmp_path / "full", overwrite=False)
    check_free(tmp_path / "full", overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ToxlocError, match=re.escape(f"{tmp_path} cannot be written")):
        check_free(tmp_path / "out", overwrite=False)


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ToxlocError, match="/file cannot be written"):
        check_free(tmp_path / "file" / "out", overwrite=False)


def test_json_round_trip(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, "ä"]})
    assert read_json(tmp_path / "a.json", "record") == {"b": [1, 2.5, "ä"]}
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ToxlocError, match=r"list\.json .*record"):
        read_json(tmp_path / "list.json", "record")


def test_a_value_that_json_cannot_hold_leaves_the_old_file_unchanged(tmp_path):
    write_json(tmp_path / "a.json", {"kept": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"cannot": object()})
    assert read_json(tmp_path / "a.json", "record") == {"kept": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_all_users_can_read_the_files_in_a_new_folder(tmp_path):
    with new_folder(tmp_path / "new") as partial:
        (partial / "inner").mkdir()
        for path in (partial / "a", partial / "inner" / "b"):
            path.write_text("x")
            path.chmod(0o600)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").rglob("*")}
    assert modes["a"] == modes["b"] == 0o644


def test_the_error_names_a_folder_that_cannot_be_created(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(ToxlocError, match=r"out .*\(Permission denied\)"), new_folder(tmp_path / "out"):
        pass


def test_a_file_is_replaced_once_the_new_file_is_complete_and_missing_folders_are_created(tmp_path):
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
def test_a_failed_block_leaves_the_old_file_and_raises_the_error_of_the_block(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error if isinstance(error, type) else type(error)), replacing(path) as partial:
        partial.write_text("half")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_the_error_names_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for path in (tmp_path / "folder", tmp_path / "file" / "a", tmp_path / "file" / "a" / "b"):
        with pytest.raises(ToxlocError, match=rf"{path.name} cannot be written \(.*\)"):
            write_json(path, {})
    with pytest.raises(ToxlocError, match="No space left on device"), replacing(tmp_path / "x"):
        raise OSError(28, "No space left on device")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_read_json_names_a_missing_or_broken_file(tmp_path):
    with pytest.raises(ToxlocError, match=r"localization: a\.json is missing"):
        read_json(tmp_path / "a.json", "localization")
    (tmp_path / "a.json").write_text("{half")
    with pytest.raises(ToxlocError, match=r"a\.json is not valid JSON .*localization"):
        read_json(tmp_path / "a.json", "localization")
