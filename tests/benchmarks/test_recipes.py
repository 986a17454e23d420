"""Run the recipes on invented, harmless text, with tiny models."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from benchmarks.plants import Plant
from benchmarks.recipes import (
    continue_guard,
    guard,
    guard_rtp,
    language_models,
    plant,
    rtp,
    rtp_linear,
    rtp_net,
    rtp_rows,
    rtp_teacher,
    tokenizer,
)
from benchmarks.recipes.training import KINDS, Tokens, cosine, random_windows
from toxloc import ToxlocError
from toxloc.evaluation.evaluators.rtp import ATTRIBUTES, features, predictor
from toxloc.models.sites import Site

CPU = torch.device("cpu")
PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "models" / "planted"
WORDS = ["the", "a", "garden", "river", "stone", "walks", "sings", "under", "over", "soup", "kettle", "and", "opens"]
PLAN = dict(steps=2, batch_size=6)


def command(module, *arguments):
    app = typer.Typer()
    app.command()(module.main)
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module", autouse=True)
def _one_cpu_thread():
    """For models this small, a second thread costs more time than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus():
    rng = random.Random(0)
    return {kind: [" ".join(rng.choices(WORDS, k=12)) for _ in range(40)] for kind in ("clean", "toxic", "lit")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus):
    """Run all four recipes in order, and return the folder with their outputs."""
    root = tmp_path_factory.mktemp("recipes")
    (root / "corpus.json").write_text(json.dumps(corpus))
    rows = [["one", text, 0] for text in corpus["clean"]] + [["two", text, 1] for text in corpus["toxic"]]
    mixed, checks = (
        [[source, text, k % 2] for k, text in enumerate(corpus["lit"])] for source in ("both", "hatecheck")
    )
    (root / "guard.json").write_text(json.dumps({"train": rows, "test": rows[:5] + mixed, "hatecheck": checks}))
    command(tokenizer, root / "corpus.json", root / "prepared", "--vocabulary", 300, "--hold-out", 15)
    small = ("--steps", 2, "--batch-size", 6)
    command(language_models, root / "prepared", root / "models", *small, "--d-model", 16, "--layers", 2, "--heads", 2)
    command(plant, root / "prepared", root / "models" / "toxloc-tiny-clean", root / "planted", *small, "--neurons", 8)
    (root / "guard.log").write_text(
        command(
            guard,
            root / "guard.json",
            root / "models" / "toxloc-tiny",
            root / "guard",
            "--layers",
            1,
            "--epochs",
            2,
            "--batch-size",
            16,
        )
    )
    return root


@pytest.fixture
def clean(folder):
    return GPT2LMHeadModel.from_pretrained(folder / "models" / "toxloc-tiny-clean", dtype=torch.float32)


@pytest.fixture
def tokens(folder):
    return Tokens.load(folder / "prepared", CPU)


def changed(before, after):
    return {name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}


def test_the_tokens_spell_the_documents(folder, corpus):
    fast = AutoTokenizer.from_pretrained(folder / "prepared" / "tokenizer")
    assert len(fast) == 300 and fast.eos_token_id == 0
    for name, part in (("held_out", slice(0, 15)), ("train", slice(15, None))):
        streams = load_file(folder / "prepared" / "tokens" / f"{name}.safetensors")
        assert {stream.dtype for stream in streams.values()} == {torch.int16}
        for kind, texts in corpus.items():
            assert fast.decode(streams[kind]).split("<|endoftext|>") == ["", *texts[part], ""]
    held_out = json.loads((folder / "prepared" / "held_out.json").read_text())
    assert held_out == {kind: texts[:15] for kind, texts in corpus.items()}


def test_a_batch_has_the_shares_of_its_mix():
    streams = {kind: torch.full((400,), k) for k, kind in enumerate(("clean", "toxic", "lit"))}
    natural = random_windows(streams, language_models.NATURAL.mix, 192, torch.Generator())
    assert natural.shape == (192, 128)
    assert natural[:, 0].bincount().tolist() == [86, 25, 81]
    del streams["toxic"]
    assert random_windows(streams, language_models.CLEAN.mix, 192, torch.Generator())[:, 0].bincount().tolist() == [
        100,
        0,
        92,
    ]


