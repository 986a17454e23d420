import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from toxloc import ToxlocError, load_grid
from toxloc.evaluation.evaluators.registry import EVALUATORS, register
from toxloc.sweeps.grid import Plan, Treatment, grid_of, treatment


def test_cells_come_in_order_and_without_duplicates(plan):
    assert [(c.model, c.treatment, c.benchmark) for c in plan.cells] == [
        (model, method, benchmark)
        for model in ("gpt2", "llama")
        for method in ("meow2x, budget 0.05, scale 0.5", "meow2x, budget 0.05, scale 0.0", "trne, budget 0.05")
        for benchmark in ("one", "two")
    ]
    assert len({c.id for c in plan.cells}) == 12
    assert len({c.fit_id for c in plan.cells}) == 6
    assert len({c.baseline_id for c in plan.cells}) == 4
    assert len({c.localization_id for c in plan.cells}) == 2


def test_ids_depend_on_content_and_not_on_paths_or_other_cells(plan, folder, content, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    there = tmp_path / "elsewhere"
    ids = {c.id for c in plan.cells}
    assert {c.id for c in Plan(grid_of(content), there).cells} == ids
    (there / "llama").rename(there / "other-name")
    fewer = content | {"models": ["other-name"], "methods": content["methods"][1:]}
    assert {c.id for c in Plan(grid_of(fewer), there).cells} == {
        c.id for c in plan.cells if c.model == "llama" and c.method == "trne"
    }


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 3},
        {"seeds": [1]},
        {"top_p": 0.5},
        {"max_neutral": 20},
        {"evaluators": ["profanity-check"]},
        {"dtype": "bfloat16"},
    ],
)
def test_ids_depend_on_every_setting_that_affects_the_numbers(plan, folder, content, change):
    assert not {c.id for c in plan.cells} & {c.id for c in Plan(grid_of(content | change), folder).cells}


def test_ids_change_with_the_content_of_a_file(plan, folder, content, tmp_path):
    there = tmp_path / "elsewhere"
    shutil.copytree(folder, there)
    (there / "first.txt").write_text((there / "first.txt").read_text().replace("Number 0", "Number 100"))
    cells = Plan(grid_of(content), there).cells
    same = {c.baseline_id for c in plan.cells} & {c.baseline_id for c in cells}
    assert same == {c.baseline_id for c in plan.cells if c.benchmark == "two"}


def test_no_contrast_text_begins_with_a_prompt_of_any_benchmark(folder, content, tmp_path):
    there = tmp_path / "elsewhere"
    shutil.copytree(folder, there)
    (there / "second.txt").write_text("You are fool number 3\nsomething else")
    toxic = Plan(grid_of(content), there).pairs("pairs.jsonl", 0).toxic
    assert len(toxic) == 11
    assert not any("number 3" in text for text in toxic)


@given(
    st.dictionaries(
        st.sampled_from(["budget", "scale", "k"]),
        st.lists(st.sampled_from([0.25, 0.5]), min_size=1, unique=True),
        min_size=1,
    )
)
def test_variants_are_the_product_of_the_lists(settings):
    variants = list(Treatment.model_construct(method="meow2x", settings=settings).variants())
    count = 1
    for values in settings.values():
        count *= len(values)
    assert len({tuple(variant.items()) for variant in variants}) == len(variants) == count


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (
            {"modles": []},
            "modles is not .* models, contrasts, benchmarks, methods, seeds, evaluators, scores, samples, ",
        ),
        (
            {"benchmarks": {"one": {"prompt": "x"}}},
            r"benchmarks\.one\.prompts is missing; benchmarks\.one\.prompt is not .* prompts, which, text_column",
        ),
        ({"methods": [{"method": "trne", "settings": {"budgett": 1}}]}, r"methods\.0: trne .*'budgett'.* budget, "),
        ({"methods": [{"method": "ttrne"}]}, r"methods\.0: .*'ttrne'.* trne, meow2x"),
        (
            {"methods": [{"method": "trne", "settings": {"budget": 0.1, "norm": [0.1]}}]},
            r"methods\.0: trne: .*budget=.*norm=.*strength=",
        ),
        ({"methods": [{"method": "trne", "settings": {"rounds": [1, 0]}}]}, r"methods\.0: trne: rounds=0: .*\b1\b"),
        ({"methods": [{"method": "meow2x", "settings": {"scale": ["grade"]}}]}, r"methods\.0: meow2x: scale"),
        ({"methods": [{"method": "trne", "settings": {"budget": [0.1, 0.1]}}]}, r'trne .*\{"budget": 0\.1\} 2 times'),
        ({"models": ["gpt2", "gpt2"]}, "models .*'gpt2' 2 times"),
        ({"seeds": [-1]}, r"seeds\.0=-1: "),
        ({"seeds": [2**32]}, r"seeds\.0=4294967296: .* less than 4294967296"),
        ({"temperature": float("nan")}, "temperature=nan: it must be a finite number"),
        ({"methods": [{"method": "trne", "settings": {"strength": float("inf")}}]}, "strength=inf: .* finite number"),
        ({"methods": [{"method": "trne", "settings": {"rounds": []}}]}, "rounds of trne is an empty list"),
        ({"samples": "x" * 5000}, "samples='x{79}…: "),
        ({"temperature": 0}, "temperature=0 .* samples to 1"),
        ({"scores": ["attributon"]}, r"scores\.0='attributon': .*'activation', 'gradient_norm'"),
        ({"dtype": "float8"}, "dtype='float8': .*'float32', 'bfloat16' or 'float16'"),
        ({"samples": 0}, r"samples=0 .*\b1\b"),
        ({"max_texts": 7}, r"max_texts=7: .*\b8\b"),
        ({"models": []}, r"models=\[\]"),
    ],
)
def test_an_invalid_key_or_value_is_named_with_its_place_and_the_fix(content, change, pattern):
    with pytest.raises(ToxlocError, match=f"^my.yaml: .*{pattern}") as error:
        grid_of(content | change, "my.yaml")
    # An invalid item is not reported a second time as a list that is too short.
    assert change == {"models": []} or "at least 1 item" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": ["./nothing"]}, "./nothing"),
        ({"contrasts": ["nothing.csv"]}, "nothing.csv"),
        ({"benchmarks": {"one": {"prompts": "nothing.txt"}}}, "nothing.txt"),
        ({"benchmarks": {"one": {"prompts": "first.txt", "words": 100}}}, "first.txt.* 100 words"),
        ({"evaluators": ["nobody"]}, "nobody"),
    ],
)
def test_a_missing_file_or_evaluator_is_named_before_anything_runs(folder, content, change, words):
    with pytest.raises(ToxlocError, match=words):
        Plan(grid_of(content | change), folder)


