import pytest

from benchmarks.plants import planted_model
from benchmarks.sites import comparable, markdown, sites_of, third_of
from toxloc import load_contrast
from toxloc.localization.first_difference import first_differences
from toxloc.models.sites import Site


def test_the_planted_attention_has_the_highest_scores():
    lm = planted_model("attention3")
    pairs = comparable(lm, load_contrast(), 150)
    assert len(pairs.toxic) == 150 and len(first_differences(lm, pairs).usable) == 150
    scored = sites_of(lm, pairs)
    assert (scored["n_pairs"], scored["n_held_out"], scored["n_layers"]) == (120, 30, 8)
    assert list(scored["scores"]) == ["attribution", "counterfactual"]
    assert all(len({row["site"] for row in found["sites"]}) == 16 for found in scored["scores"].values())
    assert max(scored["scores"]["attribution"]["sites"], key=lambda row: row["value"])["site"] == "3.attention"
    assert max(scored["scores"]["counterfactual"]["sites"], key=lambda row: row["z"])["site"] == "3.attention"


@pytest.mark.parametrize(
    ("layer", "n_layers", "third"), [(0, 30, "early"), (9, 30, "early"), (10, 30, "middle"), (20, 30, "late")]
)
def test_thirds(layer, n_layers, third):
    assert third_of(Site(layer), n_layers) == third


def test_the_table_by_hand():
    sites = [
        {"site": f"{layer}.{part}", "z": z, "p_adjusted": 0.25}
        for layer, part, z in ((0, "mlp", -2.0), (1, "attention", 3.0), (2, "mlp", 1.0), (3, "mlp", 0.0))
    ]
    silent = {"stands_out": False, "site": "1.attention", "removal": None, "others": []}
    removal = {"effect": 0.25, "effect_ci": [-0.125, 0.5], "breaks_model": False}
    headlines = {
        "a": silent,
        "b": silent | {"removal": removal},
        "c": silent | {"removal": removal | {"breaks_model": True}},
        "d": silent | {"removal": removal, "stands_out": True, "others": ["2.mlp"]},
    }
    scores = {score: {"sites": sites, "headline": headline} for score, headline in headlines.items()}
    scored = {"n_pairs": 9, "n_layers": 4, "scores": scores}
    head, _, *rows = markdown({"models": {"m": {"built-in": scored}}}).splitlines()
    assert head.startswith("| model | set, pairs | score |")
    shown = (
        "layer 1, attention (early): +3.0, p .250; layer 2 (middle): +1.0, p .250; layer 3 (late): +0.0, p .250 | "
        "layer 0 (early): -2.0, p .250; layer 3 (late): +0.0, p .250; layer 2 (middle): +1.0, p .250"
    )
    effect = "+0.250 [-0.125, +0.500]"
    assert rows == [
        f"| m | built-in, 9 | `a` | {shown} | none |",
        f"| m | built-in, 9 | `b` | {shown} | none; layer 1, attention not confirmed: {effect} |",
        f"| m | built-in, 9 | `c` | {shown} | none; layer 1, attention not confirmed: breaks the model |",
        f"| m | built-in, 9 | `d` | {shown} | layer 1, attention; layer 2: {effect} |",
    ]