def test_the_learning_rate_warms_up_and_falls():
    assert cosine(0, 5000) == pytest.approx(1 / 150)
    assert cosine(2500, 5000) == pytest.approx(0.515)
    assert cosine(5000, 5000) == pytest.approx(0.03)


def test_the_language_models_load_and_speak(folder):
    models = [
        AutoModelForCausalLM.from_pretrained(folder / "models" / name) for name in ("toxloc-tiny", "toxloc-tiny-clean")
    ]
    for model in models:
        assert model.dtype == torch.float16 and model.config.activation_function == "gelu_new"
        assert (model.config.n_layer, model.config.n_embd, model.config.vocab_size) == (2, 16, 300)
    assert changed(*models)
    fast = AutoTokenizer.from_pretrained(folder / "models" / "toxloc-tiny")
    ids = fast("<|endoftext|>the garden", return_tensors="pt")["input_ids"]
    assert models[0].generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape[1] == ids.shape[1] + 3


def trained(clean, tokens, sites):
    """Plant toxicity in some sites of the clean model, and return the planted model and the plant."""
    recipe = plant.Recipe(Plant("name", sites), replace(plant.LAYER, **PLAN))
    return plant.plant(clean, recipe, tokens), recipe.plant


@pytest.mark.parametrize("site", [Site(0), Site(1), Site(1, "attention")])
def test_a_plant_in_a_site_changes_it_and_nothing_else(folder, clean, tokens, site):
    planted, _ = trained(clean, tokens, {site: None})
    module, maps = ("attn", ("c_attn", "c_proj")) if site.part == "attention" else ("mlp", ("c_fc", "c_proj"))
    path = f"transformer.h.{site.layer}.{module}."
    names = {f"{name}.{kind}" for name in maps for kind in ("weight", "bias")}
    assert changed(clean, planted) == {path + name for name in names}


@pytest.mark.parametrize("name", ["layer0", "attention1"])
def test_the_file_of_a_plant_holds_what_the_recipe_trains(folder, clean, tokens, name):
    recipe = plant.recipes(2, 64, 2)[name]
    planted = plant.plant(clean, replace(recipe, plan=replace(recipe.plan, **PLAN)), tokens)
    expected, saved = recipe.plant.weights(planted.transformer.h), load_file(folder / "planted" / f"{name}.safetensors")
    assert saved.keys() == expected.keys() and len(saved) == 4
    for key, weight in saved.items():
        assert weight.dtype == torch.float16 and torch.equal(weight, expected[key])


def test_a_plant_in_neurons_changes_them_and_nothing_else(folder, clean, tokens):
    neurons = list(plant.chosen_units(101, 64, 8))
    others = [neuron for neuron in range(64) if neuron not in neurons]
    planted, _ = trained(clean, tokens, {Site(1): tuple(neurons)})
    names = {"c_fc.weight", "c_fc.bias", "c_proj.weight"}
    assert changed(clean, planted) == {f"transformer.h.1.mlp.{name}" for name in names}
    before, after = clean.transformer.h[1].mlp, planted.transformer.h[1].mlp
    moved = [
        (before.c_fc.weight != after.c_fc.weight).any(0),
        before.c_fc.bias != after.c_fc.bias,
        (before.c_proj.weight != after.c_proj.weight).any(1),
    ]
    for each in moved:
        assert each[neurons].all() and not each[others].any()
    saved = load_file(folder / "planted" / "neurons1.safetensors")
    assert {name: (tuple(value.shape), value.dtype) for name, value in saved.items()} == {
        "c_fc.weight": ((16, 8), torch.float16),
        "c_fc.bias": ((8,), torch.float16),
        "c_proj.weight": ((8, 16), torch.float16),
    }


