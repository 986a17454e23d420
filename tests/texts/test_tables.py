import codecs
import json
import os

import datasets
import pytest
from datasets import Dataset

from toxloc import ToxlocError
from toxloc.texts.tables import read_rows

ROWS = [{"text": "one", "n": 1}, {"text": 'tw"o', "n": 2}]


def write(path, kind):
    if kind == ".parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    elif kind in (".jsonl", ".json"):
        path.write_text("\n".join(map(json.dumps, ROWS)))
    else:
        sep, quote = ("\t", 'tw"o') if kind == ".tsv" else (",", '"tw""o"')
        path.write_text(f"text{sep}n\none{sep}1\n{quote}{sep}2\n")


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    write(tmp_path / f"t{kind}", kind)
    assert read_rows(str(tmp_path / f"t{kind}")) == ROWS


def test_text_lines(tmp_path):
    (tmp_path / "t.txt").write_text("a\nb\n")
    assert read_rows(str(tmp_path / "t.txt")) == [{"text": "a"}, {"text": "b"}]


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text\na\n")
    assert len(read_rows(str(path))) == 1
    path.write_text("text\na\nb\n")
    assert len(read_rows(str(path))) == 2


def test_a_folder_in_the_hubs_format_loads_by_id(tmp_path, monkeypatch):
    """The hub code path, on a local folder laid out as a hub dataset."""
    (tmp_path / "local-dataset").mkdir()
    write(tmp_path / "local-dataset" / "train.jsonl", ".jsonl")
    monkeypatch.chdir(tmp_path)
    assert read_rows("local-dataset") == ROWS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.csv", "There is no file nowhere.csv"),
        ("/nowhere/x", "There is no file"),
        ("org/absent-dataset", "org/absent-dataset.*on a connected machine"),
        ("~nobody-has-this-name/t.csv", "There is no file ~nobody-has-this-name/t.csv"),
        ("x" * 300 + ".csv", r"There is no file x{300}\.csv"),
        ("a\0b.csv", r"There is no file a\\x00b\.csv"),
        ("a\nb.csv", r"There is no file a\\nb\.csv"),
        ("\udcff.csv", r"There is no file \\udcff\.csv"),
        ("x" * 300, "neither 'builtin' nor a file"),
        ("a\0b", r"'a\\x00b' is neither 'builtin' nor a file"),
    ],
)
def test_missing_sources_are_named(name, words):
    with pytest.raises(ToxlocError, match=words) as caught:
        read_rows(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.xlsx", "x", r"\.xlsx.*use one of \.csv"),
        ("t.csv", "", "is empty"),
        ("t.csv", "text\n", "has no rows"),
        ("t.jsonl", "{broken", r"t\.jsonl cannot be read as json"),
        ("t.jsonl", "null\nnull\n", r"t\.jsonl cannot be read as json: line 1 is null"),
        ("t.json", "[]", "has no rows"),
        ("t.jsonl", "{}\n{}\n", "has no rows"),
        ("t.csv", "text,label\na,1\nb,0,extra\n", "Expected 2 fields in line 3, saw 3"),
        ("t.csv", "text,label\na, b,1\nc, d,0\n", "its rows have more values than its header has columns"),
        ("t.tsv", "text\tlabel\na\tb\t1\n", "its rows have more values than its header has columns"),
        ("t.csv", 'text,label\n"a,1\nb,0\n', "EOF inside string starting at row 1"),
        ("t.csv", "text\na\n".encode("utf-16"), "it is not in UTF-8; save it as UTF-8"),
        ("t.csv", b"text\n\xe9\n", "it is not in UTF-8; save it as UTF-8"),
        ("t.txt", b"\xe9\n", "it is not in UTF-8; save it as UTF-8"),
        ("t.parquet", b"PAR1 garbage PAR1", r"t\.parquet cannot be read as parquet: "),
        ("t.parquet", bytes(range(256)) * 8, r"t\.parquet cannot be read as parquet: "),
        ("a\nb.csv", b"text\n\xe9\n", r"a\\nb\.csv cannot be read as csv"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, capfd, name, content, words):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ToxlocError, match=words) as caught:
        read_rows(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("t.csv", codecs.BOM_UTF8 + b"text\na\n", [{"text": "a"}]),
        ("t.csv", "text,label\na\nb,0\n", [{"text": "a", "label": None}, {"text": "b", "label": 0.0}]),
        ("t.csv", "text,label\na,1,\nb,0,\n", [{"text": "a", "label": 1}, {"text": "b", "label": 0}]),
        ("t.csv", f"text\n{'x' * 200_000}\n", [{"text": "x" * 200_000}]),  # more than csv.field_size_limit()
        ("t.csv", "text,text\na,b\n", [{"text": "a", "text.1": "b"}]),
        ("t.csv", "text\r\na\0b\r\n", [{"text": "a\0b"}]),
        ("t.csv", "text\na\u2028b\u0085c\n", [{"text": "a\u2028b\u0085c"}]),
        ("a[1].csv", "text\na\n", [{"text": "a"}]),
        ("a*?.csv", "text\na\n", [{"text": "a"}]),
        ("a\nb.csv", "text\na\n", [{"text": "a"}]),
        ("t.txt", "a\u2028b\u2029c\u0085d\0\ne\x0cf\n", [{"text": "a\u2028b\u2029c\u0085d\0"}, {"text": "e\x0cf"}]),
        ("t.txt", codecs.BOM_UTF8 + b"a\n", [{"text": "a"}]),
        ("t.json", '[{"text": "a"}, {"label": 1}]', [{"text": "a", "label": None}, {"text": None, "label": 1}]),
    ],
)
def test_unusual_files_give_their_values(tmp_path, name, content, rows):
    (tmp_path / "a1.csv").write_text("text\nother\n")  # a[1].csv is not a pattern
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_rows(str(tmp_path / name)) == rows
    assert read_rows(tmp_path / name) == rows


