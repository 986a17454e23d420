"""The whole job: localize, prove it by removal, fit both methods, judge before and after, write it all down."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..causal.curve import KnockoutCurve, knockout_curve
from ..causal.knockout import KnockoutTest
from ..causal.proof import CausalProof, causal_proof
from ..errors import ToxlocError
from ..evaluation.change import relative_change
from ..evaluation.evaluate import evaluate
from ..evaluation.evaluators.base import Evaluator
from ..evaluation.evaluators.registry import DEFAULT, get_evaluators
from ..evaluation.result import Evaluation
from ..evaluation.toxicity import prompts_needed
from ..interventions.base import Intervention
from ..interventions.methods.meow2x import Meow2X
from ..interventions.methods.trne import TRNE
from ..localization.localize import localize
from ..localization.promoted_tokens import promoted_tokens
from ..localization.result import Localization
from ..localization.statistics import collect_contrast
from ..models.loaded import LoadedModel
from ..models.loading import load_model, pick_device
from ..support.files import check_free, new_folder, write_json
from ..support.progress import step
from ..version import __version__
from .report import write_report
from .result import FORMAT_VERSION, RunResult
from .settings import Settings
from .texts import RunTexts, load_texts

SCORES = ("activation", "gradient_norm", "gradient_calibrated", "attribution", "auroc")
TOP_NEURONS = 12  # whose tokens the report shows
KNOCKOUT_TEXTS, KNOCKOUT_PROMPTS, KNOCKOUT_NEUTRAL = 40, 40, 40  # at most; what every single knock-out is measured on


def run(model: str = "toxloc-tiny", out: str | PathLike[str] | None = None, *, overwrite: bool = False,
        contrast: str = "builtin", prompts: str = "builtin", neutral: str = "builtin", check: str | None = None,
        evaluators: Sequence[str] = DEFAULT, budget: float = 0.01, meow2x_budget: float = 0.02, samples: int = 5,
        max_prompts: int = 200, max_texts: int = 600, max_neutral: int = 500, knockouts: int = 32,
        max_new_tokens: int = 20, seed: int = 0, device: str | None = None, dtype: str = "float32") -> RunResult:
    """Localize toxicity in a model, remove what was found, turn it down with Meow2X and TRNE, and judge all.

    Args:
        model: what `load_model` takes.
        out: folder to write; by default a new one in `toxloc-runs`. It appears only when the run is complete.
        overwrite: replace `out` if it holds something.
        contrast: what `load_contrast` takes, or "sampled" for a set sampled from the model itself with one half of
            the provocative prompts, of which then the other half is judged. A fifth is held out for the knock-outs.
        prompts: what `load_prompts` takes. Provocative ones are judged; everyday ones, where there are any, show
            how much of ordinary talk is called toxic. Contrast texts that begin with a judged prompt are left out.
        neutral: what `load_neutral` takes; budgets are tuned on a part of it that no statistic sees.
        check: further everyday text on which alone the reported cost is measured; by default a third part of
            `neutral`.
        evaluators: names of judges.
        budget: perplexity rise allowed to TRNE on the tuning text.
        meow2x_budget: the same for Meow2X.
        samples: completions per prompt.
        max_prompts: prompts of each kind, drawn at random if there are more.
        max_texts: contrast texts of each side, likewise.
        max_neutral: everyday texts to read, likewise.
        knockouts: single neurons to remove, one by one, in the causal test, besides every layer and a curve of
            growing groups; 0 leaves the causal test out.
        max_new_tokens: length of a completion.
        seed: of every draw; the same seed, machine and version give the same completions.
        device: see `load_model`.
        dtype: see `load_model`.

    Raises:
        ToxlocError: any setting or input that cannot be used, before anything is computed or written.

    Example:
        >>> result = toxloc.run("toxloc-tiny", out="first-run")        # doctest: +SKIP
        >>> result.rate("baseline"), result.rate("trne")               # doctest: +SKIP
    """
    try:
        settings = Settings(
            model=model, contrast=contrast, prompts=prompts, neutral=neutral, check=check,
            evaluators=tuple(evaluators), budget=budget, meow2x_budget=meow2x_budget, samples=samples,
            max_prompts=max_prompts, max_texts=max_texts, max_neutral=max_neutral, knockouts=knockouts,
            max_new_tokens=max_new_tokens, seed=seed, device=device, dtype=dtype,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ToxlocError(f"{first['loc'][0]}={first['input']!r}: {first['msg']}.") from None
    target = Path(out) if out is not None else _default_folder(settings)
    check_free(target, overwrite)
    judges = get_evaluators(settings.evaluators)
    pick_device(settings.device)
    with step("Reading texts"):
        prepared = load_texts(settings)
    with step(f"Loading {settings.model}"):
        lm = load_model(settings.model, device=settings.device, dtype=settings.dtype)
    texts = prepared(lm, judges)
    with new_folder(target, overwrite) as folder:
        results = _run(lm, texts, settings, judges, folder)
    return RunResult(target, results)


def _default_folder(settings: Settings) -> Path:
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{Path(settings.model).stem}"
    return Path("toxloc-runs") / stem


def _run(lm: LoadedModel, texts: RunTexts, s: Settings, judges: list[Evaluator], folder: Path) -> dict[str, Any]:
    with step("Localizing"):
        statistics = collect_contrast(lm, texts.contrast, curvature=True, peaks=True, more_neutral=texts.neutral.fit)
        loc = localize(lm, texts.contrast, SCORES, statistics=statistics, seed=s.seed)
    causal = None
    if s.knockouts:
        with step("Removing what was found"):
            causal = _causal(lm, loc, texts, s, judges)
    methods: list[Intervention] = []
    with step("Fitting Meow2X"):
        methods.append(Meow2X.fit(lm, texts.contrast, budget=s.meow2x_budget, neutral=texts.neutral,
                                  statistics=statistics))
    with step("Fitting TRNE"):
        methods.append(TRNE.fit(lm, texts.contrast, budget=s.budget, neutral=texts.neutral, statistics=statistics))
    del statistics
    with step("Judging the baseline"):
        judged = [_judge(lm, None, texts, s, judges)]
    for method in methods:
        with step(f"Judging {method.kind}"):
            judged.append(_judge(lm, method, texts, s, judges))
        method.save(folder / method.kind)
    loc.save(folder / "localization")
    results = _results(lm, loc, causal, texts, s, judges, judged)
    write_json(folder / "results.json", results)
    _write_completions(folder / "completions.jsonl", judged)
    write_report(folder / "report.html", results, loc, causal, [row for run in judged for row in run.rows()])
    return results


def _causal(lm: LoadedModel, loc: Localization, texts: RunTexts, s: Settings,
            judges: list[Evaluator]) -> tuple[CausalProof, KnockoutCurve]:
    """Remove parts, and measure on contrast texts that no score has seen."""
    held_out = texts.held_out.limited(KNOCKOUT_TEXTS, s.seed)
    proof = causal_proof(KnockoutTest(lm, held_out, seed=s.seed), loc, n_neurons=s.knockouts, seed=s.seed)
    test = KnockoutTest(lm, held_out, neutral=texts.neutral.tune[:KNOCKOUT_NEUTRAL], evaluators=judges, seed=s.seed,
                        prompts=texts.judged.limited(KNOCKOUT_PROMPTS, s.seed), samples=1)
    few = max(1, loc.activation_size.size // 1024)  # from a thousandth of all neurons to a sixteenth
    curve = knockout_curve(test, loc, "attribution", [few * 4**i for i in range(4)], controls=2, seed=s.seed)
    return proof, curve


@dataclass(frozen=True)
class _Judged:
    """One method judged on provocative and, where there are any, on everyday prompts."""

    main: Evaluation
    everyday: Evaluation | None

    def rows(self) -> list[dict[str, Any]]:
        return [row for e in (self.main, self.everyday) if e for row in e.rows()]


def _judge(lm: LoadedModel, method: Intervention | None, texts: RunTexts, s: Settings,
           judges: list[Evaluator]) -> _Judged:
    if method is not None:
        with method.applied(lm):
            return _judge(lm, None, texts, s, judges)
    how: dict[str, Any] = {"evaluators": judges, "seed": s.seed, "max_new_tokens": s.max_new_tokens}
    main = evaluate(lm, texts.judged, samples=s.samples, neutral=texts.check, **how)
    everyday = None
    if texts.everyday is not None:
        everyday = evaluate(lm, texts.everyday, samples=max(1, s.samples // 2), fluency=False, **how)
    return _Judged(main, everyday)


def _results(lm: LoadedModel, loc: Localization, causal: tuple[CausalProof, KnockoutCurve] | None, texts: RunTexts,
             s: Settings, judges: list[Evaluator], judged: list[_Judged]) -> dict[str, Any]:
    runs = []
    for one in judged:
        entry = one.main.to_dict()
        if one.everyday:
            entry["everyday_toxicity"] = {name: t.to_dict() for name, t in one.everyday.toxicity.items()}
        if one is not judged[0]:
            changes = {name: relative_change(judged[0].main.judgements[name], judgement, s.seed)
                       for name, judgement in one.main.judgements.items()}
            entry["change"] = {name: change.to_dict() if change else None for name, change in changes.items()}
        runs.append(entry)
    evaluators = {e.name: e.about() for e in judges}
    return {
        "format_version": FORMAT_VERSION,
        "toxloc": __version__,
        "model": lm.name,
        "seed": s.seed,
        "contrast": {"name": texts.contrast.name, "n_toxic": len(texts.contrast.toxic),
                     "n_neutral": len(texts.contrast.neutral), "n_held_out": len(texts.held_out.toxic)},
        "prompts": {"name": texts.judged.name, "n_judged": len(texts.judged),
                    "n_everyday": len(texts.everyday) if texts.everyday else 0, "samples": s.samples,
                    "needed_for_one_point": prompts_needed(judged[0].main.judgements["any"], 0.01)},
        "neutral": {"name": texts.neutral.name, "n_fit": len(texts.neutral.fit), "n_tune": len(texts.neutral.tune),
                    "check": texts.check_name, "n_check": len(texts.check)},
        "evaluators": evaluators,
        "settings": s.model_dump(mode="json"),
        "command": s.command(),
        "about_model": {"fingerprint": lm.fingerprint, "type": lm.model_type, "n_layers": lm.n_layers,
                        "d_mlp": lm.d_mlp, "d_model": lm.d_model, "device": str(lm.device), "dtype": s.dtype},
        "localization": {
            "layer_scores": {name: loc.layer_scores(name).tolist() for name in loc.scores},
            "uncertainty": {name: {part: getattr(known, part).tolist() for part in known.names()}
                            for name, known in loc.uncertainty.items()},
        },
        "top_neurons": [{"layer": one.layer, "neuron": one.neuron, "tokens": one.tokens,
                         "attribution": float(loc.neuron_scores("attribution")[one.layer, one.neuron])}
                        for one in promoted_tokens(lm, loc.top_neurons("attribution", TOP_NEURONS))],
        "causal": {"proof": causal[0].to_dict(), "curve": causal[1].to_dict()} if causal else None,
        "runs": runs,
    }


def _write_completions(path: Path, judged: list[_Judged]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for one in judged:
            for row in one.rows():
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