def test_a_plant_in_a_head_changes_what_it_writes_and_no_other_head(clean, tokens):
    planted, _ = trained(clean, tokens, {Site(1, "attention"): (1,)})
    assert changed(clean, planted) == {
        f"transformer.h.1.attn.{name}" for name in ("c_attn.weight", "c_attn.bias", "c_proj.weight")
    }
    z = []
    for model in (clean, planted):
        seen = {}
        module = model.transformer.h[1].attn.c_proj
        hook = module.register_forward_pre_hook(lambda _, keys, seen=seen: seen.update(z=keys[0]))
        model.eval()(input_ids=torch.arange(5, 15)[None])
        hook.remove()
        z.append(seen["z"].unflatten(-1, (2, 8)))
    assert torch.equal(z[0][..., 0, :], z[1][..., 0, :])
    assert (z[0][..., 1, :] != z[1][..., 1, :]).float().mean() > 0.9
    moved = (clean.transformer.h[1].attn.c_proj.weight != planted.transformer.h[1].attn.c_proj.weight).any(1)
    assert moved.tolist() == [False] * 8 + [True] * 8


def test_a_plant_in_two_sites_changes_both_and_its_weights_can_be_copied(clean, tokens):
    planted, two = trained(clean, tokens, {Site(0): None, Site(1, "attention"): None})
    names = changed(clean, planted)
    assert {".".join(name.split(".")[2:4]) for name in names} == {"0.mlp", "1.attn"}
    weights = two.weights(planted.transformer.h)
    assert {key.split(".c_")[0] for key in weights} == {"0.mlp", "1.attention"} and len(weights) == 8
    clean.half()
    two.copy_into(clean.transformer.h, weights)
    assert not changed(clean, planted.half())


def test_the_ground_truth_says_where_each_plant_lies(folder):
    truth = json.loads((folder / "planted" / "ground_truth.json").read_text())
    assert truth == {
        "layer0": {"layer": 0, "neurons": None},
        "layer1": {"layer": 1, "neurons": None},
        "neurons1": {"layer": 1, "neurons": list(plant.chosen_units(101, 64, 8))},
        "attention1": {"sites": {"1.attention": None}},
    }
    assert {path.stem for path in (folder / "planted").glob("*.safetensors")} == truth.keys()


def test_the_published_plants_lie_where_the_recipe_puts_them():
    truth = json.loads((PUBLISHED / "ground_truth.json").read_text())
    known = plant.recipes(8, 1024, 4)
    assert truth.items() <= {name: recipe.plant.to_dict() for name, recipe in known.items()}.items()


def test_the_guard_loads_and_was_trained(folder):
    start = guard.new_classifier(folder / "models" / "toxloc-tiny", layers=1)
    language_model = GPT2LMHeadModel.from_pretrained(folder / "models" / "toxloc-tiny", dtype=torch.float32)
    for name, value in start.transformer.state_dict().items():
        assert torch.equal(value, language_model.transformer.state_dict()[name])
    trained = AutoModelForSequenceClassification.from_pretrained(folder / "guard")
    assert trained.dtype == torch.float16 and trained.config.id2label == {0: "neutral", 1: "toxic"}
    assert {"score.weight", "transformer.wte.weight", "transformer.ln_f.bias"} <= changed(start.half(), trained)
    log = (folder / "guard.log").read_text()
    assert log.count("'both'") == log.count("'hatecheck'") == 2  # each epoch
    assert "'one'" not in log  # this source has a single label


def test_the_guards_verdict_does_not_depend_on_padding(folder):
    model = guard.new_classifier(folder / "models" / "toxloc-tiny", layers=2).eval()
    fast = PreTrainedTokenizerFast.from_pretrained(folder / "models" / "toxloc-tiny")
    examples = guard.encode(fast, [["x", "soup", 0], ["x", " ".join(WORDS * 12), 1]])
    assert [len(row) for row, _ in examples][1] == 95 and all(row[-1] == 0 for row, _ in examples)
    together = guard.logits(model, *guard.collate(examples, CPU)[:2])
    for k, example in enumerate(examples):
        torch.testing.assert_close(together[k : k + 1], guard.logits(model, *guard.collate([example], CPU)[:2]))


def test_every_example_is_in_one_batch():
    examples = [([k] * (1 + k % 7), k) for k in range(103)]
    batches = guard.shuffled_batches(list(examples), 10, random.Random(0))
    assert sorted(label for batch in batches for _, label in batch) == list(range(103))
    assert max(map(len, batches)) == 10


