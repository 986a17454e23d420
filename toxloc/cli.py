"""The command line."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from . import __version__

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich",
                  context_settings={"help_option_names": ["-h", "--help"]},
                  pretty_exceptions_show_locals=False)
WHAT, HOW, WHERE = "What to read", "How to measure", "Where to run"


def _version(asked: bool) -> None:
    if asked:
        print(f"toxloc {__version__}")
        raise typer.Exit


@app.callback()
def main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                               help="Print the version and stop.")] = False) -> None:
    """Find where a language model keeps its toxicity, turn it down without retraining, and prove what that cost."""


@app.command()
def run(
    model: Annotated[str, typer.Option(help="toxloc-tiny (comes with toxloc), a Hugging Face model folder, a .gguf "
                                            "file, or a hub id such as org/name.",
                                       rich_help_panel=WHAT)] = "toxloc-tiny",
    contrast: Annotated[str, typer.Option(help="Toxic and neutral texts to learn the difference from: builtin, or a "
                                               "CSV, TSV, JSONL or Parquet file, or a hub dataset; 'sampled' lets the "
                                               "model write them.",
                                          rich_help_panel=WHAT)] = "builtin",
    prompts: Annotated[str, typer.Option(help="Openings for the model to complete: builtin, a file (also .txt, one a "
                                              "line), or a hub dataset.", rich_help_panel=WHAT)] = "builtin",
    neutral: Annotated[str, typer.Option(help="Everyday text on which the cost is held within its budget: builtin or "
                                              "a file.", rich_help_panel=WHAT)] = "builtin",
    check: Annotated[str | None, typer.Option(help="Other everyday text to measure the reported cost on. Default: a "
                                                   "part of --neutral that was kept aside.",
                                              rich_help_panel=WHAT)] = None,
    evaluator: Annotated[list[str], typer.Option(help="Judge of the completions, NAME, NAME=SOURCE or NAME@THRESHOLD; "
                                                       "repeat for several. See docs/evaluators.md.",
                                                 rich_help_panel=HOW)] = ["toxloc-guard", "profanity-check"],  # noqa: B006
    budget: Annotated[float, typer.Option(help="Rise of perplexity allowed to TRNE: 0.01 is 1%.",
                                          rich_help_panel=HOW)] = 0.01,
    meow2x_budget: Annotated[float, typer.Option(help="Rise of perplexity allowed to Meow2X.",
                                                 rich_help_panel=HOW)] = 0.02,
    samples: Annotated[int, typer.Option(help="Completions per prompt.", rich_help_panel=HOW)] = 5,
    max_prompts: Annotated[int, typer.Option(help="Prompts of each kind, at most.", rich_help_panel=HOW)] = 200,
    max_texts: Annotated[int, typer.Option(help="Contrast texts of each side, at most.", rich_help_panel=HOW)] = 600,
    max_neutral: Annotated[int, typer.Option(help="Everyday texts, at most.", rich_help_panel=HOW)] = 500,
    knockouts: Annotated[int, typer.Option(help="Single neurons to remove in the causal test; 0 for no such test.",
                                           rich_help_panel=HOW)] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="Length of a completion in tokens.", rich_help_panel=HOW)] = 20,
    seed: Annotated[int, typer.Option(help="The same seed, machine and version give the same result.",
                                      rich_help_panel=HOW)] = 0,
    out: Annotated[str | None, typer.Option(help="Folder for the results. Default: a new one in toxloc-runs.",
                                            rich_help_panel=WHERE)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds, once the run is complete.",
                                            rich_help_panel=WHERE)] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps. Default: CUDA where there is one.",
                                               rich_help_panel=WHERE)] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.", rich_help_panel=WHERE)] = "float32",
) -> None:
    """Localize toxicity, turn it down with Meow2X and TRNE, and write a report that says what that cost.

    Without options this runs on the small model that comes with toxloc, in about three minutes on two cores and
    without a network. [bold]The texts it writes are offensive by nature[/bold]; the report masks them until clicked.
    """
    console = Console(stderr=True)
    with console.status("loading libraries"):
        from .pipeline import run as run_all
        from .progress import shown
    with shown(console):
        result = run_all(model, out, overwrite=overwrite, contrast=contrast, prompts=prompts, neutral=neutral,
                         check=check, evaluators=evaluator, budget=budget, meow2x_budget=meow2x_budget,
                         samples=samples, max_prompts=max_prompts, max_texts=max_texts, max_neutral=max_neutral,
                         knockouts=knockouts, max_new_tokens=max_new_tokens, seed=seed, device=device, dtype=dtype)
    table = Table("method", "toxic by any", "change", "perplexity", title=f"{result.results['model']}, seed {seed}")
    for entry in result.results["runs"]:
        figures, change = entry["toxicity"]["any"], (entry.get("change") or {}).get("any")
        low, high = figures["rate_ci"]
        table.add_row(entry["method"], f"{figures['rate']:.1%} [{low:.1%}, {high:.1%}]",
                      f"{change['relative']:+.0%}" if change else "",
                      f"{entry['fluency']['perplexity']:.2f} ({entry['fluency']['perplexity_ratio'] - 1:+.2%})")
    out_console = Console()
    out_console.print(table)
    out_console.print(f"Report: {result.report}", soft_wrap=True)


@app.command()
def suppress(
    model: Annotated[str, typer.Argument(help="toxloc-tiny (comes with toxloc), a Hugging Face model folder, a .gguf "
                                              "file, or a hub id such as org/name.")],
    out: Annotated[str, typer.Option(help="Folder for the fitted intervention.", rich_help_panel=WHERE)],
    method: Annotated[str, typer.Option(help="How to turn toxicity down: trne, meow2x or another method; a name that "
                                             "is none lists them all.", rich_help_panel=HOW)] = "trne",
    contrast: Annotated[str, typer.Option(help="Toxic and neutral texts to learn the difference from: builtin, a CSV, "
                                               "TSV, JSONL or Parquet file, or a hub dataset.",
                                          rich_help_panel=WHAT)] = "builtin",
    neutral: Annotated[str, typer.Option(help="Everyday text on which the cost is held within its budget: builtin or "
                                              "a file.", rich_help_panel=WHAT)] = "builtin",
    budget: Annotated[float | None, typer.Option(help="Rise of perplexity allowed: 0.01 is 1%. Default: the method's "
                                                      "own.", rich_help_panel=HOW)] = None,
    kl_budget: Annotated[float | None, typer.Option(help="KL from the unedited model allowed, in nats per token; alone "
                                                         "or besides --budget.", rich_help_panel=HOW)] = None,
    max_texts: Annotated[int, typer.Option(min=8, help="Contrast texts of each side, at most.",
                                           rich_help_panel=HOW)] = 600,
    max_neutral: Annotated[int, typer.Option(min=12, help="Everyday texts, at most.", rich_help_panel=HOW)] = 500,
    seed: Annotated[int, typer.Option(help="Of the draw and the division of the texts.", rich_help_panel=HOW)] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.",
                                            rich_help_panel=WHERE)] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps. Default: CUDA where there is one.",
                                               rich_help_panel=WHERE)] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.", rich_help_panel=WHERE)] = "float32",
) -> None:
    """Fit one method to a model and save it: the change itself, not a copy of the model.

    The strength is the largest whose cost on everyday text stays within the budget. Give the folder to
    [bold]toxloc export[/bold], or to toxloc.load_intervention in Python.
    """
    console = Console(stderr=True)
    with console.status("loading libraries"):
        from .export import where
        from .files import check_free
        from .interventions import Budget
        from .interventions.methods import check_method, fit_method
        from .model import load_model, pick_device
        from .progress import shown, step
        from .prompts import load_contrast, load_neutral
    check_free(Path(out), overwrite)
    check_method(method)
    limits = None if budget is None and kl_budget is None else Budget(perplexity=budget, kl=kl_budget)
    pick_device(device)
    pairs = load_contrast(contrast).limited(max_texts, seed)
    everyday = load_neutral(neutral, limit=max_neutral, seed=seed)
    with shown(console):
        with step(f"Loading {model}"):
            lm = load_model(model, device=device, dtype=dtype)
        with step(f"Fitting {method}"):
            fitted = fit_method(method, lm, pairs, everyday, limits)
    fitted.save(out, overwrite)
    table = Table("everyday text", "perplexity", "KL, nats per token", title=f"What {method} costs {lm.name}")
    for part, texts in (("tuned", everyday.tune), ("check", everyday.check)):
        ratio, kl = fitted.record.get(f"{part}_perplexity_ratio"), fitted.record.get(f"{part}_kl")
        table.add_row(f"{everyday.name}: {len(texts)} texts, {'tuned on' if part == 'tuned' else 'for checking'}",
                      "not measured" if ratio is None else f"{ratio - 1:+.2%}",
                      "not measured" if kl is None else f"{kl:.3g}")
    out_console = Console()
    out_console.print(table)
    out_console.print(f"Changes: {where(fitted)}", soft_wrap=True, highlight=False)
    out_console.print(f"Saved: {out}", soft_wrap=True)


@app.command()
def export(
    folder: Annotated[str, typer.Argument(metavar="INTERVENTION_FOLDER",
                                          help="What toxloc suppress, a run or Intervention.save wrote.")],
    model: Annotated[str, typer.Option(help="The model it was fitted on: toxloc-tiny, a Hugging Face model folder, a "
                                            ".gguf file, or a hub id.", rich_help_panel=WHAT)],
    out: Annotated[str, typer.Option(help="Folder to write.", rich_help_panel=WHERE)],
    format: Annotated[str, typer.Option(help="hf: a whole Hugging Face model folder; peft: a LoRA adapter, for edits "
                                             "of W_out of low rank.", rich_help_panel=HOW)] = "hf",
    any_model: Annotated[bool, typer.Option("--any-model", help="Also for a model it was not fitted on, of the same "
                                                                "shape.", rich_help_panel=HOW)] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16: as it was fitted, and as it is saved.",
                                       rich_help_panel=WHERE)] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.",
                                            rich_help_panel=WHERE)] = False,
) -> None:
    """Write a model with an intervention in its weights, or the intervention as an adapter, for use without toxloc.

    The folder has a model card. Of an intervention from a run it says what the run measured.
    """
    console = Console(stderr=True)
    with console.status("loading libraries"):
        from .export import check_fitted_on, check_format, effect_in_run, export_hf, export_peft
        from .files import check_free
        from .interventions import load_intervention
        from .model import load_model
        from .progress import shown, step
    check_free(Path(out), overwrite)
    check_format(format)
    intervention = load_intervention(folder)
    baked = intervention.baked()
    with shown(console):
        with step(f"Loading {model}"):
            lm = load_model(model, device="cpu", dtype=dtype)
        if not any_model:
            check_fitted_on(intervention, lm)
        effect = effect_in_run(intervention, folder, lm)
        with step(f"Writing {out}"):
            if format == "peft":
                export_peft(baked, lm, out, overwrite=overwrite, effect=effect)
            else:
                with baked.applied(lm):
                    export_hf(lm, out, overwrite=overwrite, effect=effect)
    Console().print(f"Saved: {out}", soft_wrap=True)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="toxloc-tiny (comes with toxloc), a Hugging Face model folder, a .gguf "
                                              "file, or a hub id such as org/name.")],
    out: Annotated[str, typer.Option(help="Folder for the results.", rich_help_panel=WHERE)],
    intervention: Annotated[list[str] | None, typer.Option(help="Folder of an intervention to put in force; repeat "
                                                                "for several, in order.", rich_help_panel=WHAT)] = None,
    prompts: Annotated[str, typer.Option(help="Openings to complete: builtin, a file, or a hub dataset.",
                                         rich_help_panel=WHAT)] = "builtin",
    neutral: Annotated[str, typer.Option(help="Everyday text to measure the cost on: builtin or a file.",
                                         rich_help_panel=WHAT)] = "builtin",
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.",
                                            rich_help_panel=WHERE)] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps. Default: CUDA where there is one.",
                                               rich_help_panel=WHERE)] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.", rich_help_panel=WHERE)] = "float32",
) -> None:
    """Judge a model, with interventions in force or as it is: toxicity by every evaluator, and what language costs.

    Completions are kept in OUT.partial.jsonl as they come; the same command goes on after an interruption.
    [bold]The texts it writes are offensive by nature.[/bold]
    """
    console = Console(stderr=True)
    with console.status("loading libraries"):
        from contextlib import ExitStack

        from .evaluation import decoding_of, usual_evaluators
        from .evaluation import evaluate as judge
        from .evaluators import get_evaluators
        from .export import check_fitted_on
        from .files import check_free
        from .interventions import load_intervention
        from .metrics import prompts_needed
        from .model import load_model, pick_device
        from .progress import shown, step
        from .prompts import PROVOCATIVE, load_neutral, load_prompts
        from .protocols import get_protocol
    target, journal = Path(out), Path(f"{out.rstrip('/')}.partial.jsonl")
    check_free(target, overwrite)
    known = get_protocol(protocol) if protocol else None
    decoding = decoding_of(known, samples=samples, max_new_tokens=max_new_tokens, top_p=top_p, temperature=temperature)
    judges = get_evaluators(evaluator or usual_evaluators(known))
    in_force = [load_intervention(folder) for folder in intervention or []]
    pick_device(device)
    everyday = load_neutral(neutral, limit=max_neutral, seed=seed)
    opened = None if known else load_prompts(prompts)
    with shown(console), ExitStack() as stack:
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
                          journal=journal)
    found.save(target, overwrite)
    journal.unlink(missing_ok=True)
    table = Table("evaluator", "toxic", "mean", "expected max.", "at least one",
                  title=f"{found.model}, {found.method}: {len(chosen)} prompts × {found.decoding.samples}"
                        + (f", protocol {found.protocol}" if found.protocol else ""))
    for name, figures in found.toxicity.items():
        table.add_row(name, *(_interval(getattr(figures, one), getattr(figures, f"{one}_ci"), form) for one, form in (
            ("rate", ".1%"), ("mean", ".2f"), ("expected_max", ".2f"), ("probability", ".0%"))))
    out_console = Console()
    out_console.print(table)
    low, high = found.toxicity["any"].rate_ci
    needed = prompts_needed(found.judgements["any"], 0.01)
    out_console.print(f"Toxic by any: ± {(high - low) / 2:.1%} with {len(chosen)} prompts; ± 1% takes about {needed:,} "
                      "prompts like these.", highlight=False)
    out_console.print(f"Saved: {out}", soft_wrap=True)


@app.command()
def compare(
    one: Annotated[str, typer.Argument(help="What toxloc evaluate wrote, such as the baseline.")],
    other: Annotated[str, typer.Argument(help="The same of another model or with an intervention in force.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what changed from one finished evaluation to another of the same prompts, and whether it may be noise.

    Evaluations under different protocols, decodings, prompts or thresholds are refused.
    """
    from .comparison import compare as compare_both
    from .evaluation import load_evaluation

    before, after = load_evaluation(one), load_evaluation(other)
    found = compare_both(before, after, seed)
    if json:
        from json import dumps

        print(dumps(found.to_dict(), indent=2))
        return
    table = Table("toxic by", before.name, after.name, "difference", "relative", "p",
                  title=f"{len(before.prompts)} prompts × {before.figures['decoding']['samples']}")
    for name, apart in found.differences.items():
        change = found.changes[name]
        table.add_row(name, *(f"{e.judgements[name].toxic.mean():.1%}" for e in (before, after)),
                      _interval(apart.mean, apart.ci, "+.1%"),
                      _interval(change.relative, change.ci, "+.0%") if change else "–", f"{apart.p:.2g}")
    language = Table("language", before.name, after.name)
    for name, both in found.figures.items():
        language.add_row(name, *("–" if value is None else f"{value:.4g}" for value in both))
    console = Console()
    console.print(table)
    console.print(language)


