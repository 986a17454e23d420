import resource

import pytest

from tests.children import forks, limited, outcome_of
from toxloc import ToxlocError
from toxloc.generation.journal import Journal


@pytest.mark.parametrize("texts", [["plain"], ["two\nlines", "\u2028 \r", "", "ünïcödé \U0001f600"]])
def test_texts_are_read_back_unchanged(tmp_path, texts):
    path = tmp_path / "journal"
    with Journal(path, {"seed": 0}) as journal:
        assert journal.known == {}
        journal.add([(7, k, text) for k, text in enumerate(texts)])
    with Journal(path, {"seed": 0}) as journal:
        assert journal.known == {(7, k): text for k, text in enumerate(texts)}


def test_a_journal_that_is_truncated_anywhere_can_be_continued(tmp_path):
    path = tmp_path / "journal"
    with Journal(path, {"seed": 0}) as journal:
        journal.add([(0, 0, "é"), (0, 1, "b")])
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with Journal(path, {"seed": 0}) as journal:
            assert len(journal.known) == max(0, whole[:cut].count(b"\n") - 1)
            journal.add((0, k, text) for k, text in enumerate("éb") if (0, k) not in journal.known)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"[1, 2]\n", b"text\n", b"{}\n[0, 0]\n", b"\xff\n"])
def test_a_file_that_is_not_a_journal_is_rejected_and_not_changed(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ToxlocError, match=r"notes\.txt is not .*give another file"):
        Journal(path, {})
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ToxlocError, match=r"missing/journal .*give another file"):
        Journal(tmp_path / "missing" / "journal", {})


@forks
def test_only_a_single_process_at_a_time_writes_a_journal(tmp_path):
    def other():
        with Journal(tmp_path / "journal", {}) as journal:
            journal.add([(0, 1, "b")])

    with Journal(tmp_path / "journal", {}) as journal:
        outcome, message = outcome_of(other)
        assert (outcome, "Another process is writing" in message) == ("ToxlocError", True)
        journal.add([(0, 0, "a")])
    assert outcome_of(other) == ["returned", None]
    with Journal(tmp_path / "journal", {}) as journal:
        assert journal.known == {(0, 0): "a", (0, 1): "b"}
    assert [p.name for p in tmp_path.iterdir()] == ["journal"]


@forks
def test_a_full_disk_ends_in_a_sentence_and_keeps_the_whole_lines(tmp_path):
    path = tmp_path / "journal"

    def write():
        with Journal(path, {}) as journal, limited(resource.RLIMIT_FSIZE, 50):
            journal.add([(0, k, "ten chars.") for k in range(5)])

    outcome, message = outcome_of(write)
    assert (outcome, "journal cannot be written to (File too large; raise" in message) == ("ToxlocError", True)
    assert path.stat().st_size == 50
    with Journal(path, {}) as journal:
        assert journal.known == {(0, 0): "ten chars.", (0, 1): "ten chars."}