def test_one_benchmark_under_two_names_is_refused(folder, content):
    twice = {"benchmarks": {"one": {"prompts": "first.txt"}, "again": {"prompts": "first.txt"}}}
    with pytest.raises(ToxlocError, match=r"gpt2, pairs\.jsonl, again .* gpt2, pairs\.jsonl, one\b"):
        Plan(grid_of(content | twice), folder)


def test_an_evaluator_that_workers_cannot_load_is_refused(folder, content, monkeypatch):
    monkeypatch.setattr("toxloc.evaluation.evaluators.registry.EVALUATORS", dict(EVALUATORS))
    register("always")(lambda texts: [1.0] * len(texts))
    with pytest.raises(ToxlocError, match="'always' is a function of this process"):
        Plan(grid_of(content | {"evaluators": ["always", "profanity-check"]}), folder)


def test_more_cells_than_anyone_can_compute_are_refused_without_making_them(content):
    """Settings with 50, 50 and 50 values have 125,000 variants; the grid has 3 · 60 · 60 · 5 · 2 cells."""
    values = [n / 1000 for n in range(1, 51)]
    too_many = [{"method": "meow2x", "settings": {"budget": values, "scale": values, "seed": list(range(50))}}]
    with pytest.raises(ToxlocError, match=r"The settings of meow2x have 125,000 combinations, more than 100,000"):
        grid_of(content | {"methods": too_many})
    names = [str(n) for n in range(60)]
    with pytest.raises(ToxlocError, match=r"The grid has 108,000 combinations, .* several grids") as error:
        grid_of(content | {"models": names, "contrasts": names, "seeds": list(range(5))})
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "x/" * 5000, "~nobody-has-this-name/x", "a\nb"])
@pytest.mark.parametrize("place", ["models", "contrasts", "prompts", "neutral", "evaluators"])
def test_names_that_no_file_can_have(folder, content, place, name):
    change = {
        "models": {"models": [name]},
        "contrasts": {"contrasts": [name]},
        "prompts": {"benchmarks": {"one": {"prompts": name}}},
        "neutral": {"neutral": name},
        "evaluators": {"evaluators": [f"classifier={name}"]},
    }[place]
    with pytest.raises(ToxlocError):
        Plan(grid_of(content | change), folder)


def test_ids_depend_on_the_content_of_an_evaluators_folder(folder, content, tmp_path):
    for place, judge in (("first", "gpt2"), ("copy", "gpt2"), ("other", "llama")):
        shutil.copytree(folder, tmp_path / place)
        shutil.copytree(folder / judge, tmp_path / place / "judge")

    def ids(place, threshold=""):
        grid = grid_of(content | {"evaluators": [f"instruct=judge{threshold}"]})
        return {cell.id for cell in Plan(grid, tmp_path / place).cells}

    assert ids("first") == ids("copy")
    assert not ids("first") & ids("other")
    assert not ids("first") & ids("first", "@0.7")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1", "holds no grid"),
        ("a: [", "cannot be read as YAML"),
        (None, "There is no grid file"),
        ("a: &a [x, x]\nb: &b [*a, *b]", r"cannot be read as YAML: the value in line 2 contains itself\."),
    ],
)
def test_files_that_hold_no_grid(tmp_path, text, words):
    if text is not None:
        (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ToxlocError, match=words):
        load_grid(tmp_path / "grid.yaml")


def test_a_limit_of_two_kinds_is_named_in_one_line():
    assert treatment("trne", {"budget": {"kl": 0.02}}) == "trne, budget kl 0.02"


@pytest.mark.parametrize("name", ["offline-grid", "paper-grid"])
def test_the_example_grids_have_ninety_cells(name):
    grid = load_grid(f"examples/{name}.yaml")
    assert len(grid.models) * len(grid.benchmarks) * sum(len(list(entry.variants())) for entry in grid.methods) == 90


def test_the_budget_of_a_cell_is_its_methods(folder, content):
    methods = [
        {"method": "trne"},
        {"method": "meow2x", "settings": {"budget": [0.05, {"kl": 0.02}]}},
        {"method": "trne", "settings": {"budget": {"perplexity": 0.01, "kl": 0.5}}},
        {"method": "steering", "settings": {"strength": 2.0}},
    ]
    cells = Plan(grid_of(content | {"models": ["gpt2"], "methods": methods}), folder).cells
    assert [cell.budget for cell in cells if cell.benchmark == "one"] == [
        "perplexity 0.01",
        "perplexity 0.05",
        "KL 0.02",
        "perplexity 0.01 and KL 0.5",
        "none",
    ]


def test_a_grid_cannot_be_changed(content):
    grid = grid_of(content)
    with pytest.raises(ValidationError, match="frozen"):
        grid.samples = 3
