import json

import pytest
import torch

import toxloc
from tests.conftest import bits, same_bits
from toxloc import Localization, RunResult, load_intervention
from toxloc.causal.knockout import Knockout
from toxloc.models.sites import Site
from toxloc.runs.pipeline import SCORES, _scores_for

FILES = ["completions.jsonl", "localization", "meow2x", "report.html", "results.json", "trne"]
ALL_SCORES = (*SCORES, "counterfactual")
KNOCKED = ("toxic_rise", "neutral_rise", "effect")
SMALL = dict(samples=1, max_prompts=4, max_texts=30, max_neutral=30, knockouts=0)


def test_everything_is_written(small_run):
    assert sorted(p.name for p in small_run.path.iterdir()) == FILES
    assert RunResult.load(small_run.path).results == small_run.results
    assert small_run.report.is_file()


def test_results_have_the_promised_schema(small_run):
    r = small_run.results
    assert {"model", "seed", "contrast", "prompts", "localization", "runs"} <= set(r)
    assert [entry["method"] for entry in r["runs"]] == ["baseline", "meow2x", "trne"]
    for scores in r["localization"]["layer_scores"].values():
        assert len(scores) == 8
    parts = r["localization"]["parts"]
    assert {part: len(figures["sites"]) for part, figures in parts.items()} == {"mlp": 8, "attention": 8}
    assert parts["mlp"]["layer_scores"] == r["localization"]["layer_scores"]
    assert parts["attention"]["layer_scores"].keys() == parts["attention"]["uncertainty"].keys() == set(ALL_SCORES)
    base, meow, trne = r["runs"]
    assert base["fluency"]["perplexity_ratio"] == 1
    assert 1 < meow["config"]["tuned_perplexity_ratio"] <= 1.02
    assert 1 < trne["config"]["tuned_perplexity_ratio"] <= 1.01
    assert trne["change"]["any"]["relative"] == pytest.approx(
        trne["toxicity"]["any"]["rate"] / base["toxicity"]["any"]["rate"] - 1
    )


def test_methods_keep_their_budgets_and_have_titles_and_colours(small_run):
    base, meow, trne = small_run.results["runs"]
    assert [run["title"] for run in (base, meow, trne)] == ["baseline", "Meow2X", "TRNE"]
    assert [run["colour"] for run in (base, meow, trne)] == [None, toxloc.Meow2X.colour, toxloc.TRNE.colour]
    assert meow["config"]["budget"] == {"perplexity": 0.02, "kl": None}
    assert trne["config"]["budget"] == {"perplexity": 0.01, "kl": None}


def test_scores_come_with_their_uncertainty_and_with_causal_proof(small_run):
    r = small_run.results
    loc = Localization.load(small_run.path / "localization")
    assert set(r["localization"]["uncertainty"]) == set(ALL_SCORES)
    for score, figures in r["localization"]["uncertainty"].items():
        assert figures["p_adjusted"] == loc.uncertainty[score].p_adjusted.tolist()
    proof, curve = r["causal"]["proof"], r["causal"]["curve"]
    removed = [k["layers"] for k in proof["layers"]]
    assert removed == [[layer] for layer in range(8)] + [[f"{layer}.attention"] for layer in range(8)]
    assert len(proof["neurons"]) == 6
    correlated = {(c["score"], c["parts"]) for c in proof["correlations"]}
    assert correlated == {(s, p) for s in ALL_SCORES for p in ("sites", "neurons")}
    assert [k["neurons"] for k in curve["ordered"]] == curve["counts"] == [8, 32, 128, 512]
    tops = [(n["layer"], n["neuron"]) for n in r["top_neurons"]]
    assert tops == loc.top_neurons("attribution", len(tops))


def test_the_headline_is_that_of_the_localization_and_the_removals(small_run):
    headline, proof = small_run.results["headline"], small_run.results["causal"]["proof"]
    loc = Localization.load(small_run.path / "localization")
    assert headline["score"] == "attribution"
    removals = [
        Knockout(tuple(map(Site.of, k["layers"])), (), 0.0, *(k[name] for name in KNOCKED), tuple(k["effect_ci"]))
        for k in proof["layers"]
    ]
    assert loc.headline(removal=removals).to_dict() == headline
    assert headline["stands_out"] is False and headline["text"].startswith("No single site stands out")
    broken = [k["layers"] for k in proof["layers"] if k["breaks_model"]]
    assert broken == [[0]]  # the MLP of the first layer


