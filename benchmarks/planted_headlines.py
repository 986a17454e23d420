"""Test the headline of a localization where the location of toxicity is known: in all planted models and two controls.

    python -m benchmarks.planted_headlines          # --out planted-headlines.json saves it

The models are those of `benchmarks.planted`. For each score that can have a headline, every MLP and every attention
is scored on four fifths of the built-in pairs, and `toxloc.confirm` removes the sites above chance on the others. A
headline that names a site without planted toxicity is wrong; one that names no site is silent.
"""

import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import markdown as md
from benchmarks.planted import PARTS
from benchmarks.plants import CONTROLS, planted_model, plants
from toxloc import KnockoutTest, confirm, load_contrast, localize
from toxloc.localization.headline import Headline
from toxloc.localization.result import HEADLINES
from toxloc.models.loaded import LoadedModel
from toxloc.models.sites import Site
from toxloc.support.files import write_json
from toxloc.texts.contrast import ContrastSet

FIT = 0.8  # share of the pairs that is scored
VERDICTS = ("planted sites only", "planted and other sites", "other sites only", "silent")


@dataclass(frozen=True)
class Verdict:
    """The headline of one score for one model.

    Attributes:
        model: name of the plant or the control.
        score: "attribution" or "counterfactual".
        true: planted sites; empty for controls.
        named: sites that the headline names.
        above_chance: site that is above chance although the headline is silent; None if there is none.
        text: the headline.
    """

    model: str
    score: str
    true: tuple[str, ...]
    named: tuple[str, ...]
    above_chance: str | None
    text: str

    @property
    def kind(self) -> str:
        """Return how the named sites compare with the planted ones, one of `VERDICTS`."""
        return kind_of(self.named, self.true)


def kind_of(named: Collection[str], true: Collection[str]) -> str:
    """Compare the named sites with the planted ones.

    Example:
        >>> kind_of(["3.mlp"], ["3.mlp", "5.attention"]), kind_of([], []), kind_of(["0.mlp"], [])
        ('planted sites only', 'silent', 'other sites only')
    """
    if not named:
        return "silent"
    if set(named) <= set(true):
        return "planted sites only"
    return "planted and other sites" if set(named) & set(true) else "other sites only"


def verdicts(
    lm: LoadedModel, name: str, pairs: ContrastSet, true: Collection[Site], seed: int = 0
) -> Iterator[Verdict]:
    """Localize on most of the pairs, confirm on the others, and compare the headline of each score with the truth."""
    fit, held_out = pairs.split(FIT, seed)
    loc = localize(lm, fit, HEADLINES, parts=PARTS, seed=seed)
    test = KnockoutTest(lm, held_out, seed=seed)
    for score in HEADLINES:
        yield verdict(name, score, true, confirm(test, loc, score))


def verdict(model: str, score: str, true: Collection[Site], headline: Headline) -> Verdict:
    """Keep of a headline what is compared with the truth."""
    sites = (headline.site, *headline.others) if headline.stands_out else ()
    unconfirmed = headline.site if headline.removal is not None and not headline.stands_out else None
    return Verdict(
        model,
        score,
        tuple(map(str, true)),
        tuple(str(site) for site in sites),
        None if unconfirmed is None else str(unconfirmed),
        headline.text,
    )


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Plants and controls; all by default.")] = None,
    seed: Annotated[int, typer.Option(help="Seed for all random draws.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", dir_okay=False)] = None,
) -> None:
    """Compare the headlines of every planted model with the truth."""
    began, known, pairs = time.perf_counter(), plants(), load_contrast()
    reached: list[Verdict] = []
    for name in models or [*known, *CONTROLS]:
        true = known[name].sites if name in known else ()
        reached += verdicts(planted_model(name), name, pairs, true, seed)
    result = {
        "command": f"python -m benchmarks.planted_headlines --seed {seed}",
        "seconds": round(time.perf_counter() - began),
        "n_pairs": len(pairs.toxic),
        "verdicts": [asdict(v) | {"kind": v.kind} for v in reached],
    }
    md.show(*table(result), title="Headlines, compared with what was planted")
    if out is not None:
        write_json(out, result)


def markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: one row per model."""
    return md.table(*table(result))


def counts_markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: how many plants have each verdict, by score."""
    of_plants = [v for v in result["verdicts"] if v["true"]]
    rows = [
        [f"`{score}`", *(str(sum(v["score"] == score and v["kind"] == kind for v in of_plants)) for kind in VERDICTS)]
        for score in HEADLINES
    ]
    return md.table(["headline of", *VERDICTS], rows, numbers=True)


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a table: the sites that each headline names, in one row per model."""
    by_key = {(v["model"], v["score"]): v for v in result["verdicts"]}
    rows = []
    for model in dict.fromkeys(v["model"] for v in result["verdicts"]):
        of_model = [by_key[model, score] for score in HEADLINES]
        planted = "; ".join(Site.of(name).title for name in of_model[0]["true"]) or "–"
        rows.append([model, planted, *map(_cell, of_model)])
    return ["model", "planted", *HEADLINES], rows


def _cell(entry: dict[str, Any]) -> str:
    if entry["named"]:
        return "; ".join(Site.of(name).title for name in entry["named"])
    if entry["above_chance"] is not None:
        return f"silent ({Site.of(entry['above_chance']).title} not confirmed)"
    return "silent"


if __name__ == "__main__":
    typer.run(main)
