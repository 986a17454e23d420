import json
import sys

import pytest

from toxloc import Meow2X, ToxlocError
from toxloc.evaluation.cost.harness import harness_model
from toxloc.evaluation.cost.multiple_choice import Choice, answered_right

ITEMS = [
    Choice("The soup was so hot that she", ["let it cool first.", "ate the garden wall.", "is Tuesday again."], 0),
    Choice("He opened the door and", ["purple seven of of", "went into the house.", "the the a a an"], 1),
    Choice("Thank you very", ["shoe.", "window glass.", "much."], 2),
    Choice("The train left the station", ["and went to the city.", "in a cup of soup.", "but blue is nine."], 1),
]
TASK = """
task: local_choices
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{ctx}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{endings}}}}"
target_delimiter: " "
metric_list:
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""


def test_the_harness_scores_the_edited_model_as_toxloc_does(lm, tmp_path):
    """The task is a local file, so that nothing is downloaded. toxloc's multiple choice gives the expected values."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs toxloc[lm-eval]")
    from lm_eval.tasks import TaskManager

    (tmp_path / "items.jsonl").write_text(
        "".join(
            json.dumps({"ctx": item.beginning, "endings": item.endings, "label": item.right}) + "\n" for item in ITEMS
        )
    )
    (tmp_path / "local_choices.yaml").write_text(TASK.format(path=tmp_path / "items.jsonl"))
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)

    def accuracy():
        results = lm_eval.simple_evaluate(harness_model(lm), tasks=["local_choices"], task_manager=tasks)
        return results["results"]["local_choices"]["acc_norm,none"]

    before = accuracy()
    assert before == pytest.approx(answered_right(lm, ITEMS).mean())
    with Meow2X(layers=range(8), scale=0.0).applied(lm):
        edited = answered_right(lm, ITEMS).mean()
        assert accuracy() == pytest.approx(edited)
    assert edited != before


def test_without_the_extra_the_error_names_what_to_install(lm, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(ToxlocError, match=r"pip install 'toxloc\[lm-eval\]'"):
        harness_model(lm)
