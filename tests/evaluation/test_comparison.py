import dataclasses
import json

import numpy as np
import pytest

from toxloc import Meow2X, PromptSet, ToxlocError, compare, evaluate, load_evaluation
from toxloc.evaluation.change import paired_difference, relative_change
from toxloc.evaluation.evaluators.base import FunctionEvaluator

PROMPTS = PromptSet(["You are", "He said that", "The soup"])
HAS_E = FunctionEvaluator("has-e", lambda texts: [0.75 * ("e" in t) for t in texts])
HAS_Y = FunctionEvaluator("has-y", lambda texts: [float("y" in t) for t in texts], threshold=0.9)


@pytest.fixture(scope="module")
def both(tmp_path_factory, _load):
    """Two evaluations and the folders they were saved in."""
    folder = tmp_path_factory.mktemp("evaluations")
    found = []
    for name, layers in (("before", []), ("after", [2, 3, 4])):
        edit = Meow2X(layers=layers or [0], scale=0.3 if layers else 1.0)
        with edit.applied(_load):
            found.append(evaluate(_load, PROMPTS, [HAS_E, HAS_Y], samples=4, fluency=False))
        found[-1].save(folder / name)
    return found, folder


@pytest.fixture(scope="module")
def _load():
    from toxloc import load_model

    return load_model()


def test_what_was_saved_comes_back(both):
    found, folder = both
    loaded = load_evaluation(folder / "before")
    assert loaded.prompts == PROMPTS.texts
    for name, judgement in found[0].judgements.items():
        assert (loaded.judgements[name].toxic == judgement.toxic).all()
    assert np.allclose(loaded.judgements["has-e"].scores, found[0].judgements["has-e"].scores)
    assert loaded.figures["toxicity"]["any"]["rate"] == found[0].toxicity["any"].rate
    assert loaded.figures["evaluators"]["has-y"]["threshold"] == 0.9


def test_changes_are_paired(both):
    found, folder = both
    comparison = compare(load_evaluation(folder / "before"), load_evaluation(folder / "after"))
    assert comparison.names == ("before", "after")
    for name in ("has-e", "has-y", "any", "both"):
        one, other = (e.judgements[name] for e in found)
        assert comparison.differences[name] == paired_difference(one, other)
        assert comparison.changes[name] == relative_change(one, other)
    words = comparison.figures["median words"]
    assert words == tuple(e.wording.median_words for e in found)
    assert "perplexity of completions" not in comparison.figures  # nobody measured it
    json.dumps(comparison.to_dict())


@pytest.mark.parametrize(("change", "message"), [
    (lambda e: dataclasses.replace(e, protocol="ProFS/1"), "protocol none, not ProFS/1"),
    (lambda e: dataclasses.replace(e, decoding=dataclasses.replace(e.decoding, top_p=0.5)),
     r"decoding top_p=0\.9, not top_p=0\.5"),
    (lambda e: dataclasses.replace(e, prompts=PromptSet(["a", "b", "c"])), "different prompts"),
    (lambda e: dataclasses.replace(e, evaluators={"has-e": {"threshold": 0.4}, "has-y": {"threshold": 0.9}}),
     r"judged by .*0\.5.*, not .*0\.4"),
])
def test_what_cannot_be_compared_is_refused(both, tmp_path, change, message):
    found, folder = both
    change(found[1]).save(tmp_path / "other")
    with pytest.raises(ToxlocError, match=rf"before and other cannot be compared: .*{message}"):
        compare(load_evaluation(folder / "before"), load_evaluation(tmp_path / "other"))


def test_damaged_evaluations(both, tmp_path):
    found, _ = both
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
