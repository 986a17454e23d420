import dataclasses
import json
import shutil

import numpy as np
import pytest

from toxloc import Meow2X, PromptSet, ToxlocError, compare, evaluate, load_evaluation
from toxloc.evaluation.change import paired_difference, relative_change
from toxloc.evaluation.evaluators.base import FunctionEvaluator

PROMPTS = PromptSet(["You are", "He said that", "The soup"])
HAS_E = FunctionEvaluator("has-e", lambda texts: [0.75 * ("e" in t) for t in texts])
HAS_Y = FunctionEvaluator("has-y", lambda texts: [float("y" in t) for t in texts], threshold=0.9)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, lm):
    """Two evaluations, and the folder in which they are saved."""
    folder = tmp_path_factory.mktemp("evaluations")
    evaluations = []
    for name, layers in (("before", []), ("after", [2, 3, 4])):
        edit = Meow2X(layers=layers or [0], scale=0.3 if layers else 1.0)
        with edit.applied(lm):
            evaluations.append(evaluate(lm, PROMPTS, [HAS_E, HAS_Y], samples=4, fluency=False))
        evaluations[-1].save(folder / name)
    return evaluations, folder


def test_a_saved_evaluation_is_read_back(saved):
    evaluations, folder = saved
    loaded = load_evaluation(folder / "before")
    assert loaded.prompts == PROMPTS.texts
    for name, judgement in evaluations[0].judgements.items():
        assert (loaded.judgements[name].toxic == judgement.toxic).all()
    assert np.allclose(loaded.judgements["has-e"].scores, evaluations[0].judgements["has-e"].scores)
    assert loaded.figures["toxicity"]["any"]["rate"] == evaluations[0].toxicity["any"].rate
    assert loaded.figures["evaluators"]["has-y"]["threshold"] == 0.9


def test_changes_are_paired(saved):
    evaluations, folder = saved
    comparison = compare(load_evaluation(folder / "before"), load_evaluation(folder / "after"))
    assert comparison.names == ("before", "after")
    for name in ("has-e", "has-y", "any", "all"):
        before, after = (e.judgements[name] for e in evaluations)
        assert comparison.differences[name] == paired_difference(before, after)
        assert comparison.changes[name] == relative_change(before, after)
    words = comparison.figures["median words"]
    assert words == tuple(e.wording.median_words for e in evaluations)
    assert "perplexity of completions" not in comparison.figures  # not measured
    json.dumps(comparison.to_dict())


def test_evaluations_in_memory_and_on_disk_compare_alike(saved):
    evaluations, folder = saved
    loaded = [load_evaluation(folder / name) for name in ("before", "after")]
    expected = compare(*loaded)
    in_memory = compare(*evaluations)
    assert in_memory.names == ("toxloc-tiny, meow2x", "toxloc-tiny, meow2x")
    for mixed in (in_memory, compare(evaluations[0], loaded[1]), compare(loaded[0], evaluations[1])):
        assert (mixed.differences, mixed.changes, mixed.figures) == (
            expected.differences,
            expected.changes,
            expected.figures,
        )


def test_an_evaluation_does_not_differ_from_its_saved_copy(saved):
    evaluations, folder = saved
    comparison = compare(evaluations[1], load_evaluation(folder / "after"))
    assert all((d.mean, d.ci, d.p) == (0, (0, 0), 1) for d in comparison.differences.values())
    assert all(old == new for old, new in comparison.figures.values())


def test_evaluations_of_older_versions_are_read(saved, tmp_path):
    """Format version 1 uses the name "both" for "all"."""
    evaluations, folder = saved
    old = tmp_path / "old"
    shutil.copytree(folder / "before", old)
    for name in ("evaluation.json", "completions.jsonl"):
        text = (old / name).read_text()
        assert '"all": ' in text
        (old / name).write_text(
            text.replace('"all": ', '"both": ').replace('"format_version": 2', '"format_version": 1')
        )
    loaded = load_evaluation(old)
    assert list(loaded.judgements) == ["has-e", "has-y", "any", "all"]
    assert (loaded.judgements["all"].toxic == evaluations[0].judgements["all"].toxic).all()
    assert loaded.figures["toxicity"] == evaluations[0].to_dict()["toxicity"]
    assert compare(loaded, evaluations[1]).differences == compare(*evaluations).differences


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: dataclasses.replace(e, protocol="ProFS/1"), "protocol .*none and ProFS/1"),
        (
            lambda e: dataclasses.replace(e, decoding=dataclasses.replace(e.decoding, top_p=0.5)),
            r"decoding .*top_p=0\.9 and top_p=0\.5",
        ),
        (lambda e: dataclasses.replace(e, prompts=PromptSet(["a", "b", "c"])), "prompts .*3 and 3"),
        (
            lambda e: dataclasses.replace(e, evaluators={"has-e": {"threshold": 0.4}, "has-y": {"threshold": 0.9}}),
            r"evaluators .*0\.5.* and .*0\.4",
        ),
    ],
)
def test_evaluations_that_cannot_be_compared_are_refused(saved, tmp_path, change, message):
    evaluations, folder = saved
    change(evaluations[1]).save(tmp_path / "other")
    with pytest.raises(ToxlocError, match=rf"before and other .*: .*{message}"):
        compare(load_evaluation(folder / "before"), load_evaluation(tmp_path / "other"))


def test_damaged_evaluations(saved, tmp_path):
    evaluations, _ = saved
    with pytest.raises(ToxlocError, match=r"evaluation\.json is missing"):
        load_evaluation(tmp_path)
    evaluations[0].save(tmp_path / "damaged")
    lines = (tmp_path / "damaged" / "completions.jsonl").read_text().splitlines()
    (tmp_path / "damaged" / "completions.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(ToxlocError, match=r"damaged.*evaluate the model again"):
        load_evaluation(tmp_path / "damaged")
    known = json.loads((tmp_path / "damaged" / "evaluation.json").read_text())
    (tmp_path / "damaged" / "evaluation.json").write_text(json.dumps(known | {"format_version": 99}))
    with pytest.raises(ToxlocError, match=r"version 99.* 1 and 2"):
        load_evaluation(tmp_path / "damaged")


def test_evaluators_of_one_name_with_other_weights_cannot_be_compared(saved):
    evaluations, _ = saved
    before, after = (
        dataclasses.replace(
            evaluation, evaluators=evaluation.evaluators | {"has-e": {"threshold": 0.5, "weights": weights}}
        )
        for evaluation, weights in zip(evaluations, ("w2-1", "w2-2"), strict=True)
    )
    with pytest.raises(ToxlocError, match=r"the evaluator has-e had other weights \(w2-1 and w2-2\)"):
        compare(before, after)
    compare(before, before)
    compare(before, evaluations[1])  # an evaluation of an earlier version does not say
