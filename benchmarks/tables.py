"""Write the tables of the documentation into its pages, from the results of the benchmarks in `benchmarks/results`.

    python -m benchmarks.tables               # --check writes nothing and prints which pages are not up to date

In a page, the lines between `<!-- table: NAME -->` and `<!-- end of table -->` are replaced by the table. No number of
a table is typed by hand, and `tests/benchmarks/test_tables.py` fails if a page and the results differ.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import (
    causal,
    coverage,
    default_run,
    depth,
    evaluators,
    faithfulness,
    fit_cost,
    generation,
    grid,
    language_detection,
    memory_limit,
    methods,
    mutants,
    neuron_removal,
    patching_cost,
    planted,
    planted_differences,
    planted_experts,
    planted_headlines,
    refusals,
    sites,
    speed,
    trne,
)
from benchmarks.recipes import guard_rtp, rtp
from toxloc import ToxlocError
from toxloc.evaluation.evaluators.guard import FOLDERS
from toxloc.evaluation.evaluators.rtp import FOLDER as JUDGE
from toxloc.support.files import read_json, replacing

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(?<=<!-- table: )([\w-]+)( -->\n).*?(?=<!-- end of table -->)", re.S)
TINY, SMOLLM2 = "toxloc-tiny", "SmolLM2-135M"


def saved(name: str) -> dict[str, Any]:
    """Read the saved result of a benchmark."""
    return read_json(RESULTS / f"{name}.json", "result of a benchmark")


def judged() -> dict[str, Any]:
    """Merge the results of all evaluators, which were measured in two runs."""
    results: dict[str, Any] = saved("evaluators")["evaluators"] | saved("evaluators-llm")["evaluators"]
    return results


EFFECTS = {
    "trne": {"TRNE": "TRNE", "TRNE, 2 rounds": "2 rounds", "TRNE, frobenius": 'metric="frobenius"'},
    "meow2x": {"Meow2X": "whole neurons", "Meow2X, graded": "graded"},
    "aura": {"AurA": "within the budget", methods.AS_PUBLISHED: "as published, without a budget"},
    "damp": {"Det0": "Det0", "Damp": "Damp"},
    "linear-act": {"Linear-AcT": ""},
    "value-vector": {f"value vector, {source}": source for source in ("probe", "row", "svd")},
    "profs": {"ProFS": ""},
    "steering": {"steering": ""},
    "ablation": {"directional ablation": ""},
}


def effects(page: str) -> str:
    """Return the table of a method's page."""
    runs = {
        f"{SMOLLM2}-Instruct, 400 challenging RealToxicityPrompts, 5 completions each, judges of 0.2": saved(
            "methods-smollm2"
        ),
        f"{TINY}, 130 provocative openings, 12 completions each": saved("methods-tiny"),
    }
    return methods.effects_markdown(runs, EFFECTS[page])


PLANTED = {
    "activation": ("activation",),
    "attribution": ("attribution",),
    "auroc": ("auroc",),
    "combined": ("combined",),
    "editability": ("editability",),
    "gradient_norm": ("gradient_norm", "gradient_calibrated"),
}


def planted_scores(page: str) -> str:
    """Return the table of a score's page."""
    return planted.score_markdown(saved("planted"), *PLANTED[page])


