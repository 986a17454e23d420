import ast
import json
import subprocess
import sys

import pytest

from benchmarks import mutants
from benchmarks.mutants import EQUIVALENT, TESTS, Mutant, Outcome, changes, chosen, markdown, mutants_of, survivors


def changed(source):
    """The kinds of change of an expression's outermost node, with their results."""
    (statement,) = ast.parse(source).body
    return {kind: ast.unparse(change(statement.value)) for kind, change in changes(statement.value)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", {"comparison": "a <= b"}),
        ("a >= b", {"comparison": "a > b"}),
        ("a == b", {"comparison": "a != b"}),
        ("a + b", {"sign": "a - b", "dropped term": "a"}),
        ("a / b", {"sign": "a * b", "dropped term": "a"}),
        ("-a", {"sign": "a"}),
        ("~mask", {"mask": "mask"}),
        ("a and b", {"mask": "a or b"}),
        ("np.where(c, a, b)", {"mask": "np.where(c, b, a)"}),
        ("x.mean(0)", {"axis": "x.mean(1)"}),
        ("x.mean(-1)", {"axis": "x.mean(0)"}),
        ("np.maximum(a, 0)", {"bound": "np.minimum(a, 0)"}),
        ("max(a, b)", {"bound": "min(a, b)"}),
        ("3", {"off by one": "4"}),
        ("'a' + b", {}),
        ("True", {}),
        ("f(a)", {}),
    ],
)
def test_a_node_is_changed_in_every_way_that_fits(source, expected):
    assert changed(source) == expected


def test_an_axis_that_is_given_by_name_is_changed():
    (statement,) = ast.parse("x.sum(axis=1)").body
    (found,) = [change(statement.value.keywords[0]) for _, change in changes(statement.value.keywords[0])]
    assert found.value.value == 0


def test_mutants_differ_from_the_module_in_one_place_and_leave_text_and_annotations_alone(tmp_path, monkeypatch):
    (tmp_path / "m.py").write_text(
        '"""2 < 3."""\n\ndef f(x: Float[Tensor, 3]) -> int:\n    if x < 1:\n        raise ValueError(2)\n'
        "    return x - y\n"
    )
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    made = mutants_of("m.py")
    assert [(m.line, m.kind, m.before, m.after) for m in made] == [
        (4, "comparison", "x < 1", "x <= 1"),
        (4, "off by one", "1", "2"),
        (6, "sign", "x - y", "x + y"),
        (6, "dropped term", "x - y", "x"),
    ]
    original = ast.unparse(ast.parse((tmp_path / "m.py").read_text())).splitlines()
    for mutant in made:
        assert sum(a != b for a, b in zip(original, mutant.source.splitlines(), strict=True)) == 1


def test_the_choice_covers_all_kinds_and_is_the_same_for_the_same_seed():
    module = "toxloc/interventions/budget.py"
    drawn = chosen(module, 9, seed=0)
    assert drawn == chosen(module, 9, seed=0) != chosen(module, 9, seed=1)
    assert {m.kind for m in drawn} == {m.kind for m in mutants_of(module)}
    assert len(drawn) == len(set(drawn)) == 9


def test_every_module_and_every_test_is_there_and_every_equivalent_mutant_exists():
    assert all((mutants.ROOT / "tests" / name).is_file() for names in TESTS.values() for name in names)
    known = {mutant.id for module in {name.split(": ")[0] for name in EQUIVALENT} for mutant in mutants_of(module)}
    assert set(EQUIVALENT) <= known, sorted(set(EQUIVALENT) - known)


def test_only_survivors_that_still_exist_are_tested_again(tmp_path):
    module = "toxloc/localization/auroc.py"
    first, second, *_ = mutants_of(module)
    gone = Mutant(module, 3, "sign", "this + is", "gone", "")
    rows = [
        vars(Outcome(module, m.line + 1, m.kind, m.before, m.after, outcome, 1.0))
        for m, outcome in ((first, "killed"), (second, "survived"), (gone, "survived"))
    ]
    (tmp_path / "mutants.json").write_text(json.dumps({"mutants": rows}))
    kept, again = survivors(tmp_path / "mutants.json")
    assert [(outcome.before, outcome.outcome) for outcome in kept] == [(first.before, "killed")]
    assert again == [second]


def test_the_table_counts_by_module():
    def outcome(module, result, reason=None):
        mutant = Mutant(module, 1, "sign", "a + b", "a - b", "")
        return vars(Outcome(mutant.module, 1, mutant.kind, mutant.before, mutant.after, result, 1.0, reason))

    rows = [
        outcome("a.py", "killed"),
        outcome("a.py", "survived", "same"),
        outcome("b.py", "survived"),
        outcome("b.py", "timeout"),
    ]
    assert markdown({"mutants": rows}).splitlines()[2:] == [
        "| `a.py` | 2 | 1 | 1 | 0 |",
        "| `b.py` | 2 | 1 | 0 | 1 |",
        "| all | 4 | 2 | 1 | 1 |",
    ]


@pytest.mark.exhaustive
def test_a_fault_that_a_test_sees_is_killed_and_the_module_as_written_survives(tmp_path):
    program = """
import sys
from pathlib import Path
from benchmarks import mutants

mutants.preload()
module, folder = "toxloc/interventions/budget.py", Path(sys.argv[1])
project = mutants.copy_of_project(folder)
fault = next(m for m in mutants.mutants_of(module) if m.kind == "sign")
source = (mutants.ROOT / module).read_text()
for mutant in (fault, mutants.Mutant(module, 1, "sign", "a", "a", source)):
    print(mutants.Trial(mutant, project).outcome(limit=200).outcome)
    assert (project / module).read_text() == source
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=mutants.ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["killed", "survived"], done.stderr
