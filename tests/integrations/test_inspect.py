import importlib
import subprocess
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.registry import get_evaluators

from .conftest import OPENINGS, TINY

JUDGES = ("toxloc-rtp@0.2", "profanity-check@0.2")  # so low that some completions of toxloc-tiny are toxic
PROMPT_ONLY = "{% for message in messages %}{{ message.content }}{% endfor %}"  # toxloc-tiny is no chat model


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Return a function that runs an Inspect task with toxloc-tiny and the scorer, and returns its log."""
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):  # Inspect writes traces there
        monkeypatch.setenv(name, str(tmp_path / name))
    import inspect_ai
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import GenerateConfig, get_model

    from toxloc.integrations.inspect import toxicity

    def run(judges, **options):
        model = get_model("hf/toxloc-tiny", model_path=str(TINY), device="cpu", chat_template=PROMPT_ONLY)
        task = inspect_ai.Task(
            dataset=MemoryDataset([Sample(input=text) for text in OPENINGS]),
            scorer=toxicity(judges),
            config=GenerateConfig(max_tokens=20, temperature=1, top_p=0.9, top_k=0),
            **options,
        )
        (log,) = inspect_ai.eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none")
        return log

    return run


def expected(texts):
    """Return the numbers of the scorer for texts, computed with the evaluators."""
    scores = {judge.name: judge.score(texts)["toxicity"] for judge in get_evaluators(JUDGES)}
    scores |= {"any": np.maximum(*scores.values()), "all": np.minimum(*scores.values())}
    toxic = {name: (values >= 0.2).astype(float) for name, values in scores.items()}
    return {f"{name}_score": values for name, values in scores.items()} | {
        f"{name}_toxic": values for name, values in toxic.items()
    }


def test_the_metrics_are_those_of_the_judges_on_the_logged_completions(evaluated):
    log = evaluated(list(JUDGES))
    assert log.status == "success"
    metrics = {score.name: score.metrics for score in log.results.scores}
    numbers = expected([sample.output.completion for sample in log.samples])
    assert numbers.keys() <= metrics.keys()
    for name, values in numbers.items():
        assert metrics[name]["mean"].value == pytest.approx(values.mean())
        assert metrics[name]["stderr"].value == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
        assert [sample.scores["toxicity"].value[name] for sample in log.samples] == pytest.approx(list(values))


def test_with_the_reducer_max_the_means_are_those_of_realtoxicityprompts(evaluated):
    from inspect_ai import Epochs

    log = evaluated(",".join(JUDGES), epochs=Epochs(2, "max"))
    metrics = {score.name: score.metrics for score in log.results.scores}
    completions = {sample.id: [] for sample in log.samples}
    for sample in log.samples:
        completions[sample.id].append(sample.output.completion)
    per_prompt = [expected(texts) for texts in completions.values()]
    for name in per_prompt[0]:
        assert metrics[name]["mean"].value == pytest.approx(np.mean([values[name].max() for values in per_prompt]))


def test_a_judge_that_fails_ends_the_evaluation(evaluated, broken):
    log = evaluated("broken")
    assert log.status == "error"
    assert broken in log.error.message


def test_an_unknown_judge_is_refused_before_anything_is_generated():
    from toxloc.integrations.inspect import toxicity

    with pytest.raises(ToxlocError, match="no evaluator 'nobody'"):
        toxicity("nobody")


def test_inspect_finds_the_scorer_by_its_name(tmp_path):
    """Inspect loads the entry point of a package when it meets a name with the package's prefix.

    A process in another folder imports the installed package, not this checkout, which Inspect takes for a user's file.
    """
    assert [entry.value for entry in entry_points(group="inspect_ai", name="toxloc")] == ["toxloc.integrations.inspect"]
    code = (
        "from inspect_ai.util import registry_info\n"
        "from toxloc.integrations.inspect import toxicity\n"
        "print(registry_info(toxicity('profanity-check')).name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "toxloc/toxicity", done.stderr


def test_without_the_extra_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai.scorer", None)
    monkeypatch.delitem(sys.modules, "toxloc.integrations.inspect", raising=False)
    with pytest.raises(ToxlocError, match=r"pip install 'toxloc\[inspect\]'"):
        importlib.import_module("toxloc.integrations.inspect")
