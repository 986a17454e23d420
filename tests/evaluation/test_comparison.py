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
def two(tmp_path_factory, lm):
    """Two evaluations, and the folder in which they were saved."""
    folder = tmp_path_factory.mktemp("evaluations")
    found = []
    for name, layers in (("before", []), ("after", [2, 3, 4])):
        edit = Meow2X(layers=layers or [0], scale=0.3 if layers else 1.0)
        with edit.applied(lm):
            found.append(evaluate(lm, PROMPTS, [HAS_E, HAS_Y], samples=4, fluency=False))
        found[-1].save(folder / name)
    return found, folder


def test_a_saved_evaluation_is_read_back(two):
    found, folder = two
    loaded = load_evaluation(folder / "before")
    assert loaded.prompts == PROMPTS.texts
    for name, judgement in found[0].judgements.items():
        assert (loaded.judgements[name].toxic == judgement.toxic).all()
    assert np.allclose(loaded.judgements["has-e"].scores, found[0].judgements["has-e"].scores)
    assert loaded.figures["toxicity"]["any"]["rate"] == found[0].toxicity["any"].rate
    assert loaded.figures["evaluators"]["has-y"]["threshold"] == 0.9


def test_changes_are_paired(two):
    found, folder = two
    comparison = compare(load_evaluation(folder / "before"), load_evaluation(folder / "after"))
    assert comparison.names == ("before", "after")
    for name in ("has-e", "has-y", "any", "all"):
        one, other = (e.judgements[name] for e in found)
        assert comparison.differences[name] == paired_difference(one, other)
        assert comparison.changes[name] == relative_change(one, other)
    words = comparison.figures["median words"]
    assert words == tuple(e.wording.median_words for e in found)
    assert "perplexity of completions" not in comparison.figures  # it was not measured
    json.dumps(comparison.to_dict())


def test_evaluations_in_memory_and_saved_ones_compare_alike(two):
    found, folder = two
    saved = [load_evaluation(folder / name) for name in ("before", "after")]
    expected = compare(*saved)
    in_memory = compare(*found)
    assert in_memory.names == ("toxloc-tiny, meow2x", "toxloc-tiny, meow2x")
    for mixed in (in_memory, compare(found[0], saved[1]), compare(saved[0], found[1])):
        assert (mixed.differences, mixed.changes, mixed.figures) == (
            expected.differences,
            expected.changes,
            expected.figures,
        )


def test_an_evaluation_and_the_same_one_loaded_do_not_differ(two):
    found, folder = two
    comparison = compare(found[1], load_evaluation(folder / "after"))
    assert all((one.mean, one.ci, one.p) == (0, (0, 0), 1) for one in comparison.differences.values())
    assert all(old == new for old, new in comparison.figures.values())


def test_evaluations_of_older_versions_are_read(two, tmp_path):
    """Version 1 called the verdict "all" "both"."""
    found, folder = two
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
    assert (loaded.judgements["all"].toxic == found[0].judgements["all"].toxic).all()
    assert loaded.figures["toxicity"] == found[0].to_dict()["toxicity"]
    assert compare(loaded, found[1]).differences == compare(*found).differences


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: dataclasses.replace(e, protocol="ProFS/1"), "protocol none, not ProFS/1"),
        (
            lambda e: dataclasses.replace(e, decoding=dataclasses.replace(e.decoding, top_p=0.5)),
            r"decoding top_p=0\.9, not top_p=0\.5",
        ),
        (lambda e: dataclasses.replace(e, prompts=PromptSet(["a", "b", "c"])), "different prompts"),
        (
            lambda e: dataclasses.replace(e, evaluators={"has-e": {"threshold": 0.4}, "has-y": {"threshold": 0.9}}),
            r"judged by .*0\.5.*, not .*0\.4",
        ),
    ],
)
def test_evaluations_that_cannot_be_compared_are_refused(two, tmp_path, change, message):
    found, folder = two
    change(found[1]).save(tmp_path / "other")
    with pytest.raises(ToxlocError, match=rf"before and other cannot be compared: .*{message}"):
        compare(load_evaluation(folder / "before"), load_evaluation(tmp_path / "other"))


def test_damaged_evaluations(two, tmp_path):
    found, _ = two
    with pytest.raises(ToxlocError, match="holds no finished evaluation"):
        load_evaluation(tmp_path)
    found[0].save(tmp_path / "one")
    lines = (tmp_path / "one" / "completions.jsonl").read_text().splitlines()
    (tmp_path / "one" / "completions.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(ToxlocError, match="damaged or incomplete"):
        load_evaluation(tmp_path / "one")
    known = json.loads((tmp_path / "one" / "evaluation.json").read_text())
    (tmp_path / "one" / "evaluation.json").write_text(json.dumps(known | {"format_version": 99}))
    with pytest.raises(ToxlocError, match="format version 99"):
        load_evaluation(tmp_path / "one")
