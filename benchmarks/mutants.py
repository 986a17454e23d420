"""Measure how many small faults the tests notice: change the code of a module in one place, and run its tests.

    python -m benchmarks.mutants --out benchmarks/results/mutants.json       # all modules, 12 mutants each
    python -m benchmarks.mutants --module toxloc/localization/scores.py --per-module 40

A mutant is a copy of the package with one change: a sign, a comparison, an axis, a mask, a constant that is one too
large, a bound, or a term that is left out. It is killed if a test fails, cannot be collected, or runs out of time. It
survives if all tests pass; then either a test is missing, or the mutant computes the same (`EQUIVALENT` says why).

The tests run in a copy of the project, in processes that are forked from one that has imported torch and the other
libraries, because importing them takes longer than most tests.
"""

import ast
import importlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import markdown as md
from toxloc.support.files import read_json, write_json

ROOT = Path(__file__).parents[1]
COPIED = ("toxloc", "tests", "benchmarks", "pyproject.toml")
HEAVY = (
    "torch",
    "transformers",
    "transformer_lens",
    "scipy.stats",
    "sklearn",
    "pandas",
    "plotly.graph_objects",
    "datasets",
    "gguf",
)

# The tests of each module. They run in this order until a test fails.
TESTS: dict[str, tuple[str, ...]] = {
    "toxloc/localization/text_statistics.py": ("localization/test_statistics.py", "localization/test_scores.py"),
    "toxloc/localization/statistics.py": ("localization/test_statistics.py", "localization/test_scores.py"),
    "toxloc/localization/moments.py": ("localization/test_statistics.py", "localization/test_scores.py"),
    "toxloc/localization/contributions.py": (
        "localization/test_contributions.py",
        "localization/test_statistics.py",
        "localization/test_scores.py",
    ),
    "toxloc/localization/scores.py": ("localization/test_scores.py", "localization/test_localize.py"),
    "toxloc/localization/auroc.py": (
        "localization/test_auroc.py",
        "localization/test_unit_aurocs.py",
        "localization/test_scores.py",
    ),
    "toxloc/localization/uncertainty.py": ("localization/test_uncertainty.py", "localization/test_localize.py"),
    "toxloc/localization/linalg.py": ("localization/test_linalg.py",),
    "toxloc/interventions/methods/trne.py": (
        "interventions/methods/test_trne.py",
        "interventions/methods/test_parity.py",
    ),
    "toxloc/interventions/rank_one.py": ("interventions/methods/test_trne.py", "interventions/methods/test_parity.py"),
    "toxloc/interventions/unit_edits.py": (
        "interventions/methods/test_trne.py",
        "interventions/methods/test_parity.py",
    ),
    "toxloc/interventions/methods/meow2x.py": (
        "interventions/methods/test_meow2x.py",
        "interventions/methods/test_parity.py",
    ),
    "toxloc/interventions/budget.py": ("interventions/test_budget.py",),
    "toxloc/interventions/tuning.py": ("interventions/test_tuning.py",),
    "toxloc/interventions/base.py": (
        "interventions/test_base.py",
        "interventions/test_loading.py",
        "interventions/methods/test_meow2x.py",
    ),
    "toxloc/evaluation/toxicity.py": ("evaluation/test_toxicity.py",),
    "toxloc/evaluation/change.py": ("evaluation/test_change.py",),
    "toxloc/evaluation/agreement.py": ("evaluation/test_agreement.py",),
    "toxloc/support/intervals.py": ("support/test_intervals.py",),
    "toxloc/evaluation/cost/fluency.py": ("evaluation/cost/test_fluency.py",),
    "toxloc/evaluation/cost/perplexity.py": ("evaluation/cost/test_perplexity.py",),
    "toxloc/generation/sampling.py": ("generation/test_sampling.py", "generation/test_generate.py"),
    "toxloc/generation/batch.py": ("generation/test_batch.py", "generation/test_generate.py"),
    "toxloc/models/batching.py": ("models/test_batching.py", "models/test_likelihood.py"),
    "toxloc/models/likelihood.py": ("models/test_likelihood.py", "evaluation/cost/test_fluency.py"),
}

