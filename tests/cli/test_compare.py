import pytest

from toxloc import ToxlocError

from .conftest import invoke, plain


@pytest.mark.parametrize("word", ["Folder that toxloc evaluate wrote", "--json", "refused", "Seed for the bootstrap"])
def test_help(word):
    assert word in plain(invoke("compare", "--help", columns=200).output)


def test_folders_that_hold_no_evaluation(tmp_path):
    refused = invoke("compare", tmp_path, tmp_path).exception
    assert isinstance(refused, ToxlocError)
    assert str(tmp_path) in str(refused) and "evaluation.json" in str(refused)
