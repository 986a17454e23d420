import subprocess
import sys

import pytest

from toxloc import load_neutral, load_prompts
from toxloc.texts.detection import detect_language

SENTENCES = {
    "en": "The soup needs a little more salt, but it smells good.",
    "de": "Die Suppe braucht noch etwas Salz, aber sie riecht gut.",
    "fr": "La soupe a besoin d'un peu plus de sel, mais elle sent bon.",
    "es": "El niño dijo que la sopa de su madre huele muy bien.",
    "pl": "Zupa potrzebuje jeszcze trochę soli, ale ładnie pachnie.",
    "fi": "Keitto kaipaa vielä vähän suolaa, mutta se tuoksuu hyvältä.",
    "ru": "В супе не хватает соли, но пахнет он очень хорошо.",
    "zh": "这碗汤还需要一点盐，不过闻起来很香。",
    "ja": "スープにはもう少し塩が必要ですが、いい匂いがします。",
    "ko": "수프에 소금이 조금 더 필요하지만 냄새가 좋아요.",
    "ar": "يحتاج الحساء إلى قليل من الملح، لكن رائحته طيبة.",
    "hi": "सूप में थोड़ा और नमक चाहिए, लेकिन इसकी खुशबू अच्छी है।",
    "tr": "Çorbanın biraz daha tuza ihtiyacı var ama güzel kokuyor.",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_sentences_are_recognised(code):
    assert detect_language(SENTENCES[code]) == code


def test_varieties_of_a_language_are_added():
    assert detect_language("Dobar dan, kako ste danas?") in ("hr", "sr", "bs")
    assert detect_language("Eg veit ikkje kva du heiter, men eg kjem i morgon.") == "no"


@pytest.mark.parametrize(
    "text", ["", " \n", "Ok!", "12345 !!", "zx qv", "…", "\x00", "3f2a 9bd8 77fe " * 20, "tsvlc wbdqb ztnkn djxkk " * 9]
)
def test_what_cannot_be_decided_is_not(text):
    assert detect_language(text) == "und"


def test_no_built_in_english_text_looks_foreign():
    texts = [*load_prompts("builtin").texts, *load_prompts("sensitive").texts, *load_neutral(limit=200).texts]
    seen = [detect_language(text) for text in texts]
    assert {*seen} <= {"en", "und"}
    assert seen.count("en") > 0.9 * len(seen)


def test_the_detector_is_loaded_when_it_is_used():
    seen = "print('py3langid' in sys.modules)"
    program = f"import sys, toxloc.texts.detection as d; {seen}; d.detect_language('Good day'); {seen}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
