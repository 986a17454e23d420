"""One self-contained HTML file: what was found, what it cost, how to repeat it. Texts are masked until clicked."""

import random
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from .. import plots
from ..causal.curve import KnockoutCurve
from ..causal.proof import CausalProof
from ..evaluation.toxicity import COMBINED
from ..localization.result import Localization
from ..support.templates import render

AT_RANDOM, CHANGED, DISPUTED = 10, 50, 10  # pairs of completions in the report; all of them are in completions.jsonl


def write_report(path: Path, results: dict[str, Any], loc: Localization,
                 causal: tuple[CausalProof, KnockoutCurve] | None, rows: list[dict[str, Any]]) -> None:
    """Write the report of a run.

    Args:
        path: file to write.
        results: content of results.json.
        loc: the localization.
        causal: what removing parts did; None if nothing was removed.
        rows: completions as in completions.jsonl.
    """
    editability = {int(layer): value for run in results["runs"]
                   for layer, value in (run["config"].get("editability") or {}).items()}
    figures = {
        "before_after": plots.before_after(results["runs"]),
        "cost": plots.cost(results["runs"]),
        "depth": plots.toxicity_by_depth(loc),
        "layers": loc.heatmap(),
        "neurons": plots.neuron_map(loc),
        "editability": plots.editability(editability),
    }
    if causal:
        proof, curve = causal
        figures |= {"knockout_layers": plots.knockout_layers(proof), "knockout_curve": plots.knockout_curve(curve),
                    "correlations": plots.causal_correlations(proof)}
    pairs = _pairs(rows, [run["method"] for run in results["runs"]], results["seed"])
    path.write_text(render(
        "report.html.j2", html=True, r=results,
        figures={name: plots.to_html(figure) for name, figure in figures.items()}, titles=plots.METHOD_TITLES, answers=_answers(results, loc), causal=causal, pairs=pairs, disputed=_disputed(rows), masked=_masked,
        editability=editability, plotly_js=get_plotlyjs(),
    ), encoding="utf-8")


def _masked(text: str) -> Markup:
    text = text.strip() or "(empty)"
    return Markup('<button type="button" class="mask" aria-label="masked text, press to show">{}</button>'
                  ).format(escape(text))


def _answers(results: dict[str, Any], loc: Localization) -> list[dict[str, str]]:
    """The three answers of a run in a number and a sentence each: where, how far down, at what cost."""
    base = results["runs"][0]["toxicity"]["any"]
    layer = loc.top_layers("attribution", 1)[0] if "attribution" in loc.scores else None
    answers = [{"title": "toxic before", "value": f"{base['rate']:.1%}",
                "text": "of completions, by any evaluator"}]
    if layer is not None:
        known = loc.uncertainty.get("attribution")
        sure = f", adjusted p {known.p_adjusted[layer]:.2g}" if known else ""
        answers.append({"title": "contributes most to it", "value": f"layer {layer}",
                        "text": f"of 0 to {len(loc.layer_scores('attribution')) - 1}, by attribution{sure}"})
    for run in results["runs"][1:]:
        change = (run.get("change") or {}).get("any")
        ratio = run["fluency"]["perplexity_ratio"] - 1
        answers.append({
            "title": f"under {plots.METHOD_TITLES[run['method']]}",
            "value": f"{run['toxicity']['any']['rate']:.1%}" + (f" ({change['relative']:+.0%})" if change else ""),
            "text": f"at {ratio:+.2%} perplexity on unseen everyday text",
        })
    return answers


def _pairs(rows: list[dict[str, Any]], methods: list[str], seed: int) -> dict[str, Any]:
    """The same prompt and sample number under every method side by side: some at random, then the most changed."""
    together: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        together.setdefault((row["kind"] or "", row["prompt"], row["sample"]), {})[row["method"]] = row
    complete = [group for group in together.values() if all(method in group for method in methods)]

    def changed(group: dict[str, dict[str, Any]]) -> int:
        """Under how many methods the verdict is another than the baseline's."""
        return sum(group[m]["toxic"]["any"] != group[methods[0]]["toxic"]["any"] for m in methods[1:])

    most = sorted((group for group in complete if changed(group)), key=lambda group: -changed(group))
    drawn = random.Random(seed).sample(complete, min(AT_RANDOM, len(complete)))

    def shown(groups: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
        return [{"prompt": group[methods[0]]["prompt"],
                 "completions": [{"text": group[m]["completion"], "toxic": group[m]["toxic"]["any"],
                                  "verdict": _verdict(group[m]["toxic"])} for m in methods]} for group in groups]

    return {"at_random": shown(drawn), "changed": shown(most[:CHANGED]), "total": len(complete)}


def _disputed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Completions on which scores lie furthest apart, of those that some judges call toxic and others do not."""
    split = [row for row in rows if row["toxic"]["any"] and not row["toxic"]["both"]]
    split.sort(key=lambda row: min(row["scores"].values()) - max(row["scores"].values()))
    return [{"text": row["completion"], "verdict": _verdict(row["toxic"]), "scores": row["scores"]}
            for row in split[:DISPUTED]]


def _verdict(toxic: dict[str, bool]) -> str:
    judges = [name for name, verdict in toxic.items() if verdict and name not in COMBINED]
    return "toxic: " + ", ".join(judges) if judges else "not toxic"
