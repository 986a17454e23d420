from itertools import product
from types import SimpleNamespace

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from toxloc.support.templates import FILTERS, render


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("share", 0.1234, "12.3%"),
        ("signed", -0.75, "-75%"),
        ("signed1", 0.012, "+1.2%"),
        ("signed2", 0.01234, "+1.23%"),
        ("short", 0.031415, "0.0314"),
        ("source", "models/planted/layer3/", "layer3"),
    ],
)
def test_filters_format_values(name, value, shown):
    assert FILTERS[name](value) == shown


def test_many_uses_the_plural_except_for_1():
    assert [FILTERS["many"](n, "cell") for n in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]


GRID = ("models", "benchmarks", "seeds", "contrasts", "evaluators")
RATE = {"rate": 0.331, "rate_ci": [0.281, 0.381]}


def card(*, adapter=False, edits=(), effect=None, bos=None):
    lm = SimpleNamespace(name="org/model", n_layers=2, d_mlp=8)
    return render(
        "model_card.md.j2",
        lm=lm,
        type="gpt2",
        dtype="float32",
        adapter=adapter,
        edits=edits,
        effect=effect,
        version="1.0",
        bos=bos,
        base="org/model",
    )


def edit(**known):
    return {
        "where": "layer 1",
        "paper": "a paper",
        "settings": "{}",
        "known": {"kind": "trne", "fitted_on": None, **known},
    }


EDITS = [
    (),
    (edit(),),
    (
        edit(
            fitted_on={"name": "m", "fingerprint": "f"},
            tuned_perplexity_ratio=1.01,
            tuned_kl=None,
            texts={"contrast": "pairs", "n_toxic": 3, "n_neutral": 4},
        ),
    ),
]
COSTS = [None, {"perplexity_ratio": 1.0123, "kl": 0.031415}]


def test_every_branch_of_the_card_renders():
    for adapter, edits, bos, cost in product((False, True), EDITS, (None, "<s>"), COSTS):
        effect = {
            "before": {"toxicity": {"any": RATE}},
            "after": {"toxicity": {"any": RATE, "all": RATE}, "fluency": cost},
        }
        for measured in (None, effect):
            text = card(adapter=adapter, edits=edits, effect=measured, bos=bos)
            assert ("`<s>`" in text) == (bos is not None)
            assert ("PeftModel" in text) == adapter
            assert ("| any | 33.1% [28.1%, 38.1%] | 33.1% [28.1%, 38.1%] |" in text) == bool(edits and measured)
            assert ("KL divergence from the unedited model, nats per token: 0.0314" in text) == bool(
                edits and measured and cost
            )


@pytest.mark.parametrize("name", ["all", "both"])
def test_the_card_explains_the_combined_verdict_under_its_old_and_new_name(name):
    effect = {"before": {"toxicity": {}}, "after": {"toxicity": {"any": RATE, name: RATE}, "fluency": None}}
    text = card(edits=[edit()], effect=effect)
    assert f"*{name}* is every evaluator" in text
    assert f"| {name} | not measured | 33.1%" in text


def test_a_missing_variable_is_an_error():
    with pytest.raises(UndefinedError, match="'lm' is undefined"):
        render("model_card.md.j2", adapter=False)


def test_values_are_escaped_for_the_language_of_the_template():
    summary = SimpleNamespace(
        plan=SimpleNamespace(name="<a_b>\x1b\n", cells=[], grid=SimpleNamespace(**{key: [] for key in GRID})),
        results=[],
        failures=[],
    )
    summary.plan.grid.samples = summary.plan.grid.max_new_tokens = 1
    page = render("sweep.html.j2", s=summary, version="1.0", plotly_js=Markup("<b>"), ranks=[])
    assert "<title>toxloc: &lt;a_b&gt;\\x1b\n</title>" in page
    assert "<script><b></script>" in page
    text = card(edits=[edit(kind="<a_b>\x1b\n")], bos="<a_b>\x1b\n")
    assert "* **\\<a\\_b\\>\\\\x1b\\\\n**: layer 1" in text
    assert "Settings of &lt;a_b&gt;\\x1b\\n and" in text
    assert "`<a_b>\\x1b\\n`" in text


def test_filters_write_literals_of_yaml_and_python():
    name = "a\"'\n\u202eé" + 99 * " b"
    assert FILTERS["yaml"](name) == '"a\\"\'\\n\\u202E\\xE9' + 99 * " b" + '"'
    assert FILTERS["python"]("a\"'\n\u202eé") == "'a\"\\'\\n\\u202eé'"