# Mutants that compute the same as the original, by `Mutant.id`, with the reason.
EQUIVALENT: dict[str, str] = {
    "toxloc/localization/scores.py: toxic.peaks is None or neutral.peaks is None"
    " -> toxic.peaks is None and neutral.peaks is None": "both sides are collected with the same options",
    "toxloc/generation/sampling.py: candidates < logits.shape[1] -> candidates <= logits.shape[1]": (
        "a repeated search of all tokens gives the same token"
    ),
    "toxloc/generation/batch.py: waiting and room >= CHANGE_AT * size -> waiting or room >= CHANGE_AT * size": (
        "when rows join a batch changes the speed, but no completion"
    ),
    "toxloc/models/batching.py: 16384 -> 16385": "the size of a batch bounds memory and changes no result",
    "toxloc/models/likelihood.py: 27 -> 28": "the size of a block bounds memory and changes no result",
}

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
SIGNS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}
BOUNDS = {
    "maximum": "minimum",
    "minimum": "maximum",
    "max": "min",
    "min": "max",
    "argmax": "argmin",
    "argmin": "argmax",
}
REDUCING = {"mean", "sum", "std", "var", "norm", "cumsum", "any", "all", "argsort", "sort", *BOUNDS}


@dataclass(frozen=True)
class Mutant:
    """A change of one place in one module.

    Attributes:
        module: path of the module in the project.
        line: line of the place.
        kind: kind of the change: sign, comparison, axis, mask, off by one, bound, or dropped term.
        before: the expression in the module.
        after: the expression in the mutant.
        source: the changed module.
    """

    module: str
    line: int
    kind: str
    before: str
    after: str
    source: str

    @property
    def id(self) -> str:
        """Name of the mutant, which does not change when lines are added above it."""
        return f"{self.module}: {self.before} -> {self.after}"


Change = tuple[str, Callable[[Any], ast.AST]]


def changes(node: ast.AST) -> Iterator[Change]:
    """Yield the kinds of change that a node allows, each with a function that returns the changed copy of the node."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            yield "comparison", lambda n: _with(n, ops=[COMPARISONS[type(n.ops[0])]()])
        case ast.BinOp(op=op) if type(op) in SIGNS and not _is_text(node):
            yield "sign", lambda n: _with(n, op=SIGNS[type(n.op)]())
            yield "dropped term", lambda n: n.left
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            return  # a negative constant is mutated as an axis, if it is one
        case ast.UnaryOp(op=ast.USub()):
            yield "sign", lambda n: n.operand
        case ast.UnaryOp(op=ast.Not() | ast.Invert()):
            yield "mask", lambda n: n.operand
        case ast.BoolOp():
            yield "mask", lambda n: _with(n, op=ast.Or() if isinstance(n.op, ast.And) else ast.And())
        case ast.keyword(arg="dim" | "axis") if (axis := _integer(node.value)) is not None:
            yield "axis", lambda n: _with(n, value=ast.Constant(0 if axis else 1))
        case ast.Call(func=ast.Attribute(attr=name), args=[only]) if name in REDUCING and _integer(only) is not None:
            yield "axis", lambda n: _with(n, args=[ast.Constant(0 if _integer(n.args[0]) else 1)])
        case ast.Call(func=ast.Attribute(attr="where"), args=[_, _, _]):
            yield "mask", lambda n: _with(n, args=[n.args[0], n.args[2], n.args[1]])
        case ast.Call(func=ast.Attribute(attr=name) as function) if name in BOUNDS:
            yield "bound", lambda n: _with(n, func=_with(function, attr=BOUNDS[name]))
        case ast.Call(func=ast.Name(id=name)) if name in BOUNDS:
            yield "bound", lambda n: _with(n, func=ast.Name(BOUNDS[name], ast.Load()))
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            yield "off by one", lambda n: ast.Constant(n.value + 1)


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    copy = deepcopy(node)
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy


def _integer(node: ast.AST) -> int | None:
    """Return the value of an integer constant, also of a negative one."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _integer(node.operand)
        return None if value is None else -value
    return node.value if isinstance(node, ast.Constant) and type(node.value) is int else None


