import pytest

from benchmarks.plants import planted_model
from benchmarks.sites import comparable, markdown, sites_of, third_of
from toxloc import load_contrast
from toxloc.localization.first_difference import first_differences
from toxloc.models.sites import Site


def test_the_planted_attention_has_the_highest_z():
    lm = planted_model("attention3")
    pairs = comparable(lm, load_contrast(), 150)
    assert len(pairs.toxic) == 150 and len(first_differences(lm, pairs).usable) == 150
    scored = sites_of(lm, pairs)
    assert (scored["n_pairs"], scored["n_held_out"], scored["n_layers"]) == (120, 30, 8)
    assert len({row["site"] for row in scored["sites"]}) == 16
    assert max(scored["sites"], key=lambda row: row["z"])["site"] == "3.attention"


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
    scored = {"n_pairs": 9, "n_layers": 4, "sites": sites, "headline": {"text": "Nothing."}}
    head, _, row = markdown({"models": {"m": {"built-in": scored}}}).splitlines()
    assert head.startswith("| model | set, pairs |")
    assert row == (
        "| m | built-in, 9 | layer 1, attention (early): +3.0, 0.250; layer 2 (middle): +1.0, 0.250; layer 3 (late): "
        "+0.0, 0.250 | layer 0 (early): -2.0, 0.250; layer 3 (late): +0.0, 0.250; layer 2 (middle): +1.0, 0.250 | "
        "Nothing. |"
    )
