import json
import re

import pytest

from toxloc import TRNE, ToxlocError

from .conftest import invoke, plain


def test_the_methods_are_listed_with_title_and_source():
    result = invoke("methods")
    assert result.exit_code == 0
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in result.output.splitlines()
        if line.startswith("│")
    ]
    assert [row[0] for row in rows[:2]] == ["trne", "meow2x"]
    assert ["aura", "AurA", "AurA, Suau et al. 2024, arXiv:2407.12824"] in rows
    assert {row[0] for row in rows} >= {"ablation", "damp", "linear-act", "profs", "steering", "value-vector"}


def test_the_same_as_json():
    rows = json.loads(invoke("methods", "--json").stdout)
    assert rows[0] == {"method": "trne", "title": "TRNE", "source": '"Where Does Toxicity Live?", arXiv:2605.27997'}
    assert all(set(row) == {"method", "title", "source"} for row in rows)


def test_the_settings_of_a_method_are_listed_with_defaults_and_values():
    text = plain(invoke("methods", "trne", columns=250).output)
    assert "budget perplexity 0.01 number, mapping" in text
    assert "metric kl kl, frobenius" in text
    assert "shrink false true or false" in text
    assert "layers null integer, list" in text


def test_the_settings_as_json_have_values_of_their_type():
    rows = {row["setting"]: row for row in json.loads(invoke("methods", "trne", "--json").stdout)}
    assert {name: rows[name]["default"] for name in ("budget", "seed", "strength", "metric", "ridge", "shrink")} == {
        "budget": {"perplexity": 0.01},
        "seed": 0,
        "strength": None,
        "metric": "kl",
        "ridge": 1.0,
        "shrink": False,
    }
    assert rows["ridge"]["values"] == "number, auto"
    assert rows["sites"]["values"] == "mlp, attention, all"
    for name, field in TRNE.Settings.model_fields.items():
        assert rows[name]["meaning"] == field.description


def test_an_unknown_method_lists_those_that_are_known():
    refused = invoke("methods", "meow").exception
    assert isinstance(refused, ToxlocError)
    assert re.search("'meow'.* trne, meow2x, ablation", str(refused))


@pytest.mark.parametrize("word", ["METHOD", "--json", "--set NAME=VALUE"])
def test_help_says_how_to_use_them(word):
    assert word in plain(invoke("methods", "--help").output)