def _is_text(node: ast.AST) -> bool:
    containers = ast.JoinedStr | ast.List | ast.Tuple | ast.Dict
    constants = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
    return any(isinstance(n, containers) for n in ast.walk(node)) or any(isinstance(c, str) for c in constants)


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Yield (parent, field, index, node) of every node that a fault may sit in: no annotations, errors or text."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            is_repr = isinstance(node, ast.FunctionDef) and node.name in ("__repr__", "__str__", "describe")
            if (
                isinstance(node, ast.AST)
                and not isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom)
                and not is_repr
            ):
                yield tree, field, index, node
                yield from places(node)


def mutants_of(module: str) -> list[Mutant]:
    """Return all mutants of a module, in the order of its lines."""
    source = (ROOT / module).read_text(encoding="utf-8")
    tree = ast.parse(source)
    made = []
    for parent, field, index, node in places(tree):
        for kind, change in changes(node):
            mutated = change(node)
            _put(parent, field, index, ast.fix_missing_locations(ast.copy_location(mutated, node)))
            made.append(
                Mutant(
                    module, getattr(node, "lineno", 0), kind, ast.unparse(node), ast.unparse(mutated), ast.unparse(tree)
                )
            )
            _put(parent, field, index, node)
    return made


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def chosen(module: str, count: int, seed: int) -> list[Mutant]:
    """Draw mutants of a module so that its kinds of change are equally frequent, as far as there are enough."""
    by_kind: dict[str, list[Mutant]] = {}
    for mutant in mutants_of(module):
        by_kind.setdefault(mutant.kind, []).append(mutant)
    drawn: list[Mutant] = []
    rng = random.Random(f"{seed} {module}")
    for group in by_kind.values():
        rng.shuffle(group)
    while len(drawn) < count and any(by_kind.values()):
        drawn += [group.pop() for group in by_kind.values() if group]
    return drawn[:count]


@dataclass(frozen=True)
class Outcome:
    """What the tests said of a mutant: "killed", "survived", or "timeout", which counts as killed."""

    module: str
    line: int
    kind: str
    before: str
    after: str
    outcome: str
    seconds: float
    reason: str | None = None


def run_tests(project: Path, tests: list[str], log: Path) -> int:
    """Run tests in a forked process and return its exit code."""
    log_file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log_file, 1)
    os.dup2(log_file, 2)
    os.chdir(project)
    sys.path.insert(0, str(project))
    for name in [name for name in sys.modules if name.split(".")[0] in ("toxloc", "tests", "benchmarks")]:
        del sys.modules[name]
    import pytest

    return int(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests]))


def _child(project: Path, tests: list[str], log: Path) -> None:
    os.setsid()
    os._exit(run_tests(project, tests, log))


