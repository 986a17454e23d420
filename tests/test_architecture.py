"""Compare the contract on the rooms of the package, in pyproject.toml, with the actual imports and files.

All imports count: also imports under `TYPE_CHECKING`, inside functions and in the stubs of lazy packages, and the
imports by name in the registry of methods.
"""

import ast
import importlib.util
import re
import tomllib
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from xml.etree import ElementTree

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "toxloc"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
LAYERS = next(contract for contract in CONTRACTS if contract["type"] == "layers")
RANK = {name.strip(): rank for rank, layer in enumerate(LAYERS["layers"]) for name in layer.split("|")}
LAZY = {"toxloc", "toxloc.evaluation.evaluators"}  # packages that import a name on first use
BY_NAME = {"toxloc.interventions.registry": "toxloc.interventions.methods"}  # imports every file of that folder
SECOND_ADDRESS = ("toxloc.texts.contrast", "toxloc")  # `ContrastSet.from_model` calls `toxloc.contrast_from_model`
NOT_MIRRORED = {
    "benchmarks",
    "test_architecture",
    "test_damage",
    "test_determinism",
    "test_docs",
    "test_entry",
    "test_examples",
    "test_faults",
    "test_imports",
    "test_interrupts",
    "test_language",
    "test_notebooks",
    "test_packaging",
    "test_parity",
}
TOP_FILES = 6


def modules():
    """Return the path of every module by its name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


@cache
def imports():
    """Return every pair (importer, imported) of modules of the package, except SECOND_ADDRESS."""
    graph = grimp.build_graph("toxloc", cache_dir=None)
    pairs = {
        (importer, imported)
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    }
    assert SECOND_ADDRESS in pairs, "remove the exception, which is no longer needed"
    in_stubs = {(package, imported) for package in LAZY for imported in imported_by_stub(package)}
    by_name = {(importer, method) for importer, folder in BY_NAME.items() for method in graph.find_children(folder)}
    return pairs - {SECOND_ADDRESS} | in_stubs | by_name


def imported_by_stub(package):
    """Yield the modules that the stub of a lazy package imports from."""
    stub = modules()[package].with_suffix(".pyi")
    for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [f"{package}.{node.module}"] if node.module else [f"{package}.{a.name}" for a in node.names]


def cycle(pairs):
    """Return a cycle among import pairs, written with arrows; an empty string if there is no cycle."""
    graph = defaultdict(set)
    for importer, imported in sorted(pairs):
        graph[importer].add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " -> ".join(error.args[1][::-1])
    return ""


def between_siblings():
    """Return the imports between the children of each package, by package; under `toxloc`, those between rooms."""
    siblings = defaultdict(set)
    for importer, imported in imports():
        a, b = importer.split("."), imported.split(".")
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if shared is not None:  # neither contains the other
            siblings[".".join(a[:shared])].add((a[shared], b[shared]))
    return siblings


def test_the_contract_lists_every_child_of_the_package():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert set(RANK) == files | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert LAYERS["exhaustive"]
    assert LAYERS["containers"] == ["toxloc"]


def test_the_graph_holds_every_module():
    """grimp leaves a folder without `__init__.py`, and its imports, out of the graph."""
    assert grimp.build_graph("toxloc", cache_dir=None).modules == set(modules())


def test_a_room_imports_only_from_rooms_below_it():
    upward = sorted(
        (a, b)
        for a, b in imports()
        if a.count(".")
        and b.count(".")
        and a.split(".")[1] != b.split(".")[1]
        and RANK[a.split(".")[1]] >= RANK[b.split(".")[1]]
    )
    assert not upward, "\n".join(f"{a} imports {b}" for a, b in upward)


def test_no_cycle_between_modules():
    assert not cycle(imports()), cycle(imports())


def test_no_cycle_between_rooms_or_within_a_room():
    cycles = [f"in {package}: {cycle(pairs)}" for package, pairs in between_siblings().items() if cycle(pairs)]
    assert not cycles, "\n".join(cycles)


def test_the_top_level_of_the_package_has_few_files():
    files = sorted(path.name for path in PACKAGE.iterdir() if path.is_file())
    assert len(files) <= TOP_FILES, files


def test_the_package_is_marked_as_typed_and_has_a_stub():
    """Type checkers read the annotations of an installed package only if it contains py.typed (PEP 561)."""
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "__init__.pyi").is_file()


def test_the_tests_mirror_the_package():
    """`tests/a/test_b.py` tests `toxloc/a/b`; `tests/a/test_a.py` tests the package `toxloc/a` as a whole."""
    known = set(modules())
    strays = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        *folders, name = path.relative_to(ROOT / "tests").with_suffix("").parts
        if not NOT_MIRRORED & {name, *folders[:1]}:
            name = name.removeprefix("test_")
            package = ".".join(["toxloc", *folders])
            if f"{package}.{name}" not in known and not (package in known and folders[-1:] == [name]):
                strays.append(str(path.relative_to(ROOT)))
    assert not strays, "\n".join(sorted(strays))


def test_every_room_has_tests():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == {room for room in rooms if any((ROOT / "tests" / room).rglob("test_*.py"))}


def test_only_the_listed_packages_are_lazy():
    lazy = set()
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            defined = (
                {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
                if isinstance(node, ast.Assign | ast.AnnAssign)
                else {getattr(node, "name", "")}
            )
            if "__getattr__" in defined or "lazy_loader" in ast.dump(node):
                lazy.add(name)
    assert lazy == LAZY


def test_only_the_listed_modules_import_by_name():
    importers = {
        name
        for name, path in modules().items()
        if re.search(r"\bimport_module\b|\b__import__\b", path.read_text(encoding="utf-8"))
    }
    assert importers == set(BY_NAME)


@pytest.fixture(scope="module")
def diagram():
    """Load the hook of the documentation that draws the rooms."""
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_diagram_shows_every_room_and_every_import(diagram):
    between = between_siblings()["toxloc"]
    html = diagram.on_page_content(f"<p>before</p>{diagram.MARKER}<p>after</p>")
    assert html.startswith("<p>before</p><div")
    assert html.endswith("</div><p>after</p>")
    drawings = ElementTree.fromstring(html[len("<p>before</p>") : -len("<p>after</p>")]).findall("{*}svg")
    assert len(drawings) == 2  # for phones and for wider pages
    for drawing in drawings:
        names = [text.text for text in drawing.iterfind(".//{*}g/{*}text") if text.get("class") == "name"]
        assert names == list(RANK)
        drawn = [re.match(r"(\w+) imports (\w+) ", title.text).groups() for title in drawing.iterfind(".//{*}title")]
        assert sorted(drawn) == sorted(between)


def test_the_page_on_contributing_lists_the_rooms_in_order(diagram):
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    assert page.count(diagram.MARKER) == 1
    rows = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", page, re.M)
    assert [name for row in rows for name in row if name] == list(RANK)


def test_the_files_named_on_the_page_on_contributing_exist():
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:toxloc|tests|benchmarks|docs)/[a-z_/.]+)`", page))
    assert named
    assert {path for path in named if not (ROOT / path).exists()} == set()
