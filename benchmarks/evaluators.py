"""Compare the evaluators with labelled texts: accuracy, calibration, and the kinds of text that they misjudge.

    python -m benchmarks.evaluators --data FOLDER           # davidson.csv, paradetox.tsv, hatecheck.csv, rtp.jsonl
    python -m benchmarks.evaluators --data FOLDER --evaluator toxloc-guard --evaluator instruct=FOLDER --max-texts 500

The labels are those of Davidson et al. 2017 (tweets: hateful or offensive against neither), ParaDetox (Logacheva et al.
2022: a toxic sentence against its rewriting), HateCheck (Röttger et al. 2021: hateful cases against other cases, by
function) and the continuations of RealToxicityPrompts (Perspective's score at least .5 against lower scores). AUROC,
average precision and calibration error do not depend on a threshold; recall and false-positive rate do. The table marks
the sets that an evaluator was trained on (`SEEN`); its figures there are too good.
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
AT_ONCE = 100  # bootstrap draws in memory at the same time
SEEN = {  # sets of which an evaluator has seen rows when it was trained
    "toxloc-rtp": ("RTP continuations",),
    "toxloc-guard": ("RTP continuations", "Davidson", "ParaDetox"),
    "toxloc-guard@1": ("Davidson", "ParaDetox"),
    "profanity-check": ("Davidson",),
}
GROUPS = {  # functions of HateCheck by group
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
    """Texts and their labels; if known also graded labels, or the function that each text tests."""

    texts: list[str]
    toxic: Bool[np.ndarray, " n"]
    graded: Float64[np.ndarray, " n"] | None = None
    functions: list[str] | None = None

    def limited(self, count: int, seed: int) -> "Labelled":
        """Draw at most `count` texts at random."""
        kept = np.sort(np.random.default_rng(seed).permutation(len(self.texts))[:count])
        return Labelled(
            [self.texts[i] for i in kept],
            self.toxic[kept],
            None if self.graded is None else self.graded[kept],
            None if self.functions is None else [self.functions[i] for i in kept],
        )


def davidson(path: str) -> Labelled:
    """Read Davidson; hateful and offensive tweets are toxic."""
    rows = read_rows(path)
    return Labelled([str(r["text"]) for r in rows], np.array([r["label"] != "neither" for r in rows]))


def paradetox(path: str) -> Labelled:
    """Read ParaDetox: each toxic sentence and its first rewriting."""
    rows = [r for r in read_rows(path) if r["toxic"] and r["neutral1"]]
    return Labelled([str(r[side]) for side in ("toxic", "neutral1") for r in rows], np.repeat([True, False], len(rows)))


def hatecheck(path: str) -> Labelled:
    """Read HateCheck: all cases and their functions."""
    rows = read_rows(path)
    return Labelled(
        [r["test_case"] for r in rows],
        np.array([r["label_gold"] == "hateful" for r in rows]),
        functions=[r["functionality"] for r in rows],
    )


def rtp(path: str) -> Labelled:
    """Read the continuations of RealToxicityPrompts that have a Perspective score; toxic from .5 on."""
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
    """Measure one evaluator on one set of labelled texts."""
    began = time.perf_counter()
    scores = evaluator.score(labelled.texts)[evaluator.label]
    seconds = time.perf_counter() - began
    toxic = labelled.toxic
    called = scores >= evaluator.threshold
    result: dict[str, Any] = {
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
        result["spearman"] = float(stats.spearmanr(scores, labelled.graded).statistic)
    if labelled.functions is not None:
        functions = np.array(labelled.functions)
        for part, members in (
            ("groups", GROUPS),
            ("functions", {function: (function,) for function in labelled.functions}),
        ):
            result[part] = {
                name: _for_cases(np.isin(functions, selected), toxic, scores, called)
                for name, selected in members.items()
                if np.isin(functions, selected).any()
            }
    return result


def calibration_error(toxic: Bool[np.ndarray, " n"], scores: Float64[np.ndarray, " n"]) -> float:
    """Compute the expected calibration error (Guo et al. 2017), with ten bins of equal width.

    It is the mean of |share of toxic texts - mean score| over the bins, weighted by their numbers of texts.

    Example:
        >>> calibration_error(np.array([True, False]), np.array([0.75, 0.75]))
        0.25
    """
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    return float(
        sum((bins == b).mean() * abs(toxic[bins == b].mean() - scores[bins == b].mean()) for b in np.unique(bins))
    )


def auroc_interval(toxic: Bool[np.ndarray, " n"], scores: Float64[np.ndarray, " n"], seed: int) -> list[float]:
    """Compute the 95% bootstrap interval of the AUROC; the two classes are resampled independently."""
    positive, negative = scores[toxic], scores[~toxic]
    sizes = (len(positive), len(negative))
    return list(bootstrap(lambda i, j: auroc_of(positive[i].T, negative[j].T), sizes, seed, at_once=AT_ONCE))


def _for_cases(
    cases: Bool[np.ndarray, " n"],
    toxic: Bool[np.ndarray, " n"],
    scores: Float64[np.ndarray, " n"],
    called: Bool[np.ndarray, " n"],
) -> dict[str, float]:
    """Return the share of some cases of one label that is called toxic, and their AUROC against the other label."""
    compared = cases | (toxic != bool(toxic[cases][0]))
    return {
        "called_toxic": float(called[cases].mean()),
        "auroc": float(roc_auc_score(toxic[compared], scores[compared])),
    }


def main(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with at least one of davidson.csv, paradetox.tsv, hatecheck.csv, rtp.jsonl.",
            exists=True,
            file_okay=False,
        ),
    ],
    evaluator: Annotated[
        list[str] | None, typer.Option(help="Evaluator, as in toxloc run; repeat for several.")
    ] = None,
    max_texts: Annotated[int, typer.Option(help="Maximum number of texts of each set.", min=10)] = 4000,
    seed: Annotated[int, typer.Option(help="Seed for the choice of texts and the bootstrap.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Score the texts with every evaluator, compare the scores with the labels, and print and save the results."""
    sets = {
        name: load(str(data / file)).limited(max_texts, seed)
        for name, (file, load) in SETS.items()
        if (data / file).is_file()
    }
    if not sets:
        raise ToxlocError(f"{data} contains none of {', '.join(file for file, _ in SETS.values())}.")
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