class Trial:
    """The tests of a mutant's module, running in a copy of the project.

    Args:
        mutant: the mutant.
        project: the copy of the project, which nothing else uses meanwhile.
    """

    def __init__(self, mutant: Mutant, project: Path):
        self.mutant, self.project = mutant, project
        self._write(mutant.source)
        tests = [f"tests/{name}" for name in TESTS[mutant.module]]
        self.process = multiprocessing.get_context("fork").Process(
            target=_child, args=(project, tests, project / "log.txt")
        )
        self.start = time.monotonic()
        self.process.start()

    def outcome(self, limit: float) -> Outcome:
        """Wait for the outcome."""
        while (outcome := self.ended(limit)) is None:
            time.sleep(0.1)
        return outcome

    def ended(self, limit: float) -> Outcome | None:
        """Return the outcome, or None while the tests run."""
        seconds = time.monotonic() - self.start
        late = seconds > limit
        if self.process.is_alive() and not late:
            return None
        if late and self.process.pid is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self._write((ROOT / self.mutant.module).read_text(encoding="utf-8"))
        outcome = "timeout" if late else "survived" if self.process.exitcode == 0 else "killed"
        mutant = self.mutant
        reason = EQUIVALENT.get(mutant.id) if outcome == "survived" else None
        return Outcome(
            mutant.module, mutant.line, mutant.kind, mutant.before, mutant.after, outcome, round(seconds, 1), reason
        )

    def _write(self, source: str) -> None:
        """Write the module, and delete its bytecode, which may look current within the same second."""
        path = self.project / self.mutant.module
        path.write_text(source, encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()


def copy_of_project(folder: Path) -> Path:
    """Copy what the tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def preload() -> None:
    """Import what takes long to import, so that the forked processes need not."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in HEAVY:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def main(
    out: Annotated[Path | None, typer.Option(help="File for the outcomes (JSON).")] = None,
    module: Annotated[list[str] | None, typer.Option(help="Only these modules.")] = None,
    per_module: Annotated[int, typer.Option(help="Mutants per module.")] = 12,
    again: Annotated[
        Path | None, typer.Option(help="Earlier outcomes (JSON); test only the mutants that survived then.")
    ] = None,
    limit: Annotated[float, typer.Option(help="Seconds until a mutant counts as killed by the time limit.")] = 240,
    jobs: Annotated[int, typer.Option(help="Mutants that are tested at the same time.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed for the choice of mutants.")] = 0,
) -> None:
    """Test the tests with mutants."""
    preload()
    console = Console()
    outcomes, todo = survivors(again) if again else ([], [])
    if not again:
        todo = [mutant for name in module or TESTS for mutant in chosen(name, per_module, seed)]
    with tempfile.TemporaryDirectory(prefix="toxloc-mutants-") as folder:
        free = [copy_of_project(Path(folder) / str(i)) for i in range(jobs)]
        running: list[Trial] = []
        while todo or running:
            while free and todo:
                running.append(Trial(todo.pop(0), free.pop()))
            time.sleep(0.1)
            for trial in list(running):
                if outcome := trial.ended(limit):
                    running.remove(trial)
                    free.append(trial.project)
                    outcomes.append(outcome)
                    console.print(described(outcome), markup=False, highlight=False)
                    outcomes.sort(key=lambda outcome: (list(TESTS).index(outcome.module), outcome.line))
                    result = {"per_module": per_module, "seed": seed, "mutants": [asdict(o) for o in outcomes]}
                    if out:  # after each mutant, so that a run that is stopped keeps its outcomes
                        write_json(out, result)
    console.print(markdown(result), markup=False)


def survivors(path: Path) -> tuple[list[Outcome], list[Mutant]]:
    """Read earlier outcomes: those of the killed mutants, and the mutants that survived and that still exist.

    A mutant of the same change in the nearest line is taken, because lines may have moved.
    """
    outcomes = [Outcome(**outcome) for outcome in read_json(path, "table of mutants")["mutants"]]
    todo = []
    for outcome in outcomes:
        if outcome.outcome == "survived":
            change = outcome.before, outcome.after
            same = [mutant for mutant in mutants_of(outcome.module) if (mutant.before, mutant.after) == change]
            todo += sorted(same, key=lambda mutant: abs(mutant.line - outcome.line))[:1]
    return [outcome for outcome in outcomes if outcome.outcome != "survived"], todo


def described(outcome: Outcome) -> str:
    """Return a line that says what was changed, and what the tests said."""
    place = f"{outcome.module}:{outcome.line}"
    change = f"{outcome.kind}: {outcome.before}  ->  {outcome.after}"
    return f"{outcome.outcome:9} {outcome.seconds:5.1f} s  {place} {change}" + (
        f" ({outcome.reason})" if outcome.reason else ""
    )


def markdown(result: dict[str, Any]) -> str:
    """Return a table of the mutants by module."""
    rows = []
    mutants = result["mutants"]
    for module in [*dict.fromkeys(m["module"] for m in mutants), None]:
        own = [m for m in mutants if module in (None, m["module"])]
        survived = [m for m in own if m["outcome"] == "survived"]
        equivalent = sum(m["reason"] is not None for m in survived)
        rows.append(
            [
                f"`{module}`" if module else "all",
                str(len(own)),
                str(len(own) - len(survived)),
                str(equivalent),
                str(len(survived) - equivalent),
            ]
        )
    return md.table(["module", "mutants", "killed", "survived, equivalent", "survived"], rows)


if __name__ == "__main__":
    typer.run(main)
