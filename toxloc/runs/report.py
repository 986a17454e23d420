"""The report of a run: one self-contained HTML file, in which texts are masked until they are clicked."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from .. import plots
from ..causal.curve import KnockoutCurve
from ..causal.proof import CausalProof
from ..evaluation.verdicts import RESERVED
from ..localization.result import Localization
from ..models.sites import Site
from ..plots.runs import run_title
from ..support.control_characters import visible
from ..support.significance import ALPHA
from ..support.templates import render
from ..texts.languages import language_name

AT_RANDOM, CHANGED, DISPUTED = 10, 50, 10  # upper limits of the report; completions.jsonl has all completions


def write_report(
    path: Path,
    results: Mapping[str, Any],
    loc: Localization,
    causal: tuple[CausalProof, KnockoutCurve] | None,
    rows: Sequence[Mapping[str, Any]],
    routing: Localization | None = None,
) -> None:
    """Write the report of a run.

    Args:
        path: file to write.
        results: content of results.json; "title" and "colour" are optional in the entries of `runs`.
        loc: the localization.
        causal: results of the causal test; None if no parts were removed.
        rows: completions, as in completions.jsonl.
        routing: router weights of the experts; None without experts.
    """
    runs = results["runs"]
    editability: dict[int, float] = {}  # of the layer's best site
    for run in runs:
        for name, value in (run["config"].get("editability") or {}).items():
            layer = int(name.split(".")[0])
            if name.isdigit() or Site.of(name).part != "attention":
                editability[layer] = max(value, editability.get(layer, 0.0))
    figures = {
        "before_after": plots.before_after(runs),
        "cost": plots.cost(runs),
        "depth": plots.toxicity_by_depth(loc),
        "layers": plots.layer_heatmap(loc),
        "neurons": plots.neuron_map(loc),
        "editability": plots.editability(editability),
    }
    if "counterfactual" in loc.scores:
        figures["counterfactual"] = plots.toxicity_by_depth(loc, "counterfactual")
    if "expert" in loc.parts:
        figures["experts"] = plots.expert_map(loc)
    if routing is not None:
        figures["routing"] = plots.expert_map(routing, "routing")
    if causal:
        proof, curve = causal
        figures |= {
            "knockout_layers": plots.knockout_layers(proof),
            "knockout_curve": plots.removal_curve(curve),
            "correlations": plots.causal_correlations(proof),
        }
    path.write_text(
        render(
            "report.html.j2",
            r=results,
            title=run_title,
            masked=_masked,
            answers=_answers(results),
            figures={name: plots.to_html(figure) for name, figure in figures.items()},
            causal=causal,
            pairs=_pairs(rows, [run["method"] for run in runs], results["seed"]),
            disputed=_disputed(rows),
            editability=editability,
            language=language_name,
            warnings=_warnings(runs),
            plotly_js=get_plotlyjs(),
        ),
        encoding="utf-8",
    )


def _masked(text: str) -> Markup:
    """Return a button whose text is unreadable until the button is pressed."""
    text = text.strip() or "(empty)"
    return Markup('<button type="button" class="mask" aria-label="masked text, press to show">{}</button>').format(
        escape(visible(text, keep="\n\t"))
    )


def _answers(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the summary boxes: the headline, baseline toxicity, and a box per method."""
    base, headline = results["runs"][0]["toxicity"]["any"], results["headline"]
    sites = [Site.of(name).title for name in (headline["site"], *headline["others"]) if name]
    value = "no single site"
    if headline["stands_out"]:
        value = " and ".join(sites)
    elif headline["removal"] is None and (headline["p_adjusted"] or 1.0) < ALPHA:
        value = "not confirmed"
    answers = [
        {"title": "where toxicity is", "value": value, "text": headline["text"]},
        {"title": "baseline toxicity", "value": f"{base['rate']:.1%}", "text": "of completions, by any evaluator"},
    ]
    for run in results["runs"][1:]:
        change = (run.get("change") or {}).get("any")
        ratio = run["fluency"]["perplexity_ratio"] - 1
        answers.append(
            {
                "title": f"with {run_title(run)}",
                "value": f"{run['toxicity']['any']['rate']:.1%}" + (f" ({change['relative']:+.0%})" if change else ""),
                "text": f"of completions; perplexity {ratio:+.2%} on unseen everyday text",
            }
        )
    return answers


def _warnings(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each different warning about languages once; runs of version 0.2 and earlier have none."""
    notes = [run.get("language_notes") or {"warnings": []} for run in runs]
    return list(dict.fromkeys(warning for note in notes for warning in note["warnings"]))


def _pairs(rows: Sequence[Mapping[str, Any]], methods: list[str], seed: int) -> dict[str, Any]:
    """Group completions by prompt and sample number; return groups drawn at random and those with changed verdicts."""
    groups: dict[tuple[str, str, int], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"] or "", row["prompt"], row["sample"]), {})[row["method"]] = row
    complete = [group for group in groups.values() if all(method in group for method in methods)]

    def changed(group: Mapping[str, Mapping[str, Any]]) -> int:
        """Count the methods whose verdict differs from the baseline's."""
        return sum(group[m]["toxic"]["any"] != group[methods[0]]["toxic"]["any"] for m in methods[1:])

    most_changed = sorted((group for group in complete if changed(group)), key=lambda group: -changed(group))
    drawn = random.Random(seed).sample(complete, min(AT_RANDOM, len(complete)))

    def shown(selected: list[dict[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
        return [
            {
                "prompt": group[methods[0]]["prompt"],
                "completions": [
                    {
                        "text": group[m]["completion"],
                        "toxic": group[m]["toxic"]["any"],
                        "verdict": _verdict(group[m]["toxic"]),
                    }
                    for m in methods
                ],
            }
            for group in selected
        ]

    return {"at_random": shown(drawn), "changed": shown(most_changed[:CHANGED]), "total": len(complete)}


def _disputed(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the completions on which verdicts differ, with the largest difference between scores first."""
    disputed = [row for row in rows if row["toxic"]["any"] and not row["toxic"]["all"]]
    disputed.sort(key=lambda row: min(row["scores"].values()) - max(row["scores"].values()))
    return [
        {"text": row["completion"], "verdict": _verdict(row["toxic"]), "scores": row["scores"]}
        for row in disputed[:DISPUTED]
    ]


def _verdict(toxic: Mapping[str, bool]) -> str:
    judges = [name for name, verdict in toxic.items() if verdict and name not in RESERVED]
    return "toxic: " + ", ".join(judges) if judges else "not toxic"
