import json
import shlex

import pytest
import torch

import toxloc
from tests.conftest import bits, same_bits
from toxloc import Localization, RunResult, ToxlocError, load_intervention
from toxloc.runs.pipeline import SCORES
from toxloc.runs.settings import Settings
from toxloc.runs.texts import load_texts

FILES = ["completions.jsonl", "localization", "meow2x", "report.html", "results.json", "trne"]
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
    base, meow, trne = r["runs"]
    assert base["fluency"]["perplexity_ratio"] == 1
    assert 1 < meow["config"]["tuned_perplexity_ratio"] <= 1.02
    assert 1 < trne["config"]["tuned_perplexity_ratio"] <= 1.01
    assert trne["change"]["any"]["relative"] == pytest.approx(
        trne["toxicity"]["any"]["rate"] / base["toxicity"]["any"]["rate"] - 1)


def test_scores_come_with_their_uncertainty_and_with_causal_proof(small_run):
    r = small_run.results
    assert r["localization"]["uncertainty"]["attribution"]["p_adjusted"][0] <= 1
    assert set(r["localization"]["uncertainty"]) == set(SCORES)
    proof, curve = r["causal"]["proof"], r["causal"]["curve"]
    assert [k["layers"] for k in proof["layers"]] == [[layer] for layer in range(8)]
    assert len(proof["neurons"]) == 6
    found = {(c["score"], c["parts"]) for c in proof["correlations"]}
    assert found == {(s, p) for s in SCORES for p in ("layers", "neurons")}
    assert [k["neurons"] for k in curve["ordered"]] == curve["counts"] == [8, 32, 128, 512]
    assert all(k["perplexity_ratio"] > 0 and 0 <= k["toxic_rate"] <= 1 for k in curve["ordered"])
    tops = [(n["layer"], n["neuron"]) for n in r["top_neurons"]]
    assert tops == Localization.load(small_run.path / "localization").top_neurons("attribution", len(tops))


def test_a_model_can_be_its_own_contrast_set(tmp_path):
    result = toxloc.run(out=tmp_path / "r", contrast="sampled", **SMALL | dict(max_prompts=60))
    r = result.results
    assert r["contrast"]["name"] == "sampled from toxloc-tiny"
    assert r["prompts"]["n_judged"] == 30  # the other half was sampled from
    assert r["causal"] is None
    assert "--contrast sampled" in r["command"]


def test_both_methods_turn_toxicity_down_even_in_a_small_run(small_run):
    assert small_run.rate("trne") < 0.5 * small_run.rate("baseline")
    assert small_run.rate("meow2x") < small_run.rate("baseline")


def test_rates_can_be_recounted_from_the_completions(small_run):
    rows = [json.loads(line) for line in (small_run.path / "completions.jsonl").read_text().splitlines()]
    for method in ("baseline", "meow2x", "trne"):
        judged = [row for row in rows if row["method"] == method and row["kind"] == "provocative"]
        assert len(judged) == 12 * 2
        assert small_run.rate(method) == pytest.approx(sum(row["toxic"]["any"] for row in judged) / len(judged))
    everyday = [row for row in rows if row["kind"] == "everyday" and row["method"] == "trne"]
    assert len(everyday) == 12


def test_what_was_fitted_can_be_used_again(small_run, lm):
    before = bits(lm)
    edit = load_intervention(small_run.path / "trne")
    assert edit.fitted_on["fingerprint"] == lm.fingerprint
    neutral = toxloc.load_neutral(limit=60)
    with edit.applied(lm):
        again = toxloc.evaluate(lm, toxloc.load_prompts().limited(12).only("provocative"), samples=2,
                                neutral=neutral.check)
    entry = small_run.results["runs"][2]
    assert again.toxicity["any"].rate == entry["toxicity"]["any"]["rate"]
    assert again.fluency.perplexity == pytest.approx(entry["fluency"]["perplexity"], rel=1e-4)
    assert same_bits(before, lm)
    assert Localization.load(small_run.path / "localization").scores == SCORES


