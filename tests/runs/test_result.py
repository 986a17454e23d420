import json

import pytest

from toxloc import RunResult, ToxlocError


def entry(method, any_rate, all_rate, every, **more):
    rates = {"toxloc-guard": any_rate, "profanity-check": all_rate, "any": any_rate, every: all_rate}
    return {
        "method": method,
        "config": {},
        "protocol": None,
        "toxicity": {name: {"rate": rate, "rate_ci": [0.0, 1.0]} for name, rate in rates.items()},
        **more,
    }


def write(folder, every="all", version=2, **changed):
    """Write the keys of results.json that are read, for a run with the baseline and one method."""
    change = {name: {"relative": -0.5, "ci": [-0.75, -0.25], "p": 0.01} for name in ("any", every)}
    results = {
        "format_version": version,
        "toxloc": "0.1.0",
        "model": "toxloc-tiny",
        "seed": 0,
        "settings": {"seed": 0},
        "prompts": {"name": "builtin", "n_judged": 12},
        "localization": {"layer_scores": {"attribution": [0.5, 1.5]}},
        "causal": None,
        "runs": [entry("baseline", 0.5, 0.25, every), entry("trne", 0.25, 0.125, every, change=change)],
    } | changed
    (folder / "results.json").write_text(
        json.dumps({name: value for name, value in results.items() if value is not ...})
    )
    return folder


def test_a_rate_is_that_of_the_method_and_the_judge(tmp_path):
    result = RunResult.load(write(tmp_path))
    assert result.methods == ["baseline", "trne"]
    assert (result.rate("baseline"), result.rate("trne")) == (0.5, 0.25)
    assert (result.rate("trne", "all"), result.rate("baseline", "profanity-check")) == (0.125, 0.25)
    assert result.report == tmp_path / "report.html"


def test_an_unknown_method_or_judge_is_named_with_those_that_there_are(tmp_path):
    result = RunResult.load(write(tmp_path))
    with pytest.raises(ToxlocError, match=r"'typo'.* baseline, trne\."):
        result.rate("typo")
    with pytest.raises(ToxlocError, match=r"'both'.* toxloc-guard, profanity-check, any, all\."):
        result.rate("trne", "both")


def test_a_run_of_version_1_is_read_and_its_both_is_all(tmp_path):
    result = RunResult.load(write(tmp_path, every="both", version=1))
    assert result.rate("trne", "all") == 0.125
    assert list(result.results["runs"][1]["change"]) == ["any", "all"]
    assert '"both"' not in json.dumps(result.results)
    assert '"both"' in (tmp_path / "results.json").read_text()  # the file is unchanged


@pytest.mark.parametrize("version", [3, 0, None, "2"])
def test_another_format_version_is_refused(tmp_path, version):
    with pytest.raises(ToxlocError, match=f"{tmp_path} has format version {version}, .* reads 1 and 2; "):
        RunResult.load(write(tmp_path, version=version))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (dict(runs=...), "runs"),
        (dict(runs=3), "runs"),
        (dict(runs=["baseline"]), "runs"),
        (dict(runs=[{"method": "baseline"}]), "runs"),
        (dict(runs=[{"toxicity": {}}]), "runs"),
        (dict(runs=[{"method": "baseline", "toxicity": {"any": {}}}]), "runs"),
        (dict(runs=[{"method": "baseline", "toxicity": {"any": {"rate": "high"}}}]), "runs"),
        (dict(model=..., localization=...), "model, localization"),
        (dict(settings=..., runs=...), "settings, runs"),
    ],
)
def test_a_damaged_run_is_refused(tmp_path, changed, named):
    with pytest.raises(ToxlocError, match=f"{tmp_path} is damaged: {named} cannot"):
        RunResult.load(write(tmp_path, **changed))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "holds no finished run: results.json is missing"),
        ('{"runs": [', "is not valid JSON"),
        ("[1]", "does not hold a finished run"),
    ],
)
def test_a_folder_without_results(tmp_path, text, words):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(ToxlocError, match=words):
        RunResult.load(tmp_path)
