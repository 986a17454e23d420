"""Artefacts that are damaged in any way are read as whole, or end in a sentence; never in another error."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import toxloc
from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc import AurA, ContrastSet, LinearAcT, Meow2X, PromptSet, Steering, ToxlocError
from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.evaluation.result import load_evaluation
from toxloc.generation.journal import Journal

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:])
JUDGE = FunctionEvaluator("has-e", lambda texts: [0.75 * ("e" in text) for text in texts])


@pytest.fixture(scope="module")
def lm():
    return random_model()


@pytest.fixture(scope="module")
def artefacts(lm, tmp_path_factory):
    """A folder of each kind, with the function that reads it."""
    root = tmp_path_factory.mktemp("artefacts")
    toxloc.TRNE.fit(lm, PAIRS, norm=0.05).save(root / "trne")
    Meow2X(neurons=[(0, 3), (1, 5)], scale=0.5).save(root / "meow2x")
    AurA.fit(lm, PAIRS, strength=0.5).save(root / "aura")
    LinearAcT.fit(lm, PAIRS, strength=0.5).save(root / "linear-act")
    Steering.fit(lm, PAIRS, strength=0.5).save(root / "steering")
    toxloc.localize(lm, PAIRS, draws=10, parts=("mlp", "attention")).save(root / "localization")
    toxloc.evaluate(lm, PromptSet(TEXTS[:2]), [JUDGE], samples=2, max_new_tokens=2, fluency=False).save(
        root / "evaluation"
    )
    return root


def read(folder):
    return {"localization": toxloc.Localization.load, "evaluation": load_evaluation}.get(
        folder.name, toxloc.load_intervention
    )(folder)


def use(lm, found):
    """Whatever can be read can be used, and reverted."""
    if isinstance(found, toxloc.Intervention):
        before = bits(lm)
        try:
            with found.applied(lm):
                assert all(weight.isfinite().all() for weight in lm.hf.parameters())
        except ToxlocError:
            pass
        assert same_bits(before, lm)
        assert lm.interventions == []
    elif isinstance(found, toxloc.Localization):
        repr(found)
        assert all(np.isfinite(found.layer_scores(name)).all() for name in found.scores)
    else:
        assert all(((j.scores >= 0) & (j.scores <= 1)).all() for j in found.judgements.values())


JUNK = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        2**70,
        1e38,
        -1e300,
        "",
        "x" * 500,
        "\u2028",
        [],
        {},
        [[]],
        {"a": 1},
        [None],
        "NaN",
        [1e308] * 3,
    ]
)


def places(value, path=()):
    """All paths to values inside a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def damaged_bytes(draw, path):
    data = bytearray(path.read_bytes())
    kind = draw(st.sampled_from(["truncate", "flip", "insert", "empty"]))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    if kind == "flip" and data:
        data[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "insert":
        data[at:at] = draw(st.binary(min_size=1, max_size=8))
    else:
        del data[0 if kind == "empty" else at :]
    path.write_bytes(bytes(data))


def damaged_json(draw, path):
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n") if path.suffix == ".jsonl" else [path.read_text()]
    i = draw(st.integers(0, len(lines) - 1))
    value = json.loads(lines[i])
    chosen = draw(st.sampled_from(list(places(value))))
    if chosen and draw(st.booleans()):
        parent = value
        for key in chosen[:-1]:
            parent = parent[key]
        del parent[chosen[-1]]
    else:
        value = replaced(value, chosen, draw(JUNK))
    lines[i] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def damaged_tensors(draw, path):
    tensors = load_file(path)
    if not tensors:
        return
    name = draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name]
    kind = draw(st.sampled_from(["drop", "nan", "inf", "huge", "cut", "flat", "integer", "rename", "extra"]))
    if kind in ("drop", "rename"):
        del tensors[name]
    if kind == "rename":
        tensors[f"{name}x"] = tensor
    elif kind in ("nan", "inf", "huge") and tensor.numel():
        tensors[name] = tensor.clone().float()
        tensors[name].view(-1)[0] = {"nan": torch.nan, "inf": torch.inf, "huge": 3e38}[kind]
    elif kind == "cut" and tensor.ndim:
        tensors[name] = tensor[:-1].clone()
    elif kind == "flat":
        tensors[name] = tensor.reshape(-1).clone()
    elif kind == "integer":
        tensors[name] = tensor.to(torch.int64)
    elif kind == "extra":
        tensors["extra"] = torch.zeros(2)
    save_file(tensors, path)


