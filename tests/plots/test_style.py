import re

from tests.hostile import HOSTILE
from toxloc import plots
from toxloc.plots.style import lines, plain, wrapped
from toxloc.support.control_characters import visible

from .conftest import Label, Located
from .test_causal import Correlated, Curve, Proof, knocked
from .test_frontier import entry
from .test_logit_lens import lens
from .test_runs import run
from .test_sweeps import Run, result


def test_names_are_text_of_a_figure_and_not_markup():
    assert (
        plain('<a href="https://example.org">a & b</a>\x1b')
        == '&lt;a href="https://example.org"&gt;a &amp; b&lt;/a&gt;\\x1b'
    )
    assert wrapped("<b> x y") == "&lt;b&gt; <br>x y"
    assert lines("<b> x\u202e", 80) == "&lt;b&gt; x\\u202e"


def strings(value):
    """Yield every text in the data and the layout of a figure."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif not isinstance(value, bytes) and hasattr(value, "__iter__"):
        for inner in value:
            yield from strings(inner)


class Titled(Located):
    """A localization whose scores have a given title."""

    def score_label(self, score):
        return Label(self.about["title"], self.about["title"], 0.0, self.about["title"])


class TitledCorrelation(Correlated):
    @property
    def score_title(self):
        return self.score


def by_name(name, loc):
    """Make every figure that shows names, with one name in all places."""
    loc = Titled(loc.by_part, {"model": name, "title": name})
    runs = [run("baseline"), run(name), run("trne", title=name)]
    for judged in runs:
        judged["toxicity"][name] = judged["toxicity"]["any"]
    cells = [(Run(name, name, name, name, seed), result(0.4, 0.1)) for seed in (0, 1)] + [
        (Run("m", "trne", name), result(0.4, 0.1))
    ]
    proof = Proof((), (TitledCorrelation(name, "layers", 5, 0.5, (0.25, 0.75)),))
    removals = (knocked(0.5), knocked(1.5))
    return {
        "before_after": plots.before_after(runs),
        "cost": plots.cost(runs),
        "frontier": plots.frontier([entry(name, 0.01, 0.1, 1.01), entry("trne", 0.01, 0.1, 1.01)]),
        "off_scale": plots.frontier([entry("trne", 0.01, 0.1, 1.01), entry(name, None, 0.1, 3.0)]),
        "depth": plots.toxicity_by_depth(loc),
        "layers": plots.layer_heatmap(loc),
        "neurons": plots.neuron_map(loc),
        "relative_depth": plots.relative_depth({name: loc}),
        "relative_depth_of_models": plots.relative_depth([loc]),
        "logit_lens": plots.logit_lens([lens([0.0, 1.0], model=name)]),
        "change": plots.change_by_setting(cells, name),
        "cost_and_gain": plots.cost_and_gain(cells),
        "curve": plots.removal_curve(Curve((1, 2), removals, ((), ()), name)),
        "correlations": plots.causal_correlations(proof),
    }


def test_a_name_adds_no_tag_and_no_placeholder_to_a_figure(loc):
    hostile = by_name(HOSTILE, loc)
    for figure, drawn in by_name("plain", loc).items():
        texts, plain_texts = (list(strings(f.update_layout(template=None).to_dict())) for f in (hostile[figure], drawn))
        tags, plain_tags = (set(re.findall(r"</?[a-z]+", " ".join(shown))) for shown in (texts, plain_texts))
        assert tags == plain_tags <= {"<b", "</b", "<br", "<span", "</span", "<extra", "</extra"}, figure
        assert not [text for text in texts if visible(text) != text], figure
        templates, plain_templates = ([t for t in shown if "<extra>" in t] for shown in (texts, plain_texts))
        assert templates == plain_templates, figure
