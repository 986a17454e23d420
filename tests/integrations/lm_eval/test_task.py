import importlib
import sys

import lm_eval
import numpy as np
import pytest
from lm_eval.tasks import TaskManager

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.registry import DEFAULT, get_evaluators
from toxloc.integrations.folders import FOLDERS

from ..conftest import OPENINGS, TINY

JUDGES = ("toxloc-rtp@0.2", "profanity-check@0.2")  # so low that some completions of toxloc-tiny are toxic


def manager(**metadata):
    return TaskManager(include_path=str(FOLDERS["lm-eval"]), include_defaults=False, metadata=metadata)


def evaluated(task, **metadata):
    """Run a task of toxloc on toxloc-tiny; return the figures and the logged completions [n_prompts][samples]."""
    done = lm_eval.simple_evaluate(
        "hf",
        model_args={"pretrained": str(TINY)},
        tasks=[task],
        task_manager=manager(**metadata),
        device="cpu",
        batch_size=8,
    )
    return done, [sample["filtered_resps"][0] for sample in done["samples"][task]]


def test_the_figures_are_those_of_the_judges_on_the_logged_completions(rtp_file):
    done, completions = evaluated("toxloc_rtp", data=str(rtp_file), judges=",".join(JUDGES), samples=4)
    assert np.shape(completions) == (3, 4)
    assert all(len(set(texts)) > 1 for texts in completions)  # sampled
    scores, toxic = {}, {}
    for judge in get_evaluators(JUDGES):
        scores[judge.name] = np.array([judge.score(texts)["toxicity"] for texts in completions])
        toxic[judge.name] = scores[judge.name] >= 0.2
    scores["any"], scores["all"] = np.maximum(*scores.values()), np.minimum(*scores.values())
    toxic["any"], toxic["all"] = np.logical_or(*toxic.values()), np.logical_and(*toxic.values())
    results = done["results"]["toxloc_rtp"]
    for name, values in scores.items():
        per_prompt = {
            "rate": toxic[name].mean(1),
            "mean": values.mean(1),
            "expected_max": values.max(1),
            "probability": toxic[name].any(1),
        }
        for figure, column in per_prompt.items():
            assert results[f"{name}_{figure},none"] == pytest.approx(column.mean())
            assert results[f"{name}_{figure}_stderr,none"] == pytest.approx(np.std(column, ddof=1) / np.sqrt(3))
    assert not any(done["higher_is_better"]["toxloc_rtp"].values())
    assert done["configs"]["toxloc_rtp"]["metadata"]["judges"]["toxloc-rtp"]["threshold"] == 0.2


def test_all_completions_are_judged_in_one_batch(rtp_file, batches):
    done, completions = evaluated("toxloc_rtp_challenging", data=str(rtp_file), judges=["counting"], which="all")
    assert len(completions) == 3
    assert batches == [[text for texts in completions for text in texts]]
    assert "counting_expected_max,none" not in done["results"]["toxloc_rtp_challenging"]  # only one sample


def test_a_judge_that_fails_ends_the_evaluation(rtp_file, broken):
    with pytest.raises(ToxlocError, match=broken):
        evaluated("toxloc_rtp", data=str(rtp_file), judges="broken")


@pytest.mark.parametrize(
    ("task", "sampled", "tokens", "prompts"),
    [
        ("toxloc_rtp", True, 20, OPENINGS),
        ("toxloc_rtp_challenging", True, 20, OPENINGS[:1]),
        ("toxloc_rtp_greedy", False, None, OPENINGS),
    ],
)
def test_the_tasks_differ_in_prompts_and_decoding(rtp_file, task, sampled, tokens, prompts):
    loaded = manager(data=str(rtp_file)).load([task])["tasks"][task]
    assert [loaded.doc_to_text(doc) for doc in loaded.eval_docs] == prompts
    decoding = loaded.config.generation_kwargs
    assert (decoding["do_sample"], decoding.get("max_gen_toks")) == (sampled, tokens)
    assert [judge.name for judge in loaded.judges] == list(DEFAULT)


def test_the_folder_has_no_other_tasks():
    assert manager().all_subtasks == ["toxloc_rtp", "toxloc_rtp_challenging", "toxloc_rtp_greedy"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"judges": "toxloc-rtp,nobody"}, "no evaluator 'nobody'"),
        ({"data": "nowhere.jsonl"}, "no file nowhere.jsonl"),
        ({"data": "builtin", "which": "some"}, "which='some'"),
        ({"data": "builtin", "samples": 0}, "samples"),
    ],
)
def test_wrong_metadata_is_refused_when_the_task_is_loaded(metadata, message):
    with pytest.raises(ToxlocError, match=message):
        manager(**metadata).load(["toxloc_rtp"])


def test_without_the_extra_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.task", None)
    monkeypatch.delitem(sys.modules, "toxloc.integrations.lm_eval.task", raising=False)
    with pytest.raises(ToxlocError, match=r"pip install 'toxloc\[lm-eval\]'"):
        importlib.import_module("toxloc.integrations.lm_eval.task")
