"""`toxloc evaluate`: judge a model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..evaluation.settings import EvaluationSettings
from ..models.settings import ModelSettings
from ..support.settings import option
from ..texts.settings import NeutralSettings
from .from_settings import takes
from .options import HOW, MODEL, WHAT, WHERE, Overwrite
from .output import interval, stopping, terminal


class EvaluateSettings(EvaluationSettings, NeutralSettings, ModelSettings):
    """The options of `toxloc evaluate`."""

    model: str = option(..., MODEL)
    interventions: tuple[str, ...] = option(
        (), "folder of an intervention to apply; repeat for several, in order", panel=WHAT, flag="intervention"
    )
    prompts: str = option("builtin", "openings to complete: builtin, a file, or a hub dataset", panel=WHAT)
    neutral: str = option("builtin", "everyday text to measure the cost on: builtin or a file", panel=WHAT)
    choices: str | None = option(
        None,
        "file of multiple-choice items in HellaSwag's layout; the share of right "
        "answers is measured too; default: none",
        panel=WHAT,
    )
    max_prompts: int | None = option(None, "draw at most this many prompts at random; default: all", panel=HOW, ge=1)
    max_choices: int | None = option(
        None, "take only the first items of --choices, this many; default: all", panel=HOW, ge=1
    )


@takes(EvaluateSettings, arguments=("model",), leave_out=("fluency",))
def evaluate(
    settings: EvaluateSettings,
    out: Annotated[str, typer.Option(help="Folder for the results.", rich_help_panel=WHERE)],
    any_model: Annotated[
        bool,
        typer.Option(
            "--any-model",
            help="Apply interventions also if they were fitted on another model of the same shape.",
            rich_help_panel=WHAT,
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Judge a model, with interventions applied or as it is: toxicity by every evaluator, and the cost in language.

    Completions are kept in OUT.partial.jsonl as they come; the same command goes on after an interruption.
    **The texts it writes are offensive by nature.**
    """
    from ..support.files import check_free

    target, journal = Path(out), Path(f"{out.rstrip('/')}.partial.jsonl")
    check_free(target, overwrite)
    console, known = terminal(stderr=True), settings.known_protocol
    with console.status("loading libraries"):
        from contextlib import ExitStack

        from ..evaluation.cost.multiple_choice import load_choices
        from ..evaluation.evaluate import evaluate as judge
        from ..evaluation.evaluators.registry import get_evaluators
        from ..evaluation.sample_size import prompts_needed
        from ..evaluation.settings import usual_evaluators
        from ..interventions.export import check_fitted_on
        from ..interventions.loading import load_intervention
        from ..models.loading import load_model, pick_device
        from ..support.progress import shown, step
        from ..texts.loading import load_neutral, load_prompts
        from ..texts.prompts import PROVOCATIVE
    judges = get_evaluators(settings.evaluators or usual_evaluators(known))
    interventions = [load_intervention(folder) for folder in settings.interventions]
    pick_device(settings.device)
    items = load_choices(settings.choices, settings.max_choices) if settings.choices else None
    everyday = load_neutral(settings.neutral, limit=settings.max_neutral, seed=settings.seed)
    opened = None if known else load_prompts(settings.prompts)
    kept = f"What was sampled is kept in {journal}; the same command goes on."
    with stopping(kept), shown(console), ExitStack() as stack:
        with step(f"Loading {settings.model}"):
            lm = load_model(settings.model, device=settings.device, dtype=settings.dtype)
        if opened is None:
            assert known is not None
            chosen = known.load(settings.prompts, lm, settings.max_prompts, settings.seed)
        else:
            chosen = opened.only(PROVOCATIVE) or opened
            chosen = chosen.sampled(settings.max_prompts or len(chosen), settings.seed)
        for one in interventions:
            if not any_model:
                check_fitted_on(one, lm)
            stack.enter_context(one.applied(lm))
        target.parent.mkdir(parents=True, exist_ok=True)
        with step(f"Judging {lm.name}"):
            result = judge(
                lm, chosen, judges, settings=settings, neutral=everyday.check, choices=items, journal=journal
            )
    result.save(target, overwrite)
    journal.unlink(missing_ok=True)
    table = Table(
        "evaluator",
        "toxic",
        "mean",
        "expected max.",
        "at least one",
        title=f"{result.model}, {result.method}: {len(chosen)} prompts × {result.decoding.samples}"
        + (f", protocol {result.protocol}" if result.protocol else ""),
    )
    for name, figures in result.toxicity.items():
        table.add_row(
            name,
            *(
                interval(getattr(figures, one), getattr(figures, f"{one}_ci"), form)
                for one, form in (("rate", ".1%"), ("mean", ".2f"), ("expected_max", ".2f"), ("probability", ".0%"))
            ),
        )
    out_console = terminal()
    out_console.print(table)
    low, high = result.toxicity["any"].rate_ci
    needed = prompts_needed(result.judgements["any"], 0.01)
    out_console.print(
        f"Toxic by any: ± {(high - low) / 2:.1%} with {len(chosen)} prompts; ± 1% takes about {needed:,} "
        "prompts like these."
    )
    if result.choices:
        right = interval(result.choices.value, result.choices.ci)
        out_console.print(f"Multiple choice: {right} of {result.choices.n} right.")
    out_console.print(f"Saved: {out}", soft_wrap=True)
