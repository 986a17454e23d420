import json

import pytest
import torch
from typer.testing import CliRunner

import toxloc
from tests.conftest import TEXTS, bits, random_hf, same_bits, tokenizer
from toxloc import Budget, ContrastSet, NeutralText, ToxlocError
from toxloc.cli import app
from toxloc.evaluation.cost.fluency import measure_fluency
from toxloc.interventions.base import KINDS, Intervention
from toxloc.interventions.registry import all_methods, method_named, method_settings
from toxloc.interventions.settings import StrengthSettings
from toxloc.plots.runs import before_after
from toxloc.support.settings import option
from toxloc.sweeps.grid import Plan, grid_of
from toxloc.sweeps.store import Store
from toxloc.sweeps.worker import work

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:4], "some pairs", paired=True)
NEUTRAL = NeutralText(TEXTS[:1], TEXTS[3:], TEXTS[2:3], "some text")
NAMES = ["trne", "meow2x", "ablation", "aura", "damp", "linear-act", "profs", "steering", "value-vector"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_texts_on_both_sides_are_refused(tiny, name):
    same = ContrastSet(TEXTS[:3], [TEXTS[2], TEXTS[0], TEXTS[1], TEXTS[0]], "my texts")
    with pytest.raises(ToxlocError, match="Both sides of the contrast set 'my texts' hold the same texts"):
        method_named(name).fit(tiny, same, neutral=NEUTRAL)


@pytest.fixture
def fade():
    """A user-defined method that scales down W_out of one layer."""

    class FadeSettings(StrengthSettings):
        strength: float | None = option(
            None, "share of the layer that is removed; if given, the budget is not used", gt=0, le=1
        )
        layer: int = option(0, "the layer that is scaled down", ge=0)

    class Fade(Intervention):
        kind, title, colour, paper = "fade", "Fading out", "#123456", "fading, A. User 2024"
        Settings = FadeSettings

        def __init__(self, layer, strength):
            super().__init__()
            self.layer, self.strength = layer, strength

        @classmethod
        def _fit(cls, evidence, settings):
            if settings.strength is not None:
                return cls(settings.layer, settings.strength)
            return evidence.strongest(lambda s: cls(settings.layer, s), settings.budget, first=0.1, limit=1.0)

        @property
        def in_weights(self):
            return True

        def config(self):
            return {"layer": self.layer, "strength": self.strength}

        def check(self, lm):
            lm.at(self.layer)

        def _install(self, lm, stack):
            from toxloc.models.weights import overwrite

            W = lm.W_out(self.layer)
            overwrite(W, W * (1 - self.strength), stack)

        def _tensors(self):
            return {"empty": torch.zeros(1)}

        @classmethod
        def _restore(cls, config, tensors):
            return cls(**config)

    yield Fade
    del KINDS["fade"]
    assert list(all_methods()) == NAMES


def test_every_file_of_the_folder_is_a_method_and_the_papers_own_come_first():
    assert list(all_methods()) == NAMES
    for name, method in all_methods().items():
        assert KINDS[name] is method is method_named(name)
        assert method.kind == name
        assert "arXiv" in method.paper
        assert method.title != name or name == "damp"


@pytest.mark.parametrize("name", ["trne", "meow2x"])
def test_a_fit_by_name_notes_its_texts_and_its_cost(tiny, name):
    before = bits(tiny)
    fitted = method_named(name).fit(
        tiny, PAIRS, method_settings(name, budget={"perplexity": 0.5, "kl": 1.0}), neutral=NEUTRAL
    )
    assert same_bits(before, tiny)
    assert type(fitted) is all_methods()[name]
    assert fitted.record["budget"] == {"perplexity": 0.5, "kl": 1.0}
    assert fitted.record["texts"] == {"contrast": "some pairs", "n_toxic": 2, "n_neutral": 2, "neutral": "some text"}
    with fitted.applied(tiny):
        cost = measure_fluency(tiny, NEUTRAL.tune)
    assert fitted.record["tuned_perplexity_ratio"] == pytest.approx(cost.perplexity_ratio, rel=1e-5)
    assert fitted.record["tuned_kl"] == pytest.approx(cost.kl, rel=1e-4)
    assert Budget(perplexity=0.5, kl=1.0).share(cost) <= 1 + 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_every_fit_notes_the_texts_it_saw(tiny, name):
    fitted = method_named(name).fit(tiny, PAIRS, neutral=NEUTRAL, budget=2.0)
    assert fitted.record["texts"] == {"contrast": "some pairs", "n_toxic": 2, "n_neutral": 2, "neutral": "some text"}
    assert fitted.record["budget"] == {"perplexity": 2.0, "kl": None}
    assert fitted.fitted_on == {"name": "random-gpt2", "fingerprint": tiny.fingerprint}


def test_an_unknown_method():
    with pytest.raises(ToxlocError, match="Unknown method 'meow'; choose one of trne, meow2x"):
        method_named("meow")


def test_a_users_method_is_checked_fitted_saved_and_loaded_like_any_other(fade, tiny, tmp_path):
    assert list(all_methods()) == [*NAMES[:5], "fade", *NAMES[5:]]  # in alphabetical order after the first two methods
    with pytest.raises(ToxlocError, match="fade: strength=2: it must be less than or equal to 1"):
        method_settings("fade", strength=2)
    fitted = fade.fit(tiny, PAIRS, neutral=NEUTRAL, budget={"kl": 0.01})
    W = tiny.W_out(0).clone()
    with fitted.applied(tiny):
        assert measure_fluency(tiny, NEUTRAL.tune).kl <= 0.01
        torch.testing.assert_close(tiny.W_out(0), (1 - fitted.strength) * W)
    fitted.save(tmp_path / "fade")
    again = toxloc.load_intervention(tmp_path / "fade")
    assert type(again) is fade
    assert again.describe() == fitted.describe()


def test_the_command_line_lists_a_users_method(fade):
    done = CliRunner().invoke(app, ["methods", "--json"])
    assert done.exit_code == 0, done.output
    assert {"method": "fade", "title": "Fading out", "source": "fading, A. User 2024"} in json.loads(done.stdout)
    done = CliRunner().invoke(app, ["methods", "fade", "--json"])
    rows = {row["setting"]: row for row in json.loads(done.stdout)}
    assert list(rows) == ["budget", "seed", "strength", "layer"]
    assert rows["layer"]["default"] in (0, "0")
    assert rows["layer"]["meaning"] == "the layer that is scaled down"


def test_a_sweep_takes_a_users_method(fade, tmp_path):
    random_hf().save_pretrained(tmp_path / "gpt2")
    tokenizer().save_pretrained(tmp_path / "gpt2")
    (tmp_path / "prompts.txt").write_text("\n".join(f"Number {i} said that it" for i in range(4)))
    rows = [
        {"toxic": f"you are fool number {i} and a liar", "neutral": f"you are guest number {i} and a friend"}
        for i in range(8)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = {
        "models": ["gpt2"],
        "contrasts": ["pairs.jsonl"],
        "benchmarks": {"one": {"prompts": "prompts.txt"}},
        "methods": [{"method": "fade", "settings": {"layer": [0, 1], "strength": 0.5}}],
        "evaluators": ["profanity-check"],
        "samples": 2,
        "max_new_tokens": 3,
        "max_neutral": 24,
    }
    plan = Plan(grid_of(content), tmp_path)
    assert [(cell.method, cell.settings) for cell in plan.cells] == [
        ("fade", {"layer": 0, "strength": 0.5}),
        ("fade", {"layer": 1, "strength": 0.5}),
    ]
    with pytest.raises(ToxlocError, match="fade has no setting 'depth'; it takes budget, seed, strength, layer"):
        grid_of(content | {"methods": [{"method": "fade", "settings": {"depth": 3}}]})
    store = Store(tmp_path / "out")
    work(plan, plan.cells, store)
    assert [store.failure(cell)["error"] for cell in plan.cells if store.has_failed(cell)] == []
    for layer, cell in enumerate(plan.cells):
        result = store.result(cell)
        assert result["method"] == "fade"
        assert result["fluency"]["kl"] > 0
        kept = toxloc.load_intervention(store.intervention(cell))
        assert (type(kept), kept.layer, kept.strength) == (fade, layer, 0.5)


@pytest.mark.slow
def test_a_run_judges_a_users_method_and_its_figure_has_its_title_and_colour(fade, tmp_path):
    result = toxloc.run(
        "toxloc-tiny",
        tmp_path / "run",
        methods=("fade",),
        samples=1,
        max_prompts=4,
        max_texts=40,
        max_neutral=24,
        max_new_tokens=4,
        knockouts=0,
        evaluators=("profanity-check",),
    )
    assert result.methods == ["baseline", "fade"]
    bars = {bar.name: bar for bar in before_after(result.results["runs"]).data}
    assert list(bars) == ["baseline", "Fading out"]
    assert bars["Fading out"].marker.color == "#123456"
    kept = toxloc.load_intervention(tmp_path / "run" / "fade")
    assert kept.record["tuned_perplexity_ratio"] <= 1.01