def test_the_same_seed_gives_the_same_run(tmp_path):
    one, two = (toxloc.run(out=tmp_path / name, **SMALL) for name in "ab")
    assert (one.path / "completions.jsonl").read_bytes() == (two.path / "completions.jsonl").read_bytes()
    assert one.results == two.results


def test_the_command_repeats_the_settings():
    s = Settings(model="my model", evaluators=("profanity-check",), budget=0.02)
    assert shlex.split(s.command()) == ["toxloc", "run", "--model", "my model", "--evaluator", "profanity-check",
                                        "--budget", "0.02"]
    assert Settings().command() == "toxloc run"


def test_a_failed_run_leaves_no_file(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("toxloc.runs.pipeline.write_report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        toxloc.run(out=tmp_path / "out", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_overwriting_keeps_the_old_run_until_the_new_one_is_complete(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(ToxlocError, match="not empty"):
        toxloc.run(out=tmp_path / "out", **SMALL)
    monkeypatch.setattr("toxloc.runs.pipeline.collect_contrast", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        toxloc.run(out=tmp_path / "out", overwrite=True, **SMALL)
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_contrast_and_prompts_of_one_file_are_kept_apart(tmp_path, lm):
    rows = [{"prompt": {"text": f"opening {i}", "toxicity": 0.9 if i % 2 else 0.1},
             "continuation": {"text": " goes on", "toxicity": 0.1}} for i in range(40)]
    path = tmp_path / "rtp.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    texts = load_texts(Settings(contrast=str(path), prompts=str(path), max_prompts=5))(lm, [])
    judged = set(texts.judged.texts) | set(texts.everyday.texts)
    assert len(judged) == 10
    held_out = {*texts.held_out.toxic, *texts.held_out.neutral}
    assert held_out
    assert not held_out & {*texts.contrast.toxic, *texts.contrast.neutral}
    for text in [*texts.contrast.toxic, *texts.contrast.neutral, *held_out]:
        assert not any(text.startswith(f"{prompt} ") for prompt in judged)


def test_check_text_shares_nothing_with_the_tuning_text(tmp_path, lm):
    lines = [f"Line number {i} has quite a few words in it indeed." for i in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(lines[:40]))
    (tmp_path / "b.txt").write_text("\n".join(lines[20:]))
    texts = load_texts(Settings(neutral=str(tmp_path / "a.txt"), check=str(tmp_path / "b.txt")))(lm, [])
    assert not {*texts.check} & {*texts.neutral.fit, *texts.neutral.tune}
    with pytest.raises(ToxlocError, match="holds no text that"):
        load_texts(Settings(neutral=str(tmp_path / "a.txt"), check=str(tmp_path / "a.txt"), max_neutral=40)
                    .model_copy(update={"check": _only(texts.neutral.fit + texts.neutral.tune, tmp_path)}))


def _only(texts, folder):
    (folder / "seen.txt").write_text("\n".join(texts))
    return str(folder / "seen.txt")


@pytest.mark.parametrize(("arguments", "words"), [
    (dict(samples=0), "samples=0"),
    (dict(budget=-1.0), "budget=-1.0"),
    (dict(evaluators=["nobody"]), "no evaluator 'nobody'"),
    (dict(model="./nowhere"), "no model folder"),
    (dict(contrast="nowhere.csv"), "no file nowhere.csv"),
    (dict(device="cuda:99"), "torch sees"),
])
def test_bad_settings_stop_before_anything_is_written(tmp_path, arguments, words):
    with pytest.raises(ToxlocError, match=words):
        toxloc.run(**{"out": tmp_path / "deep" / "out", **arguments})
    assert list(tmp_path.iterdir()) == []


def test_torch_is_left_in_its_usual_state(small_run):
    assert torch.is_grad_enabled()