HEAD = (
    "set",
    "evaluator",
    "AUROC",
    "average precision",
    "calibration error",
    "recall",
    "false-positive rate",
    "ρ to Perspective",
    "texts per second",
    "trained on it",
)


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """Return the cells of a table of the evaluators: one row per set and evaluator, in the order of `HEAD`."""
    return [
        [
            name,
            judge,
            interval(figures["auroc"], figures["auroc_ci"], ".3f"),
            f"{figures['average_precision']:.3f}",
            f"{figures['calibration_error']:.2f}",
            f"{figures['found']:.0%}",
            f"{figures['false_alarms']:.1%}",
            f"{figures['spearman']:.2f}" if "spearman" in figures else "",
            f"{figures['texts_per_second']:,.0f}",
            "yes" if name in SEEN.get(judge, ()) else "",
        ]
        for name in SETS
        for judge, known in result.items()
        if (figures := known["sets"].get(name)) is not None
    ]


def markdown(result: dict[str, Any]) -> str:
    """Return the table of the evaluators for the documentation."""
    return md.table(HEAD, rows_of(result))


def hatecheck_markdown(result: dict[str, Any]) -> str:
    """Return a table for the documentation: share called toxic, and AUROC, of HateCheck's groups of functions."""
    groups = {judge: known["sets"]["HateCheck"]["groups"] for judge, known in result.items()}
    return md.table(
        ["HateCheck", *groups],
        [
            [
                group,
                *(
                    f"{by_group[group]['called_toxic']:.0%} ({by_group[group]['auroc']:.2f})"
                    for by_group in groups.values()
                ),
            ]
            for group in GROUPS
        ],
    )


def functions_markdown(result: dict[str, Any], judge: str) -> str:
    """Return a table for the card of an evaluator: every function of HateCheck, with the figures of its group."""
    functions = result[judge]["sets"]["HateCheck"]["functions"]
    return md.table(
        ["group", "function", "called toxic", "AUROC"],
        [
            [group, f"`{name}`", f"{functions[name]['called_toxic']:.0%}", f"{functions[name]['auroc']:.2f}"]
            for group, names in GROUPS.items()
            for name in names
        ],
    )


def show(result: dict[str, Any]) -> None:
    """Print a table of the sets, and a table of the groups of functions of HateCheck."""
    console = Console()
    table = Table(*HEAD)
    for row in rows_of(result):
        table.add_row(*row)
    console.print(table)
    if any("HateCheck" in known["sets"] for known in result.values()):
        groups = Table("HateCheck", *(f"{judge}: called toxic (AUROC)" for judge in result))
        for group in next(iter(result.values()))["sets"]["HateCheck"]["groups"]:
            cells = [known["sets"]["HateCheck"]["groups"][group] for known in result.values()]
            groups.add_row(group, *(f"{cell['called_toxic']:.0%} ({cell['auroc']:.2f})" for cell in cells))
        console.print(groups)


if __name__ == "__main__":
    typer.run(main)