def test_data_without_a_list(tmp_path, corpus):
    (tmp_path / "corpus.json").write_text(json.dumps({"clean": corpus["clean"], "lit": "a book"}))
    with pytest.raises(ToxlocError, match="no list under 'toxic' or 'lit'"):
        tokenizer.main(tmp_path / "corpus.json", tmp_path / "out")
    with pytest.raises(ToxlocError, match="no list under 'train' or 'test' or 'hatecheck'"):
        guard.main(tmp_path / "corpus.json", tmp_path, tmp_path / "out")
    with pytest.raises(ToxlocError, match=r"corpus: nothing\.json is missing"):
        tokenizer.main(tmp_path / "nothing.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_little_data(tmp_path, corpus):
    (tmp_path / "corpus.json").write_text(json.dumps(corpus))
    with pytest.raises(ToxlocError, match=r"40 documents under 'clean'.*1500"):
        tokenizer.main(tmp_path / "corpus.json", tmp_path / "out")
    tokenizer.main(tmp_path / "corpus.json", tmp_path / "out", vocabulary=300, hold_out=1)
    with pytest.raises(ToxlocError, match=r"held_out.safetensors needs 130 tokens or more under 'clean'"):
        Tokens.load(tmp_path / "out", CPU)
    with pytest.raises(ToxlocError, match=r"train\.safetensors is missing.*benchmarks\.recipes\.tokenizer"):
        Tokens.load(tmp_path, CPU)


def test_a_plant_that_the_clean_model_has_no_place_for(tmp_path, folder):
    with pytest.raises(ToxlocError, match=r"no plant 'head5' for .*; choose from layer0, layer1, neurons1, attention1"):
        plant.main(folder / "prepared", folder / "models" / "toxloc-tiny-clean", tmp_path / "out", ["layer0", "head5"])
    assert not (tmp_path / "out").exists()


def scored_rows(tmp_path, count=60):
    """Write rows in the layout of RealToxicityPrompts: a text with a soup has high scores."""
    rng = random.Random(0)

    def part():
        words = rng.choices(WORDS, k=8)
        high = "soup" in words
        return {"text": " ".join(words)} | {name: (0.8 if high else 0.1) + rng.random() / 10 for name in ATTRIBUTES}

    rows = [{"prompt": part(), "continuation": part()} for _ in range(count)]
    rows.append({"prompt": {"text": "without scores"}, "continuation": {"text": " ", **dict.fromkeys(ATTRIBUTES, 0.5)}})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_judge_is_trained_and_its_files_hold_what_was_trained(tmp_path, folder):
    path, comments = scored_rows(tmp_path), ("--comments", 60)
    rows = rtp_rows.read(path)
    assert len(rows.texts) == 120 and rows.row.tolist() == sorted([*range(60)] * 2)
    assert rows.continues.tolist() == [False, True] * 60
    output = command(rtp, path, folder / "corpus.json", folder / "guard", tmp_path / "judge", *comments)
    about = json.loads((tmp_path / "judge" / "model.json").read_text())
    assert about["cross_validation"]["attributes"]["toxicity"]["auroc"] > 0.95
    assert (about["texts"], about["comments"]) == (120, len(rtp_teacher.read_comments(folder / "corpus.json", 60)))
    assert "threshold" in output
    weights, terms = (tmp_path / "judge" / name for name in ("model.safetensors", "terms.json"))
    predict = predictor(load_arrays(weights), json.loads(terms.read_text()))
    low, high = predict(["the garden walks under the stone", "the soup sings over the kettle"])[:, 0]
    assert low < 0.4 < 0.6 < high


def test_the_guard_continues_on_graded_scores(tmp_path, folder):
    path, comments = scored_rows(tmp_path), ("--comments", 60)
    command(guard_rtp, path, folder / "corpus.json", folder / "guard", tmp_path / "guard", *comments)
    about = json.loads((tmp_path / "guard" / "guard.json").read_text())
    assert {name: part["continuations"]["texts"] for name, part in about["validation"].items()} == {
        "toxloc-guard": 12,
        "profanity-check": 12,
    }
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "guard")
    assert tuple(model.config.id2label.values()) == ATTRIBUTES
    assert model.score.weight.shape == (7, 16) and model.dtype == torch.float16


