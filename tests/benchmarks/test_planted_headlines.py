import json
from dataclasses import asdict

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import planted_headlines
from benchmarks.planted_headlines import Verdict, counts_markdown, kind_of, markdown, verdict, verdicts
from benchmarks.plants import planted_model
from toxloc import load_contrast
from toxloc.localization.headline import Headline
from toxloc.models.sites import Site


class Removed:
    """The removal of one site, with a given interval of the effect."""

    sites, units, neutral_rise, breaks_model = (Site(3),), (), 0.1, False

    def __init__(self, low: float, high: float) -> None:
        self.effect, self.effect_ci = (low + high) / 2, (low, high)


def test_the_planted_attention_is_named_and_nothing_else():
    true = [Site(3, "attention")]
    found = {v.score: v for v in verdicts(planted_model("attention3"), "attention3", load_contrast(), true)}
    assert found["attribution"].named == found["attribution"].true == ("3.attention",)
    assert found["attribution"].kind == "planted sites only"
    assert found["attribution"].text.startswith("Layer 3 (attention) stands out")


@pytest.mark.parametrize(
    ("named", "true", "kind"),
    [
        ([], ["3.mlp"], "silent"),
        (["3.mlp"], ["3.mlp", "5.mlp"], "planted sites only"),
        (["3.mlp", "4.mlp"], ["3.mlp"], "planted and other sites"),
        (["4.mlp"], ["3.mlp"], "other sites only"),
        (["4.mlp"], [], "other sites only"),
    ],
)
def test_kinds(named, true, kind):
    assert kind_of(named, true) == kind


def test_only_a_headline_that_stands_out_names_sites():
    out = Headline("attribution", Site(3), 0.01, Removed(0.1, 0.3), True, (Site(5),))
    assert verdict("m", "attribution", [Site(3)], out).named == ("3.mlp", "5.mlp")
    unconfirmed = verdict("m", "attribution", [Site(3)], Headline("attribution", Site(3), 0.01, Removed(-0.1, 0.3)))
    assert (unconfirmed.named, unconfirmed.above_chance) == ((), "3.mlp")
    by_chance = verdict("m", "attribution", [], Headline("attribution", Site(3), 0.4))
    assert (by_chance.named, by_chance.above_chance, by_chance.kind) == ((), None, "silent")


def test_the_tables_by_hand():
    found = [
        Verdict("layer3", "counterfactual", ("3.mlp",), ("3.mlp",), None, ""),
        Verdict("layer3", "attribution", ("3.mlp",), ("3.mlp", "5.attention"), None, ""),
        Verdict("layer4", "counterfactual", ("4.mlp",), (), "2.mlp", ""),
        Verdict("layer4", "attribution", ("4.mlp",), ("1.mlp",), None, ""),
        Verdict("clean", "counterfactual", (), (), None, ""),
        Verdict("clean", "attribution", (), ("1.mlp",), None, ""),
    ]
    result = {"verdicts": [asdict(v) | {"kind": v.kind} for v in found]}
    assert markdown(result).splitlines()[2:] == [
        "| layer3 | layer 3 | layer 3; layer 5, attention | layer 3 |",
        "| layer4 | layer 4 | layer 1 | silent (layer 2 not confirmed) |",
        "| clean | – | layer 1 | silent |",
    ]
    assert counts_markdown(result).splitlines()[2:] == [
        "| `attribution` | 0 | 1 | 1 | 0 |",
        "| `counterfactual` | 1 | 0 | 0 | 1 |",
    ]


@pytest.mark.exhaustive
def test_the_command_prints_and_saves(tmp_path):
    app = typer.Typer()
    app.command()(planted_headlines.main)
    out = tmp_path / "planted-headlines.json"
    done = CliRunner().invoke(app, ["layer4", "--out", str(out)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    saved = json.loads(out.read_text())
    assert [v["score"] for v in saved["verdicts"]] == ["attribution", "counterfactual"]
    assert "layer4" in done.output