TABLES: dict[str, Callable[[], str]] = {
    "headline": lambda: default_run.headline_markdown(saved("run-tiny"), saved("judges-smollm2")),
    "run": lambda: default_run.markdown(saved("run-tiny")),
    "coverage": lambda: coverage.markdown(saved("coverage")),
    "planted": lambda: planted.markdown(saved("planted")),
    "plants": lambda: planted.plants_markdown(saved("planted")),
    "neuron-removal": lambda: neuron_removal.markdown(saved("neuron-removal")),
    "refusals": lambda: refusals.markdown(saved("refusals")),
    "planted-headlines": lambda: planted_headlines.counts_markdown(saved("planted-headlines")),
    "headlines-by-plant": lambda: planted_headlines.markdown(saved("planted-headlines")),
    "planted-differences": lambda: planted_differences.markdown(saved("planted-differences")),
    "sites": lambda: sites.markdown(saved("sites")),
    "depth": lambda: depth.markdown(saved("depth")),
    "faithfulness": lambda: faithfulness.markdown(saved("faithfulness")),
    "patching-agreement": lambda: patching_cost.agreement_markdown(saved("patching-cost")),
    "patching-cost": lambda: patching_cost.cost_markdown(saved("patching-cost")),
    "planted-experts": lambda: planted_experts.markdown(saved("planted-experts")),
    "expert-plants": lambda: planted_experts.plants_markdown(saved("planted-experts")),
    "controls": lambda: planted.controls_markdown(saved("planted")),
    "causal": lambda: causal.markdown({TINY: saved("causal-tiny"), SMOLLM2: saved("causal-smollm2")}),
    "knockouts": lambda: causal.curves_markdown(saved("causal-tiny")),
    "trne": lambda: trne.markdown(saved("trne-tiny")),
    "methods-smollm2": lambda: methods.markdown(saved("methods-smollm2")),
    "methods-tiny": lambda: methods.markdown(saved("methods-tiny")),
    "methods-tiny-kl": lambda: methods.markdown(saved("methods-tiny-kl")),
    "methods-short": lambda: methods.markdown(saved("methods-smollm2"), methods.SHORT),
    **{f"effect-{page}": partial(effects, page) for page in EFFECTS},
    **{f"planted-{page}": partial(planted_scores, page) for page in PLANTED},
    "evaluators": lambda: evaluators.markdown(judged()),
    "hatecheck": lambda: evaluators.hatecheck_markdown(judged()),
    "hatecheck-rtp": lambda: evaluators.functions_markdown(judged(), "toxloc-rtp"),
    "hatecheck-guard": lambda: evaluators.functions_markdown(judged(), "toxloc-guard"),
    "guard-unseen": lambda: guard_rtp.markdown(read_json(FOLDERS[2] / "guard.json", "description of toxloc-guard")),
    "rtp-attributes": lambda: rtp.attributes_markdown(read_json(JUDGE / "model.json", "description of toxloc-rtp")),
    "rtp-tricks": lambda: rtp.tricks_markdown(read_json(JUDGE / "model.json", "description of toxloc-rtp")),
    "agreement": lambda: methods.agreement_markdown({TINY: saved("methods-tiny"), SMOLLM2: saved("judges-smollm2")}),
    "verdicts": lambda: methods.verdicts_markdown({TINY: saved("methods-tiny"), SMOLLM2: saved("judges-smollm2")}),
    "generation": lambda: generation.markdown({TINY: saved("generation-tiny"), SMOLLM2: saved("generation-smollm2")}),
    "language-detection": lambda: language_detection.markdown(saved("language-detection")),
    "mutants": lambda: mutants.markdown(saved("mutants")),
    "speed": lambda: speed.contenders_markdown({TINY: saved("speed-tiny"), SMOLLM2: saved("speed-smollm2")}),
    "growth": lambda: speed.growth_markdown({TINY: saved("speed-tiny"), SMOLLM2: saved("speed-smollm2")}),
    "fit-cost-tiny": lambda: fit_cost.markdown(saved("fit-cost-tiny")),
    "fit-cost-smollm2": lambda: fit_cost.markdown(saved("fit-cost-smollm2")),
    "memory-limit": lambda: memory_limit.markdown(saved("memory-limit")),
    "grid-rtp": lambda: grid.rates(RESULTS / "offline-grid.csv", "RealToxicityPrompts"),
    "grid-paradetox": lambda: grid.rates(RESULTS / "offline-grid.csv", "ParaDetox"),
    "grid-price": lambda: grid.prices(RESULTS / "offline-grid.csv"),
    "grid-depth": lambda: grid.depths(saved("offline-grid")),
}


def pages() -> Iterator[Path]:
    """Yield all pages that can contain a table."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))
    yield from (folder / "README.md" for folder in (JUDGE, FOLDERS[2]))  # model cards


def filled(text: str) -> str:
    """Return the text of a page with its tables filled in from the results.

    Raises:
        ToxlocError: the page names an unknown table.
    """

    def table(match: re.Match[str]) -> str:
        if match[1] not in TABLES:
            raise ToxlocError(f"There is no table {match[1]!r}; choose one of {', '.join(TABLES)}.")
        return f"{match[1]}{match[2]}\n{TABLES[match[1]]()}\n\n"

    return MARKED.sub(table, text)


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a page is not up to date.")] = False,
) -> None:
    """Write the tables into all pages."""
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
