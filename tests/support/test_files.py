import os
import re
import tempfile
import time
from pathlib import Path

import pytest

from tests.children import Child, forks, hold, outcome_of, running
from toxloc import ToxlocError
from toxloc.support.files import check_free, new_folder, read_json, replacing, reserved, write_json


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


@pytest.mark.skipif(not Path("/dev/shm").is_mount(), reason="needs a mount point that can be written to")
def test_a_mount_point_is_refused_because_it_cannot_be_renamed():
    with pytest.raises(ToxlocError, match="/dev/shm is a mount point"):
        check_free(Path("/dev/shm"), overwrite=True)


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with new_folder(tmp_path / "out") as partial:
        (partial / "x").touch()
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "x").exists()


def test_an_empty_current_folder_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with new_folder(".") as partial:
        (partial / "x").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["empty", "x"]


def test_files_that_others_put_into_the_folder_meanwhile_are_kept(tmp_path):
    with pytest.raises(ToxlocError, match=r"out cannot be written \(Directory not empty"), new_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "precious"]


def test_missing_parent_folders_are_removed_if_the_block_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a" / "b" / "out"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def write_slowly(out, text, overwrite, go):
    with new_folder(out, overwrite) as folder:
        (folder / "first").write_text(text)
        while not go.exists():
            time.sleep(0.01)
        (folder / "second").write_text(text)


@forks
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_writer_stops_at_once_and_the_first_writer_keeps_its_result(tmp_path, overwrite):
    out, go = tmp_path / "out", tmp_path / "go"
    first = Child(write_slowly, out, "1", overwrite, go)
    while not list(tmp_path.glob(".out.*.partial/first")):
        time.sleep(0.01)
    for refused in (new_folder(out, overwrite), reserved(out)):
        with pytest.raises(ToxlocError, match=r"Another process is writing .*out; wait for it"), refused:
            pass
    with pytest.raises(ToxlocError, match="Another process is writing"):
        check_free(out, overwrite)
    go.touch()
    assert first.outcome() == ["returned", None]
    assert [(out / name).read_text() for name in ("first", "second")] == ["1", "1"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["go", "out"]


@forks
def test_of_many_writers_at_once_the_first_wins_and_the_others_end_in_a_sentence(tmp_path):
    children = [Child(write_slowly, tmp_path / "out", str(i), False, tmp_path / "go") for i in range(8)]
    time.sleep(0.5)
    (tmp_path / "go").touch()
    outcomes = [child.outcome() for child in children]
    winners = [str(i) for i, (name, _) in enumerate(outcomes) if name == "returned"]
    assert len(winners) == 1
    assert [(tmp_path / "out" / name).read_text() for name in ("first", "second")] == winners * 2
    assert {name for name, _ in outcomes} == {"returned", "ToxlocError"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["go", "out"]


@forks
def test_what_a_killed_writer_left_is_removed_by_the_next_writer(tmp_path):
    with running(hold, new_folder(tmp_path / "out"), until=lambda: list(tmp_path.glob(".out.*.partial"))):
        pass
    (tmp_path / ".out.b.12345678.partial").mkdir()  # of another folder, out.b
    assert len(list(tmp_path.iterdir())) == 3
    assert outcome_of(write_slowly, tmp_path / "out", "1", False, tmp_path) == ["returned", None]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.b.12345678.partial", "out"]


def test_a_folder_that_was_being_replaced_when_its_writer_was_killed_is_restored(tmp_path):
    (tmp_path / ".out.12345678.old").mkdir()
    (tmp_path / ".out.12345678.old" / "x").write_text("old")
    with reserved(tmp_path / "out"):
        assert (tmp_path / "out" / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


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
