import ast
import json
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from markdown_it import MarkdownIt

import toxloc
from tests.conftest import random_model
from tests.hostile import HOSTILE, NAMES
from toxloc import TRNE, Chain, Meow2X, Steering, ToxlocError, load_intervention
from toxloc.interventions.export import export_hf, export_peft
from toxloc.interventions.model_card import effect_in_run, model_card
from toxloc.interventions.rank_one import RankOne
from toxloc.interventions.unit_scaling import UnitScaling
from toxloc.support.control_characters import visible
from toxloc.support.files import write_json


def rank_ones(lm, sites):
    return TRNE([RankOne(site, torch.ones(lm.at(site).d_in), torch.ones(lm.d_model)) for site in sites])


def judged(method, rate, fluency):
    return {
        "method": method,
        "config": {},
        "toxicity": {"any": {"rate": rate, "rate_ci": [rate - 0.05, rate + 0.05]}},
        "fluency": fluency,
    }


def test_the_card_says_what_was_edited_and_measured(tiny, tmp_path):
    edit = rank_ones(tiny, [0, 1])
    edit.note_fit(
        tiny,
        {
            "texts": {"contrast": "pairs.csv", "n_toxic": 3, "n_neutral": 4, "neutral": "builtin"},
            "tuned_perplexity_ratio": 1.0098,
            "tuned_kl": None,
        },
    )
    cost = {"perplexity": 30.0, "perplexity_ratio": 1.0123, "kl": 0.0314, "n_tokens": 9}
    effect = {"before": judged("baseline", 0.331, None), "after": judged("trne", 0.15, cost)}
    with edit.applied(tiny):
        export_hf(tiny, tmp_path / "out", effect=effect)
    card = (tmp_path / "out" / "README.md").read_text()
    for words in (
        "Content warning",
        "random-gpt2",
        f"toxloc {toxloc.__version__}",
        "layers 0, 1",
        "arXiv:2605.27997",
        tiny.fingerprint,
        "pairs.csv (3 toxic, 4 neutral), everyday text builtin",
        "| any | 33.1% [28.1%, 38.1%] | 15.0% [10.0%, 20.0%] |",
        "+1.23%",
        "0.0314",
        "perplexity +0.98%",
        "not removed",
        "`<|endoftext|>`",
    ):
        assert words in card
    assert "not measured\n" not in card
    assert str(Path.home()) not in card + (tmp_path / "out" / "config.json").read_text()


def test_the_card_states_only_what_was_measured(tiny, tmp_path):
    export_hf(tiny, tmp_path / "plain")
    plain = (tmp_path / "plain" / "README.md").read_text()
    assert "the model is unedited" in plain
    assert "turned down" not in plain
    export_peft(Chain([rank_ones(tiny, [1]), Meow2X(neurons=[(0, 2), (0, 4), (1, 1)])]), tiny, tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    for words in (
        "**trne**: layer 1\n",
        "**meow2x**: 3 neurons (layer 0: 2, layer 1: 1)",
        "library_name: peft",
        "Toxicity before and after: not measured",
        "not recorded",
        "made by hand",
        'PeftModel.from_pretrained(base, "path/to/this/folder")',
    ):
        assert words in card
    export_peft(
        rank_ones(tiny, [1]),
        tiny,
        tmp_path / "half",
        effect={"before": judged("baseline", 0.3, None), "after": judged("trne", 0.2, None)},
    )
    assert "Perplexity on everyday text: not measured" in (tmp_path / "half" / "README.md").read_text()


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        ({"after": judged("trne", 0.1, None)}, 'needs "before" and "after"'),
        ({"before": judged("baseline", 0.1, None), "after": judged("meow2x", 0.1, None)}, "measured with 'meow2x'"),
    ],
)
def test_measurements_of_another_method_are_refused(tiny, tmp_path, effect, words):
    with rank_ones(tiny, [0]).applied(tiny), pytest.raises(ToxlocError, match=words):
        export_hf(tiny, tmp_path / "out", effect=effect)
    assert list(tmp_path.iterdir()) == []