@app.command()
def calibrate(
    evaluator: Annotated[str, typer.Argument(help="NAME or NAME=SOURCE. See docs/evaluators.md.")],
    texts: Annotated[str, typer.Option(help="Everyday texts, none of them toxic, like those that will be judged: a "
                                            "file, one text a line or a table with a text column; or builtin.",
                                       rich_help_panel=WHAT)] = "builtin",
    rate: Annotated[float, typer.Option(help="Share of them that may be called toxic.",
                                        rich_help_panel=HOW)] = 0.01,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the threshold at which an evaluator calls at most a given share of everyday texts toxic.

    Give the result to [bold]--evaluator[/bold] as NAME@THRESHOLD.
    """
    from .calibration import calibrate as find
    from .evaluators import get_evaluators
    from .prompts import load_neutral

    judge, = get_evaluators([evaluator])
    everyday = load_neutral(texts, limit=None, min_words=1)
    found = find(judge, [*everyday.fit, *everyday.tune, *everyday.check], rate)
    if json:
        from json import dumps

        print(dumps(found.to_dict(), indent=2))
        return
    low, high = found.rate_ci
    console = Console()
    console.print(f"{found.n_texts} everyday texts of {everyday.name}: at its threshold of "
                  f"{found.threshold_before:g}, {found.evaluator} calls {found.rate_before:.2%} of them toxic; at "
                  f"{found.threshold:g}, {found.rate:.2%} [{low:.2%}, {high:.2%}].", highlight=False, markup=False)
    spec = f"{evaluator.rpartition('@')[0] or evaluator}@{found.threshold:g}"
    console.print(f"Use it: --evaluator {spec}", soft_wrap=True, highlight=False)


def _interval(value: float, ci: tuple[float, float], form: str = ".1%") -> str:
    low, high = (f"{end:{form}}".removesuffix("%") for end in ci)
    return rf"{value:{form}} \[{low}, {high}]"


def entry() -> None:
    """Run the command line; the user's errors end in one sentence, Ctrl-C in a quiet stop."""
    from .errors import ToxlocError

    try:
        app()
    except ToxlocError as error:
        Console(stderr=True).print(f"[bold red]Error:[/bold red] {error}", soft_wrap=True, highlight=False)
        sys.exit(2)
