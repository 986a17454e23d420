import pytest
from hypothesis import given
from hypothesis import strategies as st

from toxloc import ToxlocError
from toxloc.support.assets import ASSETS
from toxloc.texts.languages import knows, language_code, language_name, short_language_name

CODES = [line.split("\t")[0] for line in (ASSETS / "languages.tsv").read_text(encoding="utf-8").splitlines()[1:]]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("de", "de"),
        ("EN", "en"),
        ("pt-BR", "pt"),
        ("zh-Hans", "zh"),
        ("zh_Hant_TW", "zh"),
        ("en_US.UTF-8", "en"),
        ("NO-NB", "no"),
        ("nb", "no"),
        ("nn-NO", "no"),
        ("BCMS", "sh"),
        ("iw", "he"),
        ("deu", "de"),
        ("ger", "de"),
        ("fil", "tl"),
        (" German ", "de"),
        ("scottish gaelic", "gd"),
        ("Serbo-Croatian", "sh"),
        ("ceb", "ceb"),  # Cebuano has no code of two letters
        ("und", "und"),
    ],
)
def test_locales_and_names_become_codes(value, code):
    assert language_code(value) == code


@pytest.mark.parametrize("value", ["", " ", "xx", "q", "Germanic", "12", "-", "d\ne"])
def test_other_words_are_refused(value):
    with pytest.raises(ToxlocError, match=r"is not a language; write its ISO 639-1 code, such as en, de or pt-BR\."):
        language_code(value)


def test_all_codes_of_iso_639_1_are_there():
    assert (
        len(CODES) == len(set(CODES)) == 182
    )  # 183 codes of ISO 639-1 and sh, without nb and nn, which are part of no
    assert all(len(code) == 2 for code in CODES)


@given(st.sampled_from(CODES), st.sampled_from(["", "-Latn", "_XX", "-Cyrl-RS", ".UTF-8"]), st.booleans())
def test_a_code_is_kept_whatever_follows_it(code, more, upper):
    value = code + more
    assert language_code(value.upper() if upper else value) == code
    assert language_code(language_code(value)) == code
    assert language_code(short_language_name(code)) == code


def test_names():
    assert language_name("pt") == "Portuguese (pt)"
    assert short_language_name("pt") == "Portuguese"
    assert language_name("ceb") == short_language_name("ceb") == "ceb"


@pytest.mark.parametrize(
    ("languages", "code", "known"),
    [
        (("en",), "en", True),
        (("en",), "de", False),
        ((), "de", False),
        (("*",), "de", True),
        (None, "de", None),
        (("en",), "und", None),
        (("*",), "und", None),
        (("hr",), "sr", True),
        (("sh",), "bs", True),
        (("sl",), "hr", False),
    ],
)
def test_who_knows_a_language(languages, code, known):
    assert knows(languages, code) is known
