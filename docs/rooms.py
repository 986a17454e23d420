"""properdocs hook: draws the rooms of the package in the order of the import contract, and the imports between them.

The order is read from `[tool.importlinter]` in pyproject.toml, the descriptions from the docstrings of the rooms and
the imports from the code (grimp), so the diagram cannot differ from them. It is an SVG in the page, without a script.
"""

import ast
import textwrap
import tomllib
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grimp

ROOT = Path(__file__).parent.parent
MARKER = "<!-- rooms -->"
STYLE = """
.rooms { container-type: inline-size; margin: 1.5em 0; }
.rooms svg { display: block; width: 100%; height: auto; font-family: inherit; }
.rooms .narrow { max-width: 440px; margin: 0 auto; }
.rooms .wide { display: none; max-width: 760px; }
@container (min-width: 600px) { .rooms .wide { display: block; } .rooms .narrow { display: none; } }
.rooms text { fill: currentColor; }
.rooms .name { font-weight: 700; }
.rooms .description { fill-opacity: .8; }
.rooms .box { fill: var(--md-code-bg-color, transparent); stroke: currentColor; stroke-opacity: .2; }
.rooms g:hover > .box { stroke-opacity: .7; }
.rooms .self { fill: currentColor; fill-opacity: .55; }
.rooms .imports { fill: var(--md-typeset-a-color, currentColor); }
.rooms .allowed { fill: currentColor; fill-opacity: .4; }
"""
CAPTION = (
    "Each row is a room, and so is each column, in the same order. A large dot means that the room of the row "
    "imports the room of the column; a small dot means that it may. The square is the room itself. The "
    "contract allows no dot left of a square, so no import is circular."
)


@dataclass(frozen=True)
class Room:
    """A subpackage or a top-level module of the package.

    Attributes:
        name: name of the room in the package.
        rank: index of the room's layer in the contract; 0 is the highest layer.
        description: first sentence of the docstring.
        imports: number of imports from the modules of each imported room, by the name of that room.
    """

    name: str
    rank: int
    description: str
    imports: dict[str, int]


@dataclass(frozen=True)
class Layout:
    """Sizes in a drawing, in pixels.

    Attributes:
        name: CSS class of the drawing.
        text: width of the names and descriptions.
        cell: width of a column.
        size: font size of a description; names are a pixel larger.
        letter: mean width of a letter of a description, as a fraction of the font size.
    """

    name: str
    text: int
    cell: int
    size: int
    letter: float = 0.5


LAYOUTS = (Layout("narrow", 198, 11, 11), Layout("wide", 430, 20, 13))


def on_page_content(html: str, **_: Any) -> str:
    """Replace the marker on a page by the diagram."""
    return html.replace(MARKER, figure(rooms())) if MARKER in html else html


def rooms() -> list[Room]:
    """Return the rooms in the order of the contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    package = settings["root_package"]
    layers = next(contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    graph = grimp.build_graph(package, cache_dir=None)
    modules = {
        name.strip(): {f"{package}.{name.strip()}"} | graph.find_descendants(f"{package}.{name.strip()}")
        for layer in layers
        for name in layer.split("|")
    }
    ranks = {name.strip(): rank for rank, layer in enumerate(layers) for name in layer.split("|")}
    imported = {
        name: [target for module in members for target in graph.find_modules_directly_imported_by(module)]
        for name, members in modules.items()
    }
    return [
        Room(
            name,
            rank,
            _first_sentence(f"{package}.{name}"),
            {
                other: n
                for other, members in modules.items()
                if other != name and (n := sum(target in members for target in imported[name]))
            },
        )
        for name, rank in ranks.items()
    ]


def _first_sentence(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split()).split(". ")[0].rstrip(".").replace("`", "")


def figure(package_rooms: list[Room]) -> str:
    """Draw the rooms twice, for phones and for wider pages; the style sheet shows the drawing that fits."""
    drawings = "\n".join(drawing(package_rooms, layout) for layout in LAYOUTS)
    return f'<div class="rooms" data-search-exclude="">\n<style>{STYLE}</style>\n{drawings}\n<p>{CAPTION}</p>\n</div>'


def drawing(package_rooms: list[Room], layout: Layout) -> str:
    """Draw a box for each room, with its name and description on the left and one column per room on the right."""
    centres = [layout.text + layout.cell * (i + 0.5) for i in range(len(package_rooms))]  # of the columns
    width = layout.text + layout.cell * len(package_rooms) + 4
    top = round(max(len(room.name) for room in package_rooms) * layout.size * 0.6) + 6
    parts = [
        f'<text font-size="{layout.size}" transform="translate({x + layout.size * 0.35:g} {top - 6}) rotate(-90)">'
        f"{escape(room.name)}</text>"
        for x, room in zip(centres, package_rooms, strict=True)
    ]
    for room in package_rooms:
        row, height = _row(room, package_rooms, centres, top, width, layout)
        parts.append(row)
        top += height + 4
    label = escape("Rooms of the package, from top to bottom: " + ", ".join(room.name for room in package_rooms))
    return (
        f'<svg class="{layout.name}" viewBox="0 0 {width} {top}" role="img" aria-label="{label}" '
        f'xmlns="http://www.w3.org/2000/svg">\n' + "\n".join(parts) + "\n</svg>"
    )


def _row(
    room: Room, package_rooms: list[Room], centres: list[float], top: int, width: int, layout: Layout
) -> tuple[str, int]:
    """Draw the box of a room; return the SVG and its height."""
    line = round(layout.size * 1.35)
    lines = textwrap.wrap(room.description, int((layout.text - 16) / (layout.size * layout.letter)))
    height = line * (len(lines) + 1) + 12
    middle = top + height / 2
    parts = [
        f'<rect class="box" x=".5" y="{top}" width="{width - 1}" height="{height}" rx="4"/>',
        f'<text class="name" font-size="{layout.size + 1}" x="8" y="{top + line + 1}">{escape(room.name)}</text>',
    ]
    parts += [
        f'<text class="description" font-size="{layout.size}" x="8" y="{top + line * i + 2}">{escape(text)}</text>'
        for i, text in enumerate(lines, start=2)
    ]
    for x, other in zip(centres, package_rooms, strict=True):
        if other is room:
            side = layout.cell * 0.55
            parts.append(
                f'<rect class="self" x="{x - side / 2:g}" y="{middle - side / 2:g}" width="{side:g}" '
                f'height="{side:g}"/>'
            )
        elif other.name in room.imports:
            count = room.imports[other.name]
            title = f"{room.name} imports {other.name} ({count} import{'' if count == 1 else 's'})"
            parts.append(
                f'<circle class="imports" cx="{x:g}" cy="{middle:g}" r="{layout.cell * 0.34:g}">'
                f"<title>{title}</title></circle>"
            )
        elif other.rank > room.rank:
            parts.append(f'<circle class="allowed" cx="{x:g}" cy="{middle:g}" r="{max(layout.cell * 0.09, 1.2):g}"/>')
    return f"<g>{''.join(parts)}</g>", height
