"""The steps of a run: localize, test by removing parts, fit methods, judge before and after, write the results."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..causal.curve import KnockoutCurve, knockout_curve
from ..causal.knockout import KnockoutTest
from ..causal.proof import CausalProof, causal_proof
from ..errors import ToxlocError
from ..evaluation.change import relative_change
from ..evaluation.evaluate import evaluate
from ..evaluation.evaluators.base import Evaluator, EvaluatorError
from ..evaluation.evaluators.registry import get_evaluators
from ..evaluation.outcomes import outcome_changes
from ..evaluation.result import Evaluation
from ..evaluation.sample_size import prompts_needed
from ..interventions.base import Intervention
from ..interventions.evidence import Evidence
from ..interventions.registry import method_named, method_settings
from ..localization.first_difference import first_differences
from ..localization.localize import localize
from ..localization.promoted_tokens import promoted_tokens
from ..localization.result import Localization, PartScores
from ..localization.score_names import ScoreName
from ..localization.score_table import needs_of
from ..models.loaded import LoadedModel
from ..models.loading import load_model, pick_device
from ..support.files import write_json
from ..support.progress import step
from ..texts.contrast import ContrastSet
from ..version import __version__
from .report import write_report
from .result import FORMAT_VERSION
from .settings import RunSettings
from .texts import RunTexts, read_texts

SCORES: tuple[ScoreName, ...] = ("activation", "gradient_norm", "gradient_calibrated", "attribution", "auroc")
COMPARED = 20  # pairs with a first difference; the score counterfactual of fewer pairs would say little
PLAIN = ("toxicity", "outcomes", "outcomes_ci", "fluency")  # what results.json has of plain text besides
TOP_NEURONS = 12  # the report shows the tokens that these neurons promote
KNOCKOUT_TEXTS, KNOCKOUT_PROMPTS, KNOCKOUT_NEUTRAL = (
    40,
    40,
    40,
)  # upper limits, because every knock-out is measured on these


@dataclass(frozen=True)
class Prepared:
    """The inputs of a run, loaded before anything is computed."""

    lm: LoadedModel
    texts: RunTexts
    judges: list[Evaluator]


def prepare(s: RunSettings) -> Prepared:
    """Load the evaluators, the texts and the model.

    Raises:
        ToxlocError: an evaluator, a text, the device or the model cannot be used.
    """
    judges = get_evaluators(s.evaluators)
    pick_device(s.device)
    with step("Reading texts"):
        read = read_texts(s)
    with step(f"Loading {s.model}"):
        lm = load_model(s.model, **s.loading())
    return Prepared(lm, read.complete(lm, judges), judges)


def run_all(prepared: Prepared, s: RunSettings, folder: Path) -> dict[str, Any]:
    """Compute a run, write its files to a folder, and return the content of results.json."""
    lm, texts, judges = prepared.lm, prepared.texts, prepared.judges
    evidence = Evidence(lm, texts.contrast, texts.neutral)
    chosen = {name: method_settings(name, budget=s.budget_of(name), seed=s.seed) for name in s.methods}
    scores, missing = _scores_for(lm, texts.contrast)
    needs = needs_of(scores).union(*(method_named(name).needs(settings) for name, settings in chosen.items()))
    with step("Localizing"):
        gathered = evidence.expect(*needs).groups(needs_of(scores), lm.sites())
        loc = localize(lm, texts.contrast, scores, parts=lm.parts, statistics=gathered, seed=s.seed)
        routing = None
        if "expert" in loc.parts:
            experts = (statistics.restricted("expert") for statistics in evidence.groups(needs_of(("routing",))))
            routing = localize(lm, texts.contrast, ("routing",), parts=("expert",), statistics=experts, seed=s.seed)
            routing.save(folder / "routing")
        loc.save(folder / "localization")
    causal = None
    if s.knockouts:
        with step("Removing parts"):
            causal = _causal(lm, loc, texts, s, judges)
    methods: list[Intervention] = []
    for name, settings in chosen.items():
        with step(f"Fitting {method_named(name).title}"):
            methods.append(method_named(name).fit(lm, texts.contrast, settings, evidence=evidence))
            methods[-1].save(folder / methods[-1].kind)
    del evidence
    judged: list[_Judged] = []
    finished: list[Evaluation] = []
    for method in (None, *methods):
        with step(f"Judging {method.title if method else 'the baseline'}"):
            try:
                judged.append(_judge(lm, method, texts, s, judges, finished))
            except EvaluatorError as error:
                rows = [row for evaluation in finished for row in evaluation.rows()]
                rows += [{"method": method.kind if method else "baseline"} | row for row in error.rows()]
                _write_rows(folder / "completions.jsonl", rows)
                raise
    results = _results(lm, loc, missing, causal, texts, s, judges, judged)
    write_json(folder / "results.json", results)
    rows = [row for evaluated in judged for row in evaluated.rows()]
    _write_rows(folder / "completions.jsonl", rows)
    write_report(folder / "report.html", results, loc, causal, rows, routing)
    return results


def _scores_for(lm: LoadedModel, pairs: ContrastSet) -> tuple[tuple[ScoreName, ...], str]:
    """Return the scores that the contrast set allows, and the reason why counterfactual attribution is not among them.

    The reason is empty if it is among them.
    """
    if not pairs.paired:
        return SCORES, "the texts of the contrast set are not paired"
    try:
        compared = len(first_differences(lm, pairs).usable)
    except ToxlocError:
        compared = 0  # or 1, which is too few as well
    if compared < COMPARED:
        return (
            SCORES,
            f"fewer than {COMPARED} of the {len(pairs.toxic)} pairs begin with the same words and then differ",
        )
    return (*SCORES, "counterfactual"), ""


def _causal(
    lm: LoadedModel, loc: Localization, texts: RunTexts, s: RunSettings, judges: list[Evaluator]
) -> tuple[CausalProof, KnockoutCurve]:
    """Measure knock-outs on held-out contrast texts, which no score has seen."""
    held_out = texts.held_out.limited(KNOCKOUT_TEXTS, s.seed)
    proof = causal_proof(KnockoutTest(lm, held_out, seed=s.seed), loc, n_neurons=s.knockouts, seed=s.seed)
    test = KnockoutTest(
        lm,
        held_out,
        neutral=texts.neutral.tune[:KNOCKOUT_NEUTRAL],
        evaluators=judges,
        seed=s.seed,
        prompts=texts.judged.limited(KNOCKOUT_PROMPTS, s.seed),
        samples=1,
    )
    n_units = sum(len(sizes) for site, sizes in loc.unit_sizes().items() if site.part == loc.parts[0])
    smallest = max(1, n_units // 1024)  # the counts go from 1/1024 to 1/16 of all neurons
    counts = [smallest * 4**i for i in range(4) if smallest * 4**i <= max(1, n_units // 16)]
    curve = knockout_curve(test, loc, "attribution", counts, controls=2, seed=s.seed)
    return proof, curve


@dataclass(frozen=True)
class _Judged:
    """The baseline or a method, judged on the main prompts and, if there are any, on everyday and plain prompts."""

    title: str
    colour: str | None
    main: Evaluation
    everyday: Evaluation | None
    plain: Evaluation | None = None

    def rows(self) -> list[dict[str, Any]]:
        return [row for evaluation in (self.main, self.everyday, self.plain) if evaluation for row in evaluation.rows()]


def _judge(
    lm: LoadedModel,
    method: Intervention | None,
    texts: RunTexts,
    s: RunSettings,
    judges: list[Evaluator],
    finished: list[Evaluation],
) -> _Judged:
    """Judge the baseline or a method; append every complete evaluation to `finished`."""
    options: dict[str, Any] = {"evaluators": judges, "seed": s.seed, "max_new_tokens": s.max_new_tokens}
    in_chat = {"chat": False} if texts.chat is None else {"chat": True, "system": s.system, "thinking": s.thinking}

    def judged(title: str, colour: str | None) -> _Judged:
        main = evaluate(lm, texts.judged, samples=s.samples, neutral=texts.check, **options, **in_chat)
        finished.append(main)
        everyday = plain = None
        if texts.everyday is not None:
            fewer = max(1, s.samples // 2)
            everyday = evaluate(lm, texts.everyday, samples=fewer, fluency=False, **options, **in_chat)
            finished.append(everyday)
        if texts.judged_plain is not None:
            plain = evaluate(
                lm, texts.judged_plain, samples=s.samples, neutral=texts.check_plain, **options, chat=False
            )
            finished.append(plain)
        return _Judged(title, colour, main, everyday, plain)

    if method is None:
        return judged("baseline", None)
    with method.applied(lm):
        return judged(method.title, method.colour)


def _results(
    lm: LoadedModel,
    loc: Localization,
    missing: str,
    causal: tuple[CausalProof, KnockoutCurve] | None,
    texts: RunTexts,
    s: RunSettings,
    judges: list[Evaluator],
    judged: list[_Judged],
) -> dict[str, Any]:
    runs = []
    for evaluated in judged:
        entry = evaluated.main.to_dict() | {"title": evaluated.title, "colour": evaluated.colour}
        if evaluated.everyday:
            entry["everyday_toxicity"] = {name: t.to_dict() for name, t in evaluated.everyday.toxicity.items()}
        if evaluated.plain:
            plain = evaluated.plain.to_dict()
            entry["plain"] = {name: plain[name] for name in PLAIN}
        if evaluated is not judged[0]:
            changes = {
                name: relative_change(judged[0].main.judgements[name], judgement, s.seed)
                for name, judgement in evaluated.main.judgements.items()
            }
            entry["change"] = {name: change.to_dict() if change else None for name, change in changes.items()}
            points = outcome_changes(judged[0].main.outcomes, evaluated.main.outcomes, s.seed)
            entry["outcome_change"] = {name: asdict(p) | {"ci": list(p.ci)} for name, p in points.items()}
        runs.append(entry)
    evaluators = {e.name: e.about() for e in judges}
    return {
        "format_version": FORMAT_VERSION,
        "toxloc": __version__,
        "model": lm.name,
        "seed": s.seed,
        "contrast": {
            "name": texts.contrast.name,
            "n_toxic": len(texts.contrast.toxic),
            "n_neutral": len(texts.contrast.neutral),
            "n_held_out": len(texts.held_out.toxic),
            "n_knockout": min(KNOCKOUT_TEXTS, len(texts.held_out.toxic)),
        },
        "prompts": {
            "name": texts.judged.name,
            "n_judged": len(texts.judged),
            "n_everyday": len(texts.everyday) if texts.everyday else 0,
            "samples": s.samples,
            "chat": asdict(texts.chat) if texts.chat else None,
            "needed_for_one_point": prompts_needed(judged[0].main.judgements["any"], 0.01),
        },
        "neutral": {
            "name": texts.neutral.name,
            "n_fit": len(texts.neutral.fit),
            "n_tune": len(texts.neutral.tune),
            "check": texts.check_name,
            "n_check": len(texts.check),
        },
        "evaluators": evaluators,
        "settings": s.model_dump(mode="json"),
        "command": s.command(),
        "about_model": {
            "fingerprint": lm.fingerprint,
            "type": lm.model_type,
            "n_layers": lm.n_layers,
            "d_mlp": lm.d_mlp,
            "d_model": lm.d_model,
            "device": str(lm.device),
            "dtype": s.dtype,
        },
        "headline": loc.headline(removal=causal[0].layers if causal else ()).to_dict(),
        "localization": {
            **_figures(loc.by_part[loc.parts[0]]),
            "parts": {
                part: {"sites": [str(site) for site in scores.sites], **_figures(scores)}
                for part, scores in loc.by_part.items()
            },
            "without_counterfactual": missing or None,
        },
        "top_neurons": [
            {
                "layer": promoted.layer,
                **({} if promoted.site.part == "mlp" else {"site": str(promoted.site)}),
                "neuron": promoted.neuron,
                "tokens": promoted.tokens,
                "attribution": float(
                    loc.neuron_scores("attribution")[loc.sites(loc.parts[0]).index(promoted.site), promoted.neuron]
                ),
            }
            for promoted in promoted_tokens(lm, loc.top_units("attribution", TOP_NEURONS))
        ],
        "causal": {"proof": causal[0].to_dict(), "curve": causal[1].to_dict()} if causal else None,
        "runs": runs,
    }


def _figures(scores: PartScores) -> dict[str, Any]:
    """Return the scores of the sites of a part, with their uncertainty."""
    return {
        "layer_scores": {name: values.tolist() for name, values in scores.layers.items()},
        "uncertainty": {
            name: {field: getattr(uncertainty, field).tolist() for field in uncertainty.names()}
            for name, uncertainty in scores.uncertainty.items()
        },
    }


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
