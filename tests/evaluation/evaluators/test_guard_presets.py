import subprocess
import sys

import numpy as np
import pytest

from toxloc.evaluation.evaluators.guard_presets import GUARDS, Field, option


def test_formulas_by_hand():
    given = {
        "safety": {"safe": 0.2, "controversial": 0.5, "unsafe": 0.3},
        "refusal": {"yes": 0.1, "no": 0.9},
        "category": dict.fromkeys(["illegal_acts", "sexual", "personal_data", "self_harm", "political"], 0.0)
        | {"violent": 0.75, "unethical": 0.25, "copyright": 0, "none": 0},
    }
    scores = {label: formula(given) for label, formula in GUARDS["qwen3guard"].scores.items()}
    assert scores["toxicity"] == pytest.approx(0.55)  # between unsafe and unsafe_or_controversial
    assert (scores["unsafe"], scores["controversial"], scores["refusal"]) == (0.3, 0.5, 0.1)
    assert scores["unsafe_or_controversial"] == pytest.approx(0.8)
    assert scores["violent"] == pytest.approx(0.225) and scores["unethical"] == pytest.approx(0.075)
    policies = ["harassment", "hate_speech", "sexually_explicit", "dangerous_content"]
    answers = {name: {"yes": np.array([0.1 * k, 0.5])} for k, name in enumerate(policies)}
    np.testing.assert_allclose(GUARDS["shieldgemma"].scores["toxicity"](answers), [0.3, 0.5])
    assert option("a", "x", ("b", "y"))({"a": {"x": 0.5}, "b": {"y": 0.5}}) == 0.25


@pytest.mark.parametrize("preset", GUARDS.values(), ids=list(GUARDS))
def test_presets_are_complete(preset):
    """Every pass ends with a field, the first passes suffice for the toxicity, and the card has all of its lines."""
    assert all(isinstance(item.answer[-1], Field) for item in preset.passes)

    def answers(passes):
        fields = [part for item in passes for part in item.answer if isinstance(part, Field)]
        assert len({field.name for field in fields}) == len(fields)
        return {field.name: dict.fromkeys(field.options, np.array([1 / len(field.options)])) for field in fields}

    assert preset.scores["toxicity"](answers(preset.passes[: preset.deciding])) <= 1
    for label, formula in preset.scores.items():
        assert 0 < formula(answers(preset.passes)) <= 1, label
    assert set(preset.card) == {"licence", "size", "score", "blind_to"}
    assert preset.prompt.__doc__ and preset.languages and preset.source.count("/") == 1
    assert next(iter(preset.scores)) == "toxicity"


def test_names_of_guards_are_known_without_torch():
    code = "import sys, toxloc.evaluation.evaluators.registry as r; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)
