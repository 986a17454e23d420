"""Which evaluator can be believed, and where is it blind? Judges against labels.

    python -m benchmarks.evaluators --data FOLDER           # davidson.csv, paradetox.tsv, hatecheck.csv, rtp.jsonl
    python -m benchmarks.evaluators --data FOLDER --evaluator toxloc-guard --evaluator instruct=FOLDER --max-texts 500

Of Davidson et al. 2017 (tweets: hateful or offensive against neither), ParaDetox (Logacheva et al. 2022: a toxic
sentence against its rewriting), HateCheck (Röttger et al. 2021: hateful cases against others, by function) and the
continuations of RealToxicityPrompts (Perspective's score of .5 and over against the rest). AUROC and average precision
do not depend on a threshold; the calibration error and the rates do. Whatever an evaluator was trained on, it may have
been trained on some of these rows: profanity-check was, on Davidson's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from jaxtyping import Bool, Float64
from rich.console import Console
from rich.table import Table
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks import markdown as md
from toxloc import ToxlocError
from toxloc.cli.output import interval
from toxloc.evaluation.evaluators.base import Evaluator
from toxloc.evaluation.evaluators.registry import DEFAULT, get_evaluators
from toxloc.localization.auroc import auroc_of
from toxloc.support.files import write_json
from toxloc.support.intervals import bootstrap
from toxloc.texts.tables import read_rows

BINS = 10
AT_ONCE = 100  # bootstrap draws held in memory
GROUPS = {  # of HateCheck's functions
    "plain hate": (
        "derog_neg_emote_h",
        "derog_neg_attrib_h",
        "derog_dehum_h",
        "slur_h",
        "profanity_h",
        "threat_dir_h",
        "threat_norm_h",
        "phrase_opinion_h",
    ),
    "subtle hate": ("derog_impl_h", "ref_subs_clause_h", "ref_subs_sent_h", "negate_pos_h", "phrase_question_h"),
    "misspelt hate": (
        "spell_char_swap_h",
        "spell_char_del_h",
        "spell_space_del_h",
        "spell_space_add_h",
        "spell_leet_h",
    ),
    "mentions of identities": ("ident_neutral_nh", "ident_pos_nh", "negate_neg_nh"),
    "reclaimed slurs, homonyms": ("slur_reclaimed_nh", "slur_homonym_nh"),
    "quoted or countered hate": ("counter_quote_nh", "counter_ref_nh"),
    "other profanity, other targets": ("profanity_nh", "target_obj_nh", "target_indiv_nh", "target_group_nh"),
}


@dataclass(frozen=True)
class Labelled:
    """Texts, whether they are toxic, and where known a graded truth or the function that a text tests."""

    texts: list[str]
    toxic: Bool[np.ndarray, " n"]
    graded: Float64[np.ndarray, " n"] | None = None
    functions: list[str] | None = None

    def limited(self, count: int, seed: int) -> "Labelled":
        """Draw at random."""
        kept = np.sort(np.random.default_rng(seed).permutation(len(self.texts))[:count])
        return Labelled(
            [self.texts[i] for i in kept],
            self.toxic[kept],
            None if self.graded is None else self.graded[kept],
            None if self.functions is None else [self.functions[i] for i in kept],
        )


def davidson(path: str) -> Labelled:
    """Label as toxic what annotators called hateful or offensive."""
    rows = read_rows(path)
    return Labelled([str(r["text"]) for r in rows], np.array([r["label"] != "neither" for r in rows]))


def paradetox(path: str) -> Labelled:
    """Take each toxic sentence and its first rewriting."""
    rows = [r for r in read_rows(path) if r["toxic"] and r["neutral1"]]
    return Labelled([str(r[side]) for side in ("toxic", "neutral1") for r in rows], np.repeat([True, False], len(rows)))


def hatecheck(path: str) -> Labelled:
    """Take all cases with their functions."""
    rows = read_rows(path)
    return Labelled(
        [r["test_case"] for r in rows],
        np.array([r["label_gold"] == "hateful" for r in rows]),
        functions=[r["functionality"] for r in rows],
    )


def rtp(path: str) -> Labelled:
    """Take continuations that Perspective scored."""
    parts = [r["continuation"] for r in read_rows(path)]
    parts = [p for p in parts if p.get("toxicity") is not None and str(p["text"]).strip()]
    graded = np.array([float(p["toxicity"]) for p in parts])
    return Labelled([p["text"] for p in parts], graded >= 0.5, graded)


SETS: dict[str, tuple[str, Callable[[str], Labelled]]] = {
    "Davidson": ("davidson.csv", davidson),
    "ParaDetox": ("paradetox.tsv", paradetox),
    "HateCheck": ("hatecheck.csv", hatecheck),
    "RTP continuations": ("rtp.jsonl", rtp),
}


def measure(evaluator: Evaluator, labelled: Labelled, seed: int = 0) -> dict[str, Any]:
    """Measure one evaluator on one set."""
    began = time.perf_counter()
    scores = evaluator.score(labelled.texts)[evaluator.label]
    seconds = time.perf_counter() - began
    toxic = labelled.toxic
    called = scores >= evaluator.threshold
    found: dict[str, Any] = {
        "n_toxic": int(toxic.sum()),
        "n_other": int((~toxic).sum()),
        "auroc": float(roc_auc_score(toxic, scores)),
        "auroc_ci": auroc_interval(toxic, scores, seed),
        "average_precision": float(average_precision_score(toxic, scores)),
        "calibration_error": calibration_error(toxic, scores),
        "found": float(called[toxic].mean()),
        "false_alarms": float(called[~toxic].mean()),
        "texts_per_second": len(scores) / seconds,
    }
    if labelled.graded is not None:
        found["spearman"] = float(stats.spearmanr(scores, labelled.graded).statistic)
    if labelled.functions is not None:
        functions = np.array(labelled.functions)
        for part, members in (("groups", GROUPS), ("functions", {one: (one,) for one in labelled.functions})):
            found[part] = {
                name: _one_kind(np.isin(functions, some), toxic, scores, called)
                for name, some in members.items()
                if np.isin(functions, some).any()
            }
    return found


def calibration_error(toxic: Bool[np.ndarray, " n"], scores: Float64[np.ndarray, " n"]) -> float:
    """Expected calibration error (Guo et al. 2017): mean |share toxic - mean score| over ten equal bins of the score.

    Example:
        >>> calibration_error(np.array([True, False]), np.array([0.75, 0.75]))
        0.25
    """
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    return float(
        sum((bins == b).mean() * abs(toxic[bins == b].mean() - scores[bins == b].mean()) for b in np.unique(bins))
    )


def auroc_interval(toxic: Bool[np.ndarray, " n"], scores: Float64[np.ndarray, " n"], seed: int) -> list[float]:
    """95% bootstrap interval of the AUROC; the two classes are resampled independently."""
    ones, zeros = scores[toxic], scores[~toxic]
    return list(bootstrap(lambda i, j: auroc_of(ones[i].T, zeros[j].T), (len(ones), len(zeros)), seed, at_once=AT_ONCE))


def _one_kind(
    own: Bool[np.ndarray, " n"],
    toxic: Bool[np.ndarray, " n"],
    scores: Float64[np.ndarray, " n"],
    called: Bool[np.ndarray, " n"],
) -> dict[str, float]:
    """Share of some cases of one label that is called toxic, and their AUROC against all cases of the other label."""
    against = own | (toxic != bool(toxic[own][0]))
    return {"called_toxic": float(called[own].mean()), "auroc": float(roc_auc_score(toxic[against], scores[against]))}


def main(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with some of davidson.csv, paradetox.tsv, hatecheck.csv, rtp.jsonl.",
            exists=True,
            file_okay=False,
        ),
    ],
    evaluator: Annotated[list[str] | None, typer.Option(help="As in toxloc run; repeat for several.")] = None,
    max_texts: Annotated[int, typer.Option(help="Texts of each set, at most.", min=10)] = 4000,
    seed: Annotated[int, typer.Option(help="Of the draw and the bootstrap.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Score, compare with labels, print."""
    sets = {
        name: load(str(data / file)).limited(max_texts, seed)
        for name, (file, load) in SETS.items()
        if (data / file).is_file()
    }
    if not sets:
        raise ToxlocError(f"{data} holds none of {', '.join(file for file, _ in SETS.values())}.")
    result = {}
    for judge in get_evaluators(evaluator or DEFAULT):
        result[judge.name] = {
            "threshold": judge.threshold,
            "sets": {name: measure(judge, labelled, seed) for name, labelled in sets.items()},
        }
        print(f"{judge.name}: done", flush=True)
    show(result)
    if out is not None:
        write_json(out, {"max_texts": max_texts, "seed": seed, "evaluators": result})


def markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: a row a set and evaluator."""
    head = [
        "set",
        "evaluator",
        "AUROC",
        "average precision",
        "calibration error",
        "found",
        "false alarms",
        "ρ to Perspective",
        "texts a second",
    ]
    return md.table(
        head,
        [
            [
                name,
                judge,
                interval(one["auroc"], one["auroc_ci"], ".3f"),
                f"{one['average_precision']:.3f}",
                f"{one['calibration_error']:.2f}",
                f"{one['found']:.0%}",
                f"{one['false_alarms']:.1%}",
                f"{one['spearman']:.2f}" if "spearman" in one else "",
                f"{one['texts_per_second']:,.0f}",
            ]
            for name in SETS
            for judge, known in result.items()
            if (one := known["sets"].get(name)) is not None
        ],
    )


def hatecheck_markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: share called toxic, and AUROC, of HateCheck's groups of functions."""
    found = {judge: known["sets"]["HateCheck"]["groups"] for judge, known in result.items()}
    return md.table(
        ["HateCheck", *found],
        [
            [group, *(f"{one[group]['called_toxic']:.0%} ({one[group]['auroc']:.2f})" for one in found.values())]
            for group in GROUPS
        ],
    )


def show(result: dict[str, Any]) -> None:
    """Print a table of sets, and one of HateCheck's groups of functions."""
    console = Console()
    table = Table(
        "set",
        "evaluator",
        "AUROC",
        "average precision",
        "calibration error",
        "found",
        "false alarms",
        "ρ to Perspective",
        "texts a second",
    )
    for name in SETS:
        for judge, known in result.items():
            if (one := known["sets"].get(name)) is None:
                continue
            table.add_row(
                name,
                judge,
                interval(one["auroc"], one["auroc_ci"], ".3f"),
                f"{one['average_precision']:.3f}",
                f"{one['calibration_error']:.2f}",
                f"{one['found']:.0%}",
                f"{one['false_alarms']:.1%}",
                f"{one['spearman']:.2f}" if "spearman" in one else "",
                f"{one['texts_per_second']:.0f}",
            )
    console.print(table)
    if any("HateCheck" in known["sets"] for known in result.values()):
        groups = Table("HateCheck", *(f"{judge}: called toxic (AUROC)" for judge in result))
        for group in next(iter(result.values()))["sets"]["HateCheck"]["groups"]:
            cells = [known["sets"]["HateCheck"]["groups"][group] for known in result.values()]
            groups.add_row(group, *(f"{one['called_toxic']:.0%} ({one['auroc']:.2f})" for one in cells))
        console.print(groups)


if __name__ == "__main__":
    typer.run(main)
