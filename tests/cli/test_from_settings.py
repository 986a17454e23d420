import inspect
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

import toxloc
from toxloc import ToxlocError
from toxloc.cli import app
from toxloc.cli.evaluate import EvaluateSettings
from toxloc.cli.from_settings import takes
from toxloc.cli.suppress import SuppressSettings
from toxloc.evaluation.settings import EvaluationSettings
from toxloc.interventions.base import KINDS, Intervention
from toxloc.interventions.settings import MethodSettings
from toxloc.runs.settings import RunSettings
from toxloc.support.settings import Settings, option, signature_from
from toxloc.sweeps.grid import Treatment, grid_of

from .conftest import invoke, plain

FLAGS = {"methods": "--method", "evaluators": "--evaluator", "interventions": "--intervention", "options": "--set"}


class Walk(Settings):
    steps: int = option(5, "how many steps", panel="How to measure", ge=1)
    gait: Literal["walk", "run"] = option("walk", "walk or run", panel="What to read")
    stops: tuple[int, ...] = option((1, 2), "where to rest", flag="stop")
    via: tuple[str, ...] | None = option(None, "places on the way")
    whistle: bool = option(False, "whistle on the way")
    shoes: bool = option(True, "wear shoes")
    share: float | None = option(None, "share of the way")


class Named(Walk):
    name: str = option(..., "who walks", panel="Where to run")


def command_of(settings, **options):
    """Return a command that records the settings it is called with, and a function that calls it."""
    calls = []

    @takes(settings, **options)
    def command(settings, out: Annotated[str, typer.Option(rich_help_panel="What to read")] = "here"):
        """Walk."""
        calls.append((settings, out))

    made = typer.Typer(add_completion=False)
    made.command()(command)

    def call(*arguments):
        calls.clear()
        result = CliRunner().invoke(made, arguments)
        if result.exception is not None:
            raise result.exception
        return calls[0]

    return made, call


def options_of(made):
    return {parameter.name: parameter for parameter in typer.main.get_command(made).params}


def test_the_settings_are_made_of_the_options():
    _, call = command_of(Walk)
    assert call() == (Walk(), "here")
    settings, out = call(
        "--steps",
        "3",
        "--gait",
        "run",
        "--stop",
        "7",
        "--stop",
        "8",
        "--via",
        "a",
        "--whistle",
        "--no-shoes",
        "--share",
        "0.5",
        "--out",
        "there",
    )
    assert settings == Walk(steps=3, gait="run", stops=(7, 8), via=("a",), whistle=True, shoes=False, share=0.5)
    assert type(settings.stops) is tuple
    assert out == "there"
    assert call("--steps", "3")[0].model_fields_set == {"steps"}


def test_the_settings_check_the_values():
    _, call = command_of(Walk)
    with pytest.raises(ToxlocError, match=r"^steps=0: .*\b1\.$"):
        call("--steps", "0")
    with pytest.raises(ToxlocError, match=r"^gait='fly': .*'walk' or 'run'\.$"):
        call("--gait", "fly")


def test_tuples_are_repeatable_and_booleans_are_flags():
    made = options_of(command_of(Walk)[0])
    assert {name for name, parameter in made.items() if parameter.multiple} == {"stops", "via"}
    assert {name for name, parameter in made.items() if getattr(parameter, "is_flag", False) and name != "help"} >= {
        "whistle",
        "shoes",
    }
    assert (made["shoes"].opts, made["shoes"].secondary_opts) == (["--shoes"], ["--no-shoes"])
    assert made["stops"].opts == ["--stop"]
    assert list(made["stops"].default) == [1, 2]


def test_panels_come_in_their_order_and_own_fields_before_inherited_ones():
    assert list(options_of(command_of(Named)[0])) == [
        "gait",
        "out",
        "steps",
        "name",
        "stops",
        "via",
        "whistle",
        "shoes",
        "share",
    ]
    more = type("More", (Walk,), {"__annotations__": {"more": int}, "more": option(1, "more", panel="How to measure")})
    assert list(options_of(command_of(more)[0]))[2:4] == ["more", "steps"]


def test_a_field_without_a_default_must_be_given_also_as_an_argument():
    made, call = command_of(Named)
    assert options_of(made)["name"].required
    with pytest.raises(SystemExit):
        call()
    assert call("--name", "Ann")[0] == Named(name="Ann")
    _, call = command_of(Named, arguments=("name",))
    assert call("Ann", "--steps", "2")[0] == Named(name="Ann", steps=2)


