import json

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
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ToxlocError, match=words):
        read_rows(str(tmp_path / name))
