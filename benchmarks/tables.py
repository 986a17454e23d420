"""Put the tables of the documentation into its pages, from what the benchmarks saved in `benchmarks/results`.

    python -m benchmarks.tables               # --check writes nothing and tells which pages are not up to date

A table stands in its page between `<!-- table: NAME -->` and `<!-- end of table -->`; what stands there is
replaced. No number in it was typed by hand, and `tests/benchmarks/test_tables.py` fails where a page and the results
differ.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import causal, coverage, evaluators, generation, grid, methods, planted, speed, trne
from toxloc import ToxlocError
from toxloc.support.files import read_json, replacing

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(?<=<!-- table: )([\w-]+)( -->\n).*?(?=<!-- end of table -->)", re.S)
TINY, SMOLLM2 = "toxloc-tiny", "SmolLM2-135M"


def saved(name: str) -> dict[str, Any]:
    """Read what a benchmark found."""
    return read_json(RESULTS / f"{name}.json", "result of a benchmark")


def judged() -> dict[str, Any]:
    """Put the evaluators of all runs together."""
    found: dict[str, Any] = saved("evaluators")["evaluators"] | saved("evaluators-llm")["evaluators"]
    return found


TABLES: dict[str, Callable[[], str]] = {
    "coverage": lambda: coverage.markdown(saved("coverage")),
    "planted": lambda: planted.markdown(saved("planted")),
    "controls": lambda: planted.controls_markdown(saved("planted")),
    "causal": lambda: causal.markdown({TINY: saved("causal-tiny"), SMOLLM2: saved("causal-smollm2")}),
    "knockouts": lambda: causal.curves_markdown(saved("causal-tiny")),
    "trne": lambda: trne.markdown(saved("trne-tiny")),
    "methods-smollm2": lambda: methods.markdown(saved("methods-smollm2")),
    "methods-tiny": lambda: methods.markdown(saved("methods-tiny")),
    "methods-tiny-kl": lambda: methods.markdown(saved("methods-tiny-kl")),
    "methods-short": lambda: methods.markdown(saved("methods-smollm2"), methods.SHORT),
    "evaluators": lambda: evaluators.markdown(judged()),
    "hatecheck": lambda: evaluators.hatecheck_markdown(judged()),
    "agreement": lambda: methods.agreement_markdown({TINY: saved("methods-tiny"), SMOLLM2: saved("methods-smollm2")}),
    "generation": lambda: generation.markdown({TINY: saved("generation-tiny"), SMOLLM2: saved("generation-smollm2")}),
    "speed": lambda: speed.contenders_markdown({TINY: saved("speed-tiny"), SMOLLM2: saved("speed-smollm2")}),
    "growth": lambda: speed.growth_markdown({TINY: saved("speed-tiny"), SMOLLM2: saved("speed-smollm2")}),
    "grid-rtp": lambda: grid.rates(RESULTS / "offline-grid.csv", "RealToxicityPrompts"),
    "grid-paradetox": lambda: grid.rates(RESULTS / "offline-grid.csv", "ParaDetox"),
    "grid-price": lambda: grid.prices(RESULTS / "offline-grid.csv"),
    "grid-depth": lambda: grid.depths(saved("offline-grid")),
}


def pages() -> Iterator[Path]:
    """Go through all pages that may hold a table."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def filled(text: str) -> str:
    """Return a page's text with its tables as the results have them.

    Raises:
        ToxlocError: there is no such table.
    """

    def written(found: re.Match[str]) -> str:
        if found[1] not in TABLES:
            raise ToxlocError(f"There is no table {found[1]!r}; there are {', '.join(TABLES)}.")
        return f"{found[1]}{found[2]}\n{TABLES[found[1]]()}\n\n"

    return MARKED.sub(written, text)


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where a page would change.")] = False,
) -> None:
    """Fill in all pages."""
    changed = {page: new for page in pages() if (new := filled(old := page.read_text(encoding="utf-8"))) != old}
    for page, text in changed.items():
        print(f"{page.relative_to(ROOT)}: {'not up to date' if check else 'written'}")
        if not check:
            with replacing(page) as partial:
                partial.write_text(text, encoding="utf-8")
    if check and changed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
