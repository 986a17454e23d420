import inspect
import subprocess
import sys
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, ValidationError, model_validator

from toxloc import ToxlocError
from toxloc.support.settings import Settings, extra_of, flag_of, option, signature_from


def even(value):
    if value % 2:
        raise ToxlocError(f"{value} is odd; give an even number.")
    return value


class Place(Settings):
    device: str | None = option(None, "where it runs", panel="Where")


class Walk(Place):
    steps: int = option(5, "how many steps", panel="How", ge=1)
    share: float = option(0.5, "share of the way", flag="part", gt=0, lt=1)
    gait: Literal["walk", "run"] = option("walk", "walk or run")
    pair: Annotated[int, AfterValidator(even)] = option(2, "an even number")
    stops: tuple[str, ...] = option(("here",), "places to rest", min_length=1)

    @model_validator(mode="after")
    def _check(self):
        if self.gait == "run" and self.steps > 100:
            raise ToxlocError("Nobody runs more than 100 steps; walk.")
        return self


class LongWalk(Walk):
    shoes: str = option("boots", "what to wear")


class Named(Settings):
    name: str = option(..., "its name")


def test_an_option_sets_description_panel_flag_and_bounds():
    steps, share = Walk.model_fields["steps"], Walk.model_fields["share"]
    assert (steps.description, extra_of(steps)) == ("how many steps", {"panel": "How"})
    assert (share.description, extra_of(share)) == ("share of the way", {"flag": "part"})
    assert [bound.ge for bound in steps.metadata] == [1]
    assert Named.model_fields["name"].is_required()
    assert not steps.is_required()


def test_flags_are_field_names_with_dashes_unless_declared():
    class Other(Settings):
        max_new_tokens: int = option(1, "length")

    assert flag_of("max_new_tokens", Other.model_fields["max_new_tokens"]) == "max-new-tokens"
    assert flag_of("share", Walk.model_fields["share"]) == "part"


def test_a_settings_object_cannot_be_changed():
    walk = Walk()
    with pytest.raises(ValidationError, match="frozen"):
        walk.steps = 7
    with pytest.raises(ValidationError, match="frozen"):
        del walk.steps
    assert walk == Walk()
    assert hash(walk) == hash(Walk())


def test_options_override_single_fields_of_given_settings():
    given = Walk(steps=3, gait="run")
    assert Walk.of(given, steps=4) == Walk(steps=4, gait="run")
    assert given.steps == 3
    assert Walk.of() == Walk.of(None) == Walk()


def test_settings_can_come_from_a_class_with_more_or_fewer_fields():
    assert Walk.of(LongWalk(steps=3, shoes="none"), share=0.25) == Walk(steps=3, share=0.25)
    assert LongWalk.of(Walk(steps=3)) == LongWalk(steps=3)


def test_merged_settings_know_which_fields_were_set():
    merged = Walk.of(Walk(steps=3), device="cpu")
    assert merged.model_fields_set == {"steps", "device"}
    assert merged.changed() == {"steps": 3, "device": "cpu"}
    assert Walk(steps=5).changed() == {}  # set explicitly to its default


@pytest.mark.parametrize(
    ("options", "value", "fix"),
    [
        (dict(share=5.0), "share=5.0: ", "must be less than 1"),
        (dict(steps=0), "steps=0: ", "must be greater than or equal to 1"),
        (dict(gait="fly"), "gait='fly': ", "must be 'walk' or 'run'"),
        (dict(steps="many"), "steps='many': ", "must be a valid integer"),
        (dict(pair=3), "3 is odd; ", "give an even number"),
        (dict(gait="run", steps=101), "Nobody runs more than 100 steps; ", "walk"),
        (dict(stops=()), "stops=(): ", "at least one"),
        (dict(stops=("a", 2)), "stops.1=2: ", "must be a valid string"),
        (dict(stepps=1), "There is no setting 'stepps'", "device, steps, share, gait, pair, stops"),
    ],
)
def test_the_error_is_one_sentence_with_the_invalid_value_and_the_fix(options, value, fix):
    with pytest.raises(ToxlocError) as error:
        Walk.of(**options)
    message = str(error.value)
    assert message.startswith(value)
    assert fix in message
    assert message.endswith(".") and ". " not in message


def test_the_error_names_a_missing_value():
    with pytest.raises(ToxlocError, match=r"^name is missing"):
        Named.of()


def test_the_constructor_refuses_unknown_fields():
    with pytest.raises(ValidationError, match="Extra inputs"):
        Walk(stepps=1)


def test_a_signature_shows_the_fields_in_place_of_the_options():
    @signature_from(LongWalk, leave_out=("stops", "pair"))
    def walk(where, steps=None, *, settings=None, **options):
        return LongWalk.of(settings, **options)

    shown = inspect.signature(walk).parameters
    assert list(shown) == ["where", "steps", "settings", "device", "share", "gait", "shoes"]
    assert {name: shown[name].default for name in ("share", "gait", "shoes", "device")} == {
        "share": 0.5,
        "gait": "walk",
        "shoes": "boots",
        "device": None,
    }
    assert shown["share"].annotation is float
    assert {shown[name].kind for name in ("device", "share", "shoes")} == {inspect.Parameter.KEYWORD_ONLY}
    assert shown["steps"].default is None  # the function's parameter, not the field
    assert walk("there", shoes="none") == LongWalk(shoes="none")


def test_a_required_field_has_no_default_in_the_signature():
    @signature_from(Named)
    def call(**options):
        return Named.of(**options)

    assert inspect.signature(call).parameters["name"].default is inspect.Parameter.empty


def test_settings_classes_need_no_torch():
    modules = (
        "toxloc.support.settings",
        "toxloc.models.settings",
        "toxloc.texts.settings",
        "toxloc.runs.settings",
        "toxloc.evaluation.settings",
        "toxloc.interventions.settings",
        "toxloc.interventions.registry",
    )
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {modules!r}]\n"
        "from toxloc.interventions.registry import all_methods; all_methods()\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