def damaged_place(draw, path):
    """Something else than a file: nothing, a folder, or a link to itself."""
    kind = draw(st.sampled_from(["nothing", "folder", "loop"]))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)


def check_damage(data, lm, artefacts, scratch):
    folder = data.draw(st.sampled_from(sorted(path for path in artefacts.iterdir())), "artefact")
    copy = Path(scratch) / folder.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    path = data.draw(st.sampled_from(sorted(copy.iterdir())), "file")
    by_suffix = {".safetensors": damaged_tensors}.get(path.suffix, damaged_json)
    data.draw(st.sampled_from([damaged_bytes, by_suffix, damaged_place]), "kind")(data.draw, path)
    try:
        found = read(copy)
    except ToxlocError:
        return
    use(lm, found)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_damage_ends_in_a_sentence(data, lm, artefacts, tmp_path_factory):
    check_damage(data, lm, artefacts, tmp_path_factory.getbasetemp() / "damaged")


@pytest.mark.exhaustive
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_much_damage_ends_in_a_sentence(data, lm, artefacts, tmp_path_factory):
    check_damage(data, lm, artefacts, tmp_path_factory.getbasetemp() / "damaged")


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}"]
)
@pytest.mark.parametrize(
    "name", ["meow2x/intervention.json", "localization/localization.json", "evaluation/evaluation.json"]
)
def test_hostile_json_is_refused(artefacts, tmp_path, name, content):
    shutil.copytree(artefacts / Path(name).parent, tmp_path / Path(name).parent)
    (tmp_path / name).write_text(content)
    with pytest.raises(ToxlocError, match="not valid JSON"):
        read((tmp_path / name).parent)


def test_line_separators_in_texts_survive(lm, tmp_path):
    texts = ["a\u2028b", "c\u2029d", "e\u0085f", "g\x0ch", "i\x1cj"]
    evaluation = toxloc.evaluate(lm, PromptSet(texts), [JUDGE], samples=1, max_new_tokens=2, fluency=False)
    evaluation.save(tmp_path / "e")
    assert load_evaluation(tmp_path / "e").prompts == texts


@pytest.mark.parametrize(
    "line",
    [
        b"[1000000, 0, 1]",
        b'["a", 0, "x"]',
        b'[-1, 0, "x"]',
        b'[2, 0, "x"]',
        b'[0, 3, "x"]',
        b'[0.5, 0, "x"]',
        b'[true, 0, "x"]',
        b'[[], 0, "x"]',
        b"[" * 100_000,
    ],
)
def test_a_journal_with_impossible_places_is_refused(tmp_path, line):
    path, known = tmp_path / "journal", {"samples": 3, "n_prompts": 2}
    with Journal(path, known) as journal:
        journal.add([(0, 0, "a")])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ToxlocError, match="journal is"):
        Journal(path, known)


def test_a_journal_belongs_to_every_weight_of_its_model(tmp_path):
    first, second = random_model(seed=0), random_model(seed=0)
    with torch.no_grad():
        second.hf.transformer.h[1].attn.c_attn.weight[3, 4] += 0.01
    assert first.fingerprint != second.current_fingerprint()
    toxloc.evaluate(
        first, PromptSet(["a"]), [JUDGE], samples=1, max_new_tokens=2, fluency=False, journal=tmp_path / "j"
    )
    with pytest.raises(ToxlocError, match="weights="):
        toxloc.evaluate(
            second, PromptSet(["a"]), [JUDGE], samples=1, max_new_tokens=2, fluency=False, journal=tmp_path / "j"
        )
