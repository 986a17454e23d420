import subprocess
import sys

import pytest

from toxloc import PROTOCOLS, ToxlocError
from toxloc.evaluation.settings import EvaluationSettings, decoding_of, usual_evaluators
from toxloc.generation.decoding import Decoding


def test_defaults_and_protocols():
    assert EvaluationSettings().decoding() == Decoding()
    assert EvaluationSettings(samples=2, top_p=0.5).decoding() == Decoding(samples=2, top_p=0.5)
    named = EvaluationSettings(protocol="dpo-toxic")
    assert named.known_protocol is PROTOCOLS["dpo_toxic"]
    assert named.decoding() == Decoding(samples=1, temperature=0.0)
    assert EvaluationSettings(protocol="ml-act", max_new_tokens=32).decoding().repetition_penalty == 1.2


def test_settings_survive_json():
    settings = EvaluationSettings(protocol="ProFS", evaluators=("toxloc-guard@0.9",), seed=3)
    assert EvaluationSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(samples=0), "samples=0"),
        (dict(max_new_tokens=0), "max_new_tokens=0"),
        (dict(top_p=0), "top_p=0"),
        (dict(top_p=1.1), r"top_p=1\.1"),
        (dict(temperature=-1), "temperature=-1"),
        (dict(seed=-1), "seed=-1"),
        (dict(repetition_penalty=0), "repetition_penalty=0"),
        (dict(protocol="rtp"), "'rtp'.* RealToxicityPrompts, DExperts"),
        (dict(protocol="dpo_toxic", temperature=1.0), r"dpo_toxic fixes temperature=0\.0; omit temperature=1\.0"),
        (dict(evaluators=("gard",)), "'gard'.* toxloc-guard"),
        (dict(sample=1), "'sample'.* samples"),
    ],
)
def test_errors_name_the_wrong_value(wrong, message):
    with pytest.raises(ToxlocError, match=message):
        EvaluationSettings.of(**wrong)


def test_none_keeps_the_default():
    assert decoding_of(None, samples=3, top_p=None) == Decoding(samples=3)
    assert decoding_of(PROTOCOLS["ProFS"], samples=None, max_new_tokens=10) is PROTOCOLS["ProFS"].decoding
    assert usual_evaluators(PROTOCOLS["ml-aura"]) == ("roberta-toxicity",)
    assert (
        usual_evaluators(PROTOCOLS["DExperts"])
        == usual_evaluators(None)
        == ("toxloc-rtp", "toxloc-guard", "profanity-check")
    )


@pytest.mark.parametrize(
    "module", ["evaluation.settings", "evaluation.protocols", "evaluation.evaluators.registry", "generation.decoding"]
)
def test_settings_are_checked_without_torch(module):
    code = f"""
import sys, toxloc.{module}
from toxloc.evaluation.settings import EvaluationSettings
from toxloc import ToxlocError
EvaluationSettings.of(protocol="ml-aura", evaluators=("detoxify-original=folder@0.4",))
for wrong in (dict(samples=0), dict(evaluators=("gard",))):
    try:
        EvaluationSettings.of(**wrong)
    except ToxlocError:
        continue
    sys.exit(f"{{wrong}} was not refused")
loaded = {{"torch", "transformers", "scipy"}} & set(sys.modules)
assert not loaded, loaded
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
