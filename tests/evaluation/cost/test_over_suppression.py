import numpy as np
import pytest
import torch

from toxloc import Meow2X, PromptSet, ToxlocError, load_prompts, over_suppression
from toxloc.evaluation.cost.perplexity import nll_of_endings
from toxloc.generation.generate import generate

PROMPTS = PromptSet(
    ["My sister is", "The Muslim family next door", "He was so angry", "She shouted"],
    ["identity", "identity", "anger", "anger"],
)


def test_figures_by_hand(lm):
    edit = Meow2X(layers=[3, 4], scale=0.2)
    before = generate(lm, PROMPTS.texts, samples=2, seed=3)
    with edit.applied(lm):
        after = generate(lm, PROMPTS.texts, samples=2, seed=3)
        result = over_suppression(lm, PROMPTS, samples=2, seed=3)
        assert lm.interventions == [edit]
    assert before != after
    words = [
        [np.mean([len(text.split()) for text in texts]) for texts in completions] for completions in (before, after)
    ]
    shift = result.words["anger"]
    assert (shift.before, shift.after) == (pytest.approx(np.mean(words[0][2:])), pytest.approx(np.mean(words[1][2:])))
    assert shift.difference == pytest.approx(shift.after - shift.before)
    differences = np.array([words[1][2] - words[0][2], words[1][3] - words[0][3]])
    # Each of the two prompts is drawn twice in a quarter of all draws.
    assert shift.ci == (differences.min(), differences.max())
    assert result.n_prompts == {"identity": 2, "anger": 2, "all": 4}
    relevances = []
    for i, other in enumerate([1, 0, 3, 2]):  # the next prompt of the same kind
        nll, count = nll_of_endings(lm, [PROMPTS.texts[i]] * 2, before[i])
        nll_other, _ = nll_of_endings(lm, [PROMPTS.texts[other]] * 2, before[i])
        relevances.append(np.mean((nll_other - nll) / count))
    assert result.relevance["all"].before == pytest.approx(np.mean(relevances), rel=1e-4)
    assert result.relevance["identity"].before == pytest.approx(np.mean(relevances[:2]), rel=1e-4)


def test_the_unedited_model_is_sampled_again_only_if_something_changed(tiny, monkeypatch):
    sampled = []

    def counted(lm, prompts, **settings):
        sampled.append([edit.kind for edit in lm.interventions])
        return generate(lm, prompts, **settings)

    monkeypatch.setattr("toxloc.evaluation.cost.over_suppression.generate", counted)

    def measured(scale, **settings):
        sampled.clear()
        with Meow2X(layers=[0], scale=scale).applied(tiny):
            result = over_suppression(tiny, PROMPTS, samples=1, max_new_tokens=4, **settings)
        return result, sampled.count([])

    first, samplings = measured(0.2)
    assert samplings == 1
    second, samplings = measured(0.5)
    assert samplings == 0
    assert second.words["all"].before == first.words["all"].before
    assert second.relevance["all"].before == first.relevance["all"].before
    assert measured(0.5, seed=1)[1] == 1
    weight = next(tiny.hf.parameters())
    with torch.no_grad():
        weight[0, 0] += 1e-3
    assert measured(0.5, seed=1)[1] == 1
    with torch.no_grad():
        weight[[1, 2]] = weight[[2, 1]]
    assert measured(0.5, seed=1)[1] == 1
    assert measured(0.5, seed=1)[1] == 0
    handle = tiny.hf.register_forward_hook(lambda *_: None)
    assert measured(0.5, seed=1)[1] == 1
    handle.remove()
    assert measured(0.5, seed=1)[1] == 1


def test_prompts_that_leave_no_room_are_refused_before_anything_is_sampled(tiny):
    prompts = PromptSet(["one two three " * 40, "x y"], ["anger", "anger"])
    with Meow2X(layers=[0], scale=0.2).applied(tiny), pytest.raises(ToxlocError, match="shorter prompts"):
        over_suppression(tiny, prompts)


def test_a_destroyed_model_loses_relevance(lm):
    with Meow2X(layers=range(8), scale=0.0).applied(lm):
        result = over_suppression(lm, load_prompts("sensitive").limited(6), samples=1)
    assert set(result.n_prompts) == {"identity", "anger", "illness", "all"}
    assert result.relevance["all"].ci[1] < 0


def test_the_built_in_prompts_are_ninety_distinct_prompts_of_three_kinds():
    prompts = load_prompts("sensitive")
    assert len(set(prompts.texts)) == 90
    assert {kind: prompts.kinds.count(kind) for kind in prompts.kinds} == {"identity": 30, "anger": 30, "illness": 30}


def test_nothing_to_compare(lm):
    with pytest.raises(ToxlocError, match=r"toxloc-tiny.* intervention\.applied"):
        over_suppression(lm)
    with pytest.raises(ToxlocError, match=r"'b'.* at least two"), Meow2X(layers=[0]).applied(lm):
        over_suppression(lm, PromptSet(["x", "y", "z"], ["a", "a", "b"]))
