import pytest

from toxloc.support.appended import AppendedFile


def test_complete_lines_are_read_and_the_rest_is_dropped(tmp_path):
    path, seen = tmp_path / "lines", []
    path.write_bytes("é\n\nhalf a li".encode())
    with AppendedFile(path, seen.extend) as file:
        file.add("new")
    assert seen == ["é".encode(), b""]
    assert path.read_bytes() == "é\n\nnew\n".encode()


def test_a_file_that_its_reader_refuses_stays_and_is_free_again(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"whole\nhalf")

    def refuse(lines):
        raise ValueError("not mine")

    for _ in range(2):  # the second time shows that no lock is left
        with pytest.raises(ValueError, match="not mine"):
            AppendedFile(path, refuse)
        assert path.read_bytes() == b"whole\nhalf"
