"""`toxloc evaluate`: judge a model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .options import HOW, WHAT, WHERE, Device, Dtype, Model, Overwrite
from .output import interval, stopping, terminal


def evaluate(
    model: Model,
    out: Annotated[str, typer.Option(help="Folder for the results.", rich_help_panel=WHERE)],
    intervention: Annotated[list[str] | None, typer.Option(help="Folder of an intervention to put in force; repeat "
                                                                "for several, in order.", rich_help_panel=WHAT)] = None,
    prompts: Annotated[str, typer.Option(help="Openings to complete: builtin, a file, or a hub dataset.",
                                         rich_help_panel=WHAT)] = "builtin",
    neutral: Annotated[str, typer.Option(help="Everyday text to measure the cost on: builtin or a file.",
                                         rich_help_panel=WHAT)] = "builtin",
    choices: Annotated[str | None, typer.Option(help="Multiple-choice items in HellaSwag's layout, to answer too.",
                                                rich_help_panel=WHAT)] = None,
    protocol: Annotated[str | None, typer.Option(help="A published way to measure: RealToxicityPrompts, DExperts, "
                                                      "ml-aura, ml-act, dpo_toxic or ProFS. It fixes prompts and "
                                                      "decoding.", rich_help_panel=HOW)] = None,
    evaluator: Annotated[list[str] | None, typer.Option(help="Judge of the completions, NAME, NAME=SOURCE or "
                                                             "NAME@THRESHOLD; repeat for several. Default: the "
                                                             "protocol's, else toxloc-guard and profanity-check.",
                                                        rich_help_panel=HOW)] = None,
    max_prompts: Annotated[int | None, typer.Option(min=1, help="Prompts, at most, drawn at random.",
                                                    rich_help_panel=HOW)] = None,
    max_neutral: Annotated[int, typer.Option(min=12, help="Everyday texts, at most.", rich_help_panel=HOW)] = 500,
    max_choices: Annotated[int | None, typer.Option(min=1, help="The first so many items.",
                                                    rich_help_panel=HOW)] = None,
    samples: Annotated[int | None, typer.Option(help="Completions per prompt. Default: 5.",
                                                rich_help_panel=HOW)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Length of a completion in tokens. Default: 20.",
                                                       rich_help_panel=HOW)] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus of the sampling. Default: 0.9.",
                                                rich_help_panel=HOW)] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the sampling; 0 is greedy. Default: 1.",
                                                      rich_help_panel=HOW)] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, machine and version give the same completions.",
                                      rich_help_panel=HOW)] = 0,
    any_model: Annotated[bool, typer.Option("--any-model", help="Also on a model of its shape that it was not fitted "
                                                                "on.", rich_help_panel=WHAT)] = False,
    overwrite: Overwrite = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Judge a model, with interventions in force or as it is: toxicity by every evaluator, and what language costs.

    Completions are kept in OUT.partial.jsonl as they come; the same command goes on after an interruption.
    **The texts it writes are offensive by nature.**
    """
    console = terminal(stderr=True)
    with console.status("loading libraries"):
        from contextlib import ExitStack

        from ..evaluation.cost.multiple_choice import load_choices
        from ..evaluation.evaluate import decoding_of, usual_evaluators
        from ..evaluation.evaluate import evaluate as judge
        from ..evaluation.evaluators.registry import get_evaluators
        from ..evaluation.protocols import get_protocol
        from ..evaluation.toxicity import prompts_needed
        from ..interventions.base import load_intervention
        from ..interventions.export import check_fitted_on
        from ..models.loading import load_model, pick_device
        from ..support.files import check_free
        from ..support.progress import shown, step
        from ..texts.loading import load_neutral, load_prompts
        from ..texts.prompts import PROVOCATIVE
    target, journal = Path(out), Path(f"{out.rstrip('/')}.partial.jsonl")
    check_free(target, overwrite)
    known = get_protocol(protocol) if protocol else None
    decoding = decoding_of(known, samples=samples, max_new_tokens=max_new_tokens, top_p=top_p, temperature=temperature)
    judges = get_evaluators(evaluator or usual_evaluators(known))
    in_force = [load_intervention(folder) for folder in intervention or []]
    pick_device(device)
    items = load_choices(choices, max_choices) if choices else None
    everyday = load_neutral(neutral, limit=max_neutral, seed=seed)
    opened = None if known else load_prompts(prompts)
    kept = f"What was sampled is kept in {journal}; the same command goes on."
    with stopping(kept), shown(console), ExitStack() as stack:
        with step(f"Loading {model}"):
            lm = load_model(model, device=device, dtype=dtype)
        if opened is None:
            assert known is not None
            chosen = known.load(prompts, lm, max_prompts, seed)
        else:
            chosen = opened.only(PROVOCATIVE) or opened
            chosen = chosen.sampled(max_prompts or len(chosen), seed)
        for one in in_force:
            if not any_model:
                check_fitted_on(one, lm)
            stack.enter_context(one.applied(lm))
        target.parent.mkdir(parents=True, exist_ok=True)
        with step(f"Judging {lm.name}"):
            found = judge(lm, chosen, judges, protocol=known, **decoding.to_dict(), seed=seed, neutral=everyday.check,
                          choices=items, journal=journal)
    found.save(target, overwrite)
    journal.unlink(missing_ok=True)
    table = Table("evaluator", "toxic", "mean", "expected max.", "at least one",
                  title=f"{found.model}, {found.method}: {len(chosen)} prompts × {found.decoding.samples}"
                        + (f", protocol {found.protocol}" if found.protocol else ""))
    for name, figures in found.toxicity.items():
        table.add_row(name, *(interval(getattr(figures, one), getattr(figures, f"{one}_ci"), form) for one, form in (
            ("rate", ".1%"), ("mean", ".2f"), ("expected_max", ".2f"), ("probability", ".0%"))))
    out_console = terminal()
    out_console.print(table)
    low, high = found.toxicity["any"].rate_ci
    needed = prompts_needed(found.judgements["any"], 0.01)
    out_console.print(f"Toxic by any: ± {(high - low) / 2:.1%} with {len(chosen)} prompts; ± 1% takes about {needed:,} "
                      "prompts like these.")
    if found.choices:
        right = interval(found.choices.value, found.choices.ci)
        out_console.print(f"Multiple choice: {right} of {found.choices.n} right.")
    out_console.print(f"Saved: {out}", soft_wrap=True)