def test_measurements_of_a_run_are_found_by_the_saved_intervention(tiny, tmp_path):
    edit, other = rank_ones(tiny, [0]), rank_ones(tiny, [1])
    for name, intervention in (("trne", edit), ("other", other)):
        intervention.note_fit(tiny, {"strength": 0.5, "layers": [edit.edits[0].layer, len(name)]})
        intervention.save(tmp_path / "run" / name)
    runs = [
        judged("baseline", 0.3, None),
        judged("meow2x", 0.2, None),
        judged("trne", 0.1, None) | {"config": edit.describe()},
    ]
    write_json(tmp_path / "run" / "results.json", {"about_model": {"fingerprint": tiny.fingerprint}, "runs": runs})
    folder = tmp_path / "run" / "trne"
    fitted = load_intervention(folder)
    assert effect_in_run(fitted, folder, tiny) == {"before": runs[0], "after": runs[2]}
    assert effect_in_run(fitted, folder, random_model(seed=1)) is None
    assert effect_in_run(fitted, tmp_path / "trne", tiny) is None
    assert effect_in_run(load_intervention(tmp_path / "run" / "other"), tmp_path / "run" / "other", tiny) is None


def test_the_card_names_edited_attentions_and_every_part_of_a_chain(tiny):
    chain = Chain(
        [
            rank_ones(tiny, [0, "1.attention"]),
            Meow2X(neurons=[("0.attention", 1)], mode="weights"),
            Steering(torch.ones(16), 1, 1.0),
        ]
    )
    card = model_card(tiny, [chain], None, adapter=False)
    for words in (
        "layer 0 and the attention of layer 1",
        "1 head (layer 0: 1)",
        "arXiv:2605.27997",
        "arXiv:2312.06681",
    ):
        assert words in card


def test_the_card_says_that_a_kind_has_no_recorded_paper(tiny):
    card = model_card(tiny, [UnitScaling(torch.ones(2, 80), mode="weights")], None, adapter=False)
    assert "Source: not recorded" in card


READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


class NamedTokenizer:
    """A tokenizer that does not add its BOS token by itself."""

    bos_token_id = 0

    def __init__(self, name):
        self.bos_token = name

    def __call__(self, text):
        return {"input_ids": [1]}


@pytest.fixture(scope="module")
def named_card():
    """Return a function that makes a card in which every text of a folder, a file or a tokenizer has the same name."""
    lm = random_model()

    def make(name, adapter):
        lm.name, lm.hf.config._name_or_path, lm.tokenizer = name, name, NamedTokenizer(name)
        lm.hf.name_or_path = name
        edit = rank_ones(lm, [1])
        edit.record = {
            "kind": f"k{name}k",
            "texts": {"contrast": name, "n_toxic": name, "n_neutral": name, "neutral": name},
            f"k{name}": [name],
            "tuned_perplexity_ratio": 1.01,
        }
        edit.fitted_on = {"name": name, "fingerprint": name}
        before, after = judged("baseline", 0.3, None), judged("trne", 0.2, None)
        after["toxicity"][f"j{name}"] = after["toxicity"]["any"]
        return edit.describe(), model_card(lm, [edit], {"before": before, "after": after}, adapter=adapter)

    return make


def parsed(card):
    """Return the front matter, the types of everything in the card, the blocks of HTML, and the blocks of code."""
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    tokens = READER.parse(body)
    types = [(token.type, token.tag, [leaf.type for leaf in token.children or ()]) for token in tokens]
    html, code = ([token.content for token in tokens if token.type == kind] for kind in ("html_block", "fence"))
    return yaml.safe_load(front), types, html, code


@pytest.fixture(scope="module", params=[False, True], ids=["model", "adapter"])
def plain_card(named_card, request):
    """The parts of a card with a plain name, and whether it is of an adapter."""
    return parsed(named_card("org/model", request.param)[1]), request.param


@settings(deadline=None, max_examples=20)
@given(name=NAMES)
@example(name=HOSTILE)
def test_no_name_breaks_out_of_its_place_in_the_card(named_card, plain_card, name):
    (plain_front, plain_types, plain_html, (_, plain_code)), adapter = plain_card
    known, card = named_card(name, adapter)
    front, types, html, (fit, code) = parsed(card)
    assert (
        front == {**plain_front, "base_model": name}
        if "/" in name
        else front.keys() == plain_front.keys() - {"base_model"}
    )
    assert types == plain_types
    assert "html_inline" not in str(types)
    assert [block.count("<") for block in html] == [block.count("<") for block in plain_html]
    assert json.loads(fit) == known
    assert ast.unparse(ast.parse(code)) == ast.unparse(ast.parse(plain_code)).replace("'org/model'", repr(name))
    assert visible(card, keep="\n") == card
    card.encode("utf-8")