@pytest.mark.parametrize("keep", [slice(0, 200), slice(200, None), slice(0, -20)])
def test_a_part_of_a_parquet_file(tmp_path, keep):
    write(tmp_path / "t.parquet", ".parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data[keep])
    with pytest.raises(ToxlocError, match=r"t\.parquet cannot be read as parquet: "):
        read_rows(str(tmp_path / "t.parquet"))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_something_else_than_a_file(tmp_path, suffix):
    folder, loop, dangling = (tmp_path / f"{name}{suffix}" for name in ("folder", "loop", "dangling"))
    folder.mkdir()
    loop.symlink_to(loop.name)
    dangling.symlink_to("nothing")
    with pytest.raises(ToxlocError, match=r"folder\.\w+ is a folder; give a file"):
        read_rows(str(folder))
    for path in (loop, dangling):
        with pytest.raises(ToxlocError, match=f"There is no file {path}"):
            read_rows(str(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_file_without_permission(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    path.write_text("text\na\n")
    path.chmod(0)
    with pytest.raises(ToxlocError, match=rf"t\{suffix} cannot be read as .*Permission denied"):
        read_rows(str(path))


@pytest.mark.parametrize("source", [3, None, ["a.csv", "b.csv"], b"a.csv"])
def test_a_source_is_a_single_name(unchecked, source):
    with pytest.raises(ToxlocError, match=r"^source=.*: give the name of one file or hub dataset\.$"):
        read_rows(source)


def test_progress_bars_and_messages_of_datasets_are_restored(tmp_path):
    (tmp_path / "t.csv").write_text("text\na\n")
    datasets.enable_progress_bars()
    level = datasets.logging.get_verbosity()
    read_rows(str(tmp_path / "t.csv"))
    assert not datasets.are_progress_bars_disabled()
    assert datasets.logging.get_verbosity() == level