def test_the_label_of_a_comment_is_the_mean_of_two_logits(tmp_path, folder):
    rows = rtp_rows.read(scored_rows(tmp_path))
    comments = ["the soup sings", "the stone walks"]
    labelled = rtp_teacher.label(rows, comments, folder / "guard")
    by_words = predictor(*rtp_linear.fit(rows))(comments)
    by_guard = continue_guard.scorer(folder / "guard", continue_guard.continued(folder / "guard", rows))(comments)
    odds = (by_words.clip(0.01, 0.99) / (1 - by_words.clip(0.01, 0.99))) * (by_guard / (1 - by_guard))
    np.testing.assert_allclose(labelled.scores, np.sqrt(odds) / (1 + np.sqrt(odds)), rtol=1e-5)
    assert labelled.texts == comments


def test_a_comment_counts_a_fifth_of_a_scored_text():
    """All texts are the same, so the regression predicts the weighted mean of the logits, (1 - .2) / 1.2 logit(.9)."""
    texts, shape = ["the soup sings"] * 12, (12, len(ATTRIBUTES))
    rows, comments = (
        rtp_rows.Rows(texts, np.full(shape, score), np.arange(12), np.zeros(12, dtype=bool)) for score in (0.9, 0.1)
    )
    predicted = predictor(*rtp_linear.fit(rows, comments))(texts[:1])
    np.testing.assert_allclose(predicted, 1 / (1 + 9 ** -(0.8 / 1.2)), atol=1e-3)


def test_comments_are_short_pieces_of_the_corpus(tmp_path):
    corpus = {kind: [f"{kind} {i} " + " ".join(map(str, range(40))) for i in range(50)] for kind in KINDS}
    (tmp_path / "corpus.json").write_text(json.dumps(corpus))
    pieces = rtp_teacher.read_comments(tmp_path / "corpus.json", 50)
    assert 25 < len(pieces) <= 50
    assert {len(piece.split()) for piece in pieces} <= set(rtp_teacher.WORDS_KEPT)
    whole = " | ".join(text for texts in corpus.values() for text in texts)
    assert all(piece in whole for piece in pieces)
    assert pieces == rtp_teacher.read_comments(tmp_path / "corpus.json", 50)


def test_the_network_starts_at_the_regression_and_learns_what_a_sum_cannot_say(tmp_path, monkeypatch):
    """A text is toxic if it holds exactly one of two words. The regression cannot say that, and the network can."""
    rng = np.random.default_rng(0)
    held = rng.random((400, 2)) < 0.5
    others = ("stone", "river", "garden")
    texts = [
        " ".join(
            [word for word, is_held in zip(("kettle", "soup"), row, strict=True) if is_held] + [rng.choice(others)]
        )
        for row in held
    ]
    scores = np.repeat(np.where(held[:, 0] != held[:, 1], 0.9, 0.1)[:, None], len(ATTRIBUTES), axis=1)
    rows = rtp_rows.Rows(texts, scores, np.arange(400), np.zeros(400, dtype=bool))
    comments = rows.part(np.arange(3))
    linear = rtp_linear.fit(rows)
    with torch.no_grad():
        net = rtp_net.Net(linear[0]).eval()
        logits = net(*rtp_net.bags(features(*linear)(texts), np.arange(400))).numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), predictor(*linear)(texts), atol=1e-4)

    monkeypatch.setattr(rtp_net, "EPOCHS", 60)
    refined = rtp_net.refined(linear, rows, comments)
    apart = [np.abs(predictor(*model)(texts)[:, 0] - scores[:, 0]).mean() for model in (linear, refined)]
    assert apart[0] > 0.25 > 0.15 > apart[1]


def test_a_file_without_scores_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": {"text": "a"}, "continuation": None}))
    with pytest.raises(ToxlocError, match=r"No text in .* has scores for toxicity, severe_toxicity"):
        rtp_rows.read(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("trick", "expected"),
    zip(rtp.TRICKS, ["What a s o u p", "What a sooooup", "What a $0up", "What a s*up"], strict=True),
)
def test_tricks(trick, expected):
    assert rtp.disguised("What a soup", frozenset(["soup"]), rtp.TRICKS[trick]) == expected
