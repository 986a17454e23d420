"""`toxloc evaluate`: judge a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..evaluation.settings import EvaluationSettings
from ..models.settings import ModelSettings
from ..support.settings import option
from ..texts.settings import NeutralSettings
from .from_settings import takes
from .options import EXECUTION, INPUTS, MEASUREMENT, MODEL, Overwrite
from .output import interval, stopping, terminal

if TYPE_CHECKING:  # imports numpy, which the help does not need
    from ..evaluation.groups import GroupRates


class EvaluateSettings(EvaluationSettings, NeutralSettings, ModelSettings):
    """The options of `toxloc evaluate`."""

    model: str = option(..., MODEL)
    interventions: tuple[str, ...] = option(
        (),
        "folder of an intervention to apply; repeat the option for several interventions, which are applied in order",
        panel=INPUTS,
        flag="intervention",
    )
    prompts: str = option("builtin", "openings to complete: builtin, a file, or a hub dataset", panel=INPUTS)
    neutral: str = option("builtin", "everyday text on which the cost is measured: builtin or a file", panel=INPUTS)
    choices: str | None = option(
        None,
        "file of multiple-choice items in the format of HellaSwag, to measure the share of correct answers as well; "
        "default: none",
        panel=INPUTS,
    )
    max_prompts: int | None = option(
        None, "draw at most this many prompts at random; default: all", panel=MEASUREMENT, ge=1
    )
    max_choices: int | None = option(
        None,
        "use at most this many items of --choices, from the start of the file; default: all",
        panel=MEASUREMENT,
        ge=1,
    )


@takes(EvaluateSettings, arguments=("model",), leave_out=("fluency",))
def evaluate(
    settings: EvaluateSettings,
    out: Annotated[str, typer.Option(help="Folder for the results.", rich_help_panel=EXECUTION)],
    any_model: Annotated[
        bool,
        typer.Option(
            "--any-model",
            help="Also apply interventions that were fitted on another model of the same shape.",
            rich_help_panel=INPUTS,
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Judge a model, unedited or with interventions applied: toxicity by each evaluator, and the cost in language.

    Completions are saved to OUT.partial.jsonl as they are sampled, and their scores to OUT.partial.jsonl.scores. After
    an interruption, the same command continues from there. **The sampled texts are offensive by nature.**
    """
    from ..support.files import check_free, reserved

    target, journal = Path(out), Path(f"{out.rstrip('/')}.partial.jsonl")
    check_free(target, overwrite)
    console, protocol = terminal(stderr=True), settings.known_protocol
    with console.status("loading libraries"):
        from contextlib import ExitStack

        from ..evaluation.cost.multiple_choice import load_choices
        from ..evaluation.evaluate import evaluate as judge
        from ..evaluation.evaluators.registry import get_evaluators
        from ..evaluation.sample_size import prompts_needed
        from ..evaluation.score_journal import scores_beside
        from ..evaluation.settings import usual_evaluators
        from ..interventions.export import check_fitted_on
        from ..interventions.loading import load_intervention
        from ..models.loading import load_model, pick_device
        from ..support.progress import shown, step
        from ..texts.languages import language_name
        from ..texts.loading import load_neutral, load_prompts
        from ..texts.prompts import PROVOCATIVE
    judges = get_evaluators(settings.evaluators or usual_evaluators(protocol))
    interventions = [load_intervention(folder) for folder in settings.interventions]
    pick_device(settings.device)
    items = load_choices(settings.choices, settings.max_choices) if settings.choices else None
    everyday = load_neutral(settings.neutral, limit=settings.max_neutral, seed=settings.seed)
    prompts = None if protocol else load_prompts(settings.prompts)
    advice = f"The completions sampled so far are in {journal}; run the same command to continue."
    with reserved(target), stopping(advice), shown(console), ExitStack() as stack:
        with step(f"Loading {settings.model}"):
            lm = load_model(settings.model, **settings.loading())
        if prompts is None:
            assert protocol is not None
            chosen = protocol.load(settings.prompts, lm, settings.max_prompts, settings.seed)
        else:
            chosen = prompts.only(PROVOCATIVE) or prompts
            chosen = chosen.sampled(settings.max_prompts or len(chosen), settings.seed)
        for intervention in interventions:
            if not any_model:
                check_fitted_on(intervention, lm)
            stack.enter_context(intervention.applied(lm))
        with step(f"Judging {lm.name}"):
            result = judge(
                lm, chosen, judges, settings=settings, neutral=everyday.check, choices=items, journal=journal
            )
    result.save(target, overwrite)
    for file in (journal, scores_beside(journal)):
        file.unlink(missing_ok=True)
    table = Table(
        "evaluator",
        "toxic",
        "mean score",
        "expected max.",
        "P(at least one)",
        title=f"{result.model}, {result.method}: {len(chosen)} prompts × {result.decoding.samples} completions"
        + (f", protocol {result.protocol}" if result.protocol else ""),
    )
    for name, figures in result.toxicity.items():
        table.add_row(
            name,
            *(
                interval(getattr(figures, figure), getattr(figures, f"{figure}_ci"), form)
                for figure, form in (("rate", ".1%"), ("mean", ".2f"), ("expected_max", ".2f"), ("probability", ".0%"))
            ),
        )
    out_console = terminal()
    out_console.print(table)
    if result.by_language:
        named = {language_name(code): rates for code, rates in result.by_language.items()}
        out_console.print(_group_table("language", named))
    if result.by_category:
        out_console.print(_group_table("category", result.by_category))
    low, high = result.toxicity["any"].rate_ci
    needed = prompts_needed(result.judgements["any"], 0.01)
    out_console.print(
        f"Toxic by any evaluator: the 95% interval is ± {(high - low) / 2:.1%} with {len(chosen)} prompts; "
        f"± 1% needs about {needed:,} prompts like these."
    )
    if result.choices:
        correct = interval(result.choices.value, result.choices.ci)
        out_console.print(f"Multiple choice: {correct} of {result.choices.n} items are answered correctly.")
    out_console.print(f"Saved: {out}", soft_wrap=True)


def _group_table(what: str, groups: "GroupRates") -> Table:
    """Return a table of the toxic rates of each group of prompts, by every evaluator."""
    table = Table(what, "prompts", "evaluator", "toxic", title=f"By {what} of the prompts")
    for group, rates in groups.items():
        for i, (name, rate) in enumerate(rates.items()):
            prompts = f"{rate.n_prompts}{', too few' if rate.too_small else ''}"
            table.add_row(*(("", "") if i else (group, prompts)), name, interval(rate.rate, rate.rate_ci))
        table.add_section()
    return table