def test_counterfactual_attribution_is_left_out_with_a_reason(lm):
    pairs = toxloc.load_contrast().limited(60)
    assert _scores_for(lm, pairs) == (ALL_SCORES, "")
    unpaired = toxloc.ContrastSet(pairs.toxic, pairs.neutral)
    assert _scores_for(lm, unpaired) == (SCORES, "the texts of the contrast set are not paired")
    few = "fewer than 20 of the {} pairs begin with the same words and then differ"
    assert _scores_for(lm, pairs.limited(10)) == (SCORES, few.format(10))
    different = toxloc.ContrastSet([f"a {t}" for t in pairs.toxic], [f"The {t}" for t in pairs.neutral], paired=True)
    assert _scores_for(lm, different) == (SCORES, few.format(60))


@pytest.mark.slow
def test_a_model_can_be_its_own_contrast_set(tmp_path):
    result = toxloc.run(out=tmp_path / "r", contrast="sampled", methods=("trne",), **SMALL | dict(max_prompts=60))
    r = result.results
    assert r["contrast"]["name"] == "sampled from toxloc-tiny"
    assert r["prompts"]["n_judged"] == 30  # the contrast set is sampled with the other half
    assert r["causal"] is None
    assert "--contrast sampled" in r["command"]


def test_both_methods_turn_toxicity_down_even_in_a_small_run(small_run):
    assert small_run.rate("trne") < 0.5 * small_run.rate("baseline")
    assert small_run.rate("meow2x") < small_run.rate("baseline")


@pytest.fixture(scope="module")
def completions(small_run):
    return [json.loads(line) for line in (small_run.path / "completions.jsonl").read_text().splitlines()]


def test_rates_can_be_recounted_from_the_verdicts_on_the_completions(small_run, completions):
    for entry in small_run.results["runs"]:
        method = entry["method"]
        judged = [row for row in completions if row["method"] == method and row["kind"] == "provocative"]
        everyday = [row for row in completions if row["method"] == method and row["kind"] == "everyday"]
        assert (len(judged), len(everyday)) == (12 * 2, 12)
        assert list(entry["toxicity"]) == ["toxloc-rtp", "toxloc-guard", "profanity-check", "any", "majority", "all"]
        for judge, figures in entry["toxicity"].items():
            rate = sum(row["toxic"][judge] for row in judged) / len(judged)
            assert small_run.rate(method, judge) == figures["rate"] == pytest.approx(rate)
            assert entry["everyday_toxicity"][judge]["rate"] == pytest.approx(
                sum(row["toxic"][judge] for row in everyday) / len(everyday)
            )


def test_verdicts_are_the_scores_at_the_thresholds_and_combined(small_run, completions):
    thresholds = {name: about["threshold"] for name, about in small_run.results["evaluators"].items()}
    for row in completions:
        verdicts = [row["toxic"][name] for name in thresholds]
        assert (row["toxic"]["any"], row["toxic"]["all"]) == (any(verdicts), all(verdicts))
        for name, threshold in thresholds.items():
            if abs(row["scores"][name] - threshold) > 1e-4:  # scores are rounded in the file
                assert row["toxic"][name] == (row["scores"][name] > threshold)


def test_a_point_of_the_curve_is_the_model_without_its_top_neurons(small_run, lm):
    """Set the rows of W_out to zero by hand, and judge one completion of each provocative prompt."""
    point = small_run.results["causal"]["curve"]["ordered"][1]
    top = Localization.load(small_run.path / "localization").top_neurons("attribution", 32)
    prompts = toxloc.load_prompts().limited(12).only("provocative")

    def rate():
        return toxloc.evaluate(lm, prompts, samples=1, fluency=False).toxicity["any"].rate

    kept = [(layer, neuron, lm.W_out(layer)[neuron].clone()) for layer, neuron in top]
    assert point["toxic_rate_before"] == rate()
    with torch.no_grad():
        for layer, neuron, _ in kept:
            lm.W_out(layer)[neuron] = 0
        try:
            without = rate()
        finally:
            for layer, neuron, row in kept:
                lm.W_out(layer)[neuron] = row
    assert (point["neurons"], point["toxic_rate"]) == (32, without)


def test_what_was_fitted_can_be_used_again(small_run, lm):
    before = bits(lm)
    edit = load_intervention(small_run.path / "trne")
    assert edit.fitted_on["fingerprint"] == lm.fingerprint
    neutral = toxloc.load_neutral(limit=60)
    with edit.applied(lm):
        again = toxloc.evaluate(
            lm, toxloc.load_prompts().limited(12).only("provocative"), samples=2, neutral=neutral.check
        )
    entry = small_run.results["runs"][2]
    assert again.toxicity["any"].rate == entry["toxicity"]["any"]["rate"]
    assert again.fluency.perplexity == pytest.approx(entry["fluency"]["perplexity"], rel=1e-4)
    assert same_bits(before, lm)
    assert Localization.load(small_run.path / "localization").scores == ALL_SCORES


def test_torch_is_left_in_its_usual_state(small_run):
    assert torch.is_grad_enabled()
