import json

import pytest

from tests.conftest import random_model
from toxloc import Meow2X, ToxlocError, load_intervention
from toxloc.interventions.base import Intervention


def test_applying_twice_and_reverting_what_is_not_applied(tiny):
    meow = Meow2X(layers=[0])
    with pytest.raises(ToxlocError, match="nothing to revert"):
        meow.revert(tiny)
    meow.apply(tiny)
    with pytest.raises(ToxlocError, match="applied to random-gpt2 already"):
        meow.apply(tiny)
    meow.revert(tiny)


def test_one_intervention_on_two_models():
    meow, a, b = Meow2X(layers=[0]), random_model(seed=1), random_model(seed=2)
    meow.apply(a)
    meow.apply(b)
    meow.revert(a)
    assert a.applied == []
    assert b.applied == [meow]
    meow.revert(b)


def test_kinds_are_unique():
    with pytest.raises(TypeError, match="'meow2x' exists already"):
        type("Copy", (Intervention,), {"kind": "meow2x"})


@pytest.mark.parametrize(("change", "words"), [
    ({"format_version": 99}, "format version 99"),
    ({"kind": "magic"}, "kind 'magic'"),
    ({"config": {}}, "damaged or incomplete"),
])
def test_files_that_cannot_be_loaded(tmp_path, change, words):
    Meow2X(layers=[0]).save(tmp_path / "m")
    path = tmp_path / "m" / "intervention.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ToxlocError, match=words):
        load_intervention(tmp_path / "m")


def test_an_empty_folder_and_a_damaged_file(tmp_path):
    with pytest.raises(ToxlocError, match="holds no intervention"):
        load_intervention(tmp_path)
    (tmp_path / "intervention.json").write_text("{")
    with pytest.raises(ToxlocError, match="not valid JSON"):
        load_intervention(tmp_path)
