"""The rooms of the package: the contract in pyproject.toml against the imports and files that are really there.

Every import counts: those under `TYPE_CHECKING`, those inside functions, those of the stubs of lazy packages, and those
that the registry of methods makes by name.
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
LAZY = {"toxloc", "toxloc.evaluation.evaluators"}  # packages that import a name when it is first used
BY_NAME = {"toxloc.interventions.registry": "toxloc.interventions.methods"}  # imports every file of that folder
SECOND_ADDRESS = ("toxloc.texts.contrast", "toxloc")  # `ContrastSet.from_model` calls `toxloc.contrast_from_model`
NOT_MIRRORED = {
    "benchmarks",
    "test_architecture",
    "test_docs",
    "test_entry",
    "test_examples",
    "test_imports",
    "test_notebooks",
    "test_parity",
}
TOP_FILES = 6


def modules():
    """Path of every module, by its name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


@cache
def imports():
    """Every pair (importer, imported) of modules of the package, except SECOND_ADDRESS."""
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
    """Modules that the stub of a lazy package imports from."""
    stub = modules()[package].with_suffix(".pyi")
    for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [f"{package}.{node.module}"] if node.module else [f"{package}.{a.name}" for a in node.names]


def circle(pairs):
    """A circle among pairs, written with arrows; empty if there is none."""
    graph = defaultdict(set)
    for importer, imported in sorted(pairs):
        graph[importer].add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " -> ".join(error.args[1][::-1])
    return ""


def between_siblings():
    """Imports between children of each package, by the package: `toxloc` holds those between rooms."""
    siblings = defaultdict(set)
    for importer, imported in imports():
        a, b = importer.split("."), imported.split(".")
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if shared is not None:  # neither holds the other
            siblings[".".join(a[:shared])].add((a[shared], b[shared]))
    return siblings


def test_the_contract_lists_every_child_of_the_package():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert set(RANK) == files | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert LAYERS["exhaustive"]
    assert LAYERS["containers"] == ["toxloc"]


def test_the_graph_holds_every_module():
    """A folder without `__init__.py` would be left out of the graph, and its imports with it."""
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


def test_no_circle_between_modules():
    way_round = circle(imports())
    assert not way_round, way_round


def test_no_circle_between_rooms_or_within_a_room():
    circles = [f"in {package}: {circle(pairs)}" for package, pairs in between_siblings().items() if circle(pairs)]
    assert not circles, "\n".join(circles)


def test_the_top_of_the_package_holds_few_files():
    files = sorted(path.name for path in PACKAGE.iterdir() if path.is_file())
    assert len(files) <= TOP_FILES, files


def test_the_package_says_that_it_is_typed_and_lists_its_names_in_a_stub():
    """Type checkers read the annotations of an installed package only if it holds py.typed (PEP 561)."""
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
    """The hook of the pages that draws the rooms."""
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
        said = [re.match(r"(\w+) imports (\w+) ", title.text).groups() for title in drawing.iterfind(".//{*}title")]
        assert sorted(said) == sorted(between)


def test_the_page_on_contributing_lists_the_rooms_in_order(diagram):
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    assert page.count(diagram.MARKER) == 1
    rows = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", page, re.M)
    assert [name for row in rows for name in row if name] == list(RANK)


def test_the_page_on_contributing_names_files_that_are_there():
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:toxloc|tests|benchmarks|docs)/[a-z_/.]+)`", page))
    assert named
    assert {path for path in named if not (ROOT / path).exists()} == set()