def test_fields_that_are_left_out_keep_their_default():
    made, call = command_of(Walk, leave_out=("shoes",))
    assert "shoes" not in options_of(made)
    assert call("--whistle")[0] == Walk(whistle=True)


@pytest.mark.parametrize(
    ("command", "settings", "without"),
    [
        ("run", RunSettings, set()),
        ("suppress", SuppressSettings, {"model"}),
        ("evaluate", EvaluateSettings, {"model", "fluency"}),
        ("evaluate", EvaluationSettings, {"fluency"}),
    ],
)
def test_every_field_is_an_option_with_its_description_and_default(command, settings, without):
    made = {parameter.name: parameter for parameter in typer.main.get_command(app).commands[command].params}
    shown = plain(invoke(command, "--help", columns=250).output)
    for name, field in settings.model_fields.items():
        if name in without:
            continue
        assert made[name].opts == [FLAGS.get(name, "--" + name.replace("_", "-"))]
        assert made[name].rich_help_panel in ("What to read", "How to measure", "Where to run")
        text = field.description[0].upper() + field.description[1:] + "."
        assert plain(text) in shown
        if field.default is not None and field.default != ():
            default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
            if field.default is False:
                default = "no-" + name.replace("_", "-")
            assert f"{plain(text)} [default: {default}]" in shown
    assert without == {"fluency"} or made["model"].required is (command != "run")


def test_the_fields_of_the_classes_are_the_parameters_in_python():
    run, evaluate = (inspect.signature(function).parameters for function in (toxloc.run, toxloc.evaluate))
    for name, field in RunSettings.model_fields.items():
        assert name in run
        if name not in ("model", "evaluators"):  # explicit parameters of the function
            assert run[name].default == field.default
    for name, field in EvaluationSettings.model_fields.items():
        assert evaluate[name].default == field.default


def test_a_new_field_of_a_run_is_in_the_signature_and_an_option_and_in_the_command_that_repeats_the_run():
    class More(RunSettings):
        extra_draws: int = option(3, "how many extra draws", panel="How to measure", ge=1)

    @signature_from(More)
    def function(**options):
        return More.of(**options)

    made, call = command_of(More)
    assert inspect.signature(function).parameters["extra_draws"].default == 3
    assert options_of(made)["extra_draws"].opts == ["--extra-draws"]
    assert call("--extra-draws", "4")[0] == function(extra_draws=4)
    assert function(extra_draws=4).command() == "toxloc run --extra-draws 4"
    with pytest.raises(ToxlocError, match=r"extra_draws=0: .*\b1\."):
        function(extra_draws=0)


def test_a_new_field_of_a_method_is_in_its_fit_a_key_of_a_grid_and_a_setting_of_suppress():
    class WalkingSettings(MethodSettings):
        extra_steps: int = option(3, "how many extra steps", ge=1)

    class Walking(Intervention):
        kind, Settings = "walking", WalkingSettings

    try:
        assert inspect.signature(Walking.fit).parameters["extra_steps"].default == 3
        assert "extra_steps: how many extra steps." in Walking.fit.__doc__
        treatment = Treatment(method="walking", settings={"extra_steps": [1, 2]})
        assert list(treatment.variants()) == [{"extra_steps": 1}, {"extra_steps": 2}]
        _, call = command_of(SuppressSettings, arguments=("model",))
        suppress = call("toxloc-tiny", "--method", "walking", "--set", "extra_steps=2")[0]
        assert suppress.of_method() == WalkingSettings(extra_steps=2)
        row = next(
            line for line in invoke("methods", "walking", columns=200).output.splitlines() if "extra_steps" in line
        )
        assert [cell.strip() for cell in row.strip("│").split("│")] == [
            "extra_steps",
            "3",
            "integer",
            "how many extra steps",
        ]
        for refused in (
            lambda: call("toxloc-tiny", "--method", "walking", "--set", "extra_steps=0"),
            lambda: grid_of(
                {
                    "models": ["m"],
                    "benchmarks": {"b": {"prompts": "p"}},
                    "methods": [{"method": "walking", "settings": {"extra_steps": 0}}],
                }
            ),
        ):
            with pytest.raises(ToxlocError, match=r"walking: extra_steps=0: .*\b1\b"):
                refused()
    finally:
        KINDS.pop("walking")
