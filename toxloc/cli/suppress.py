"""`toxloc suppress`: fit one method."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .options import HOW, WHAT, WHERE, Device, Dtype, Model, Overwrite
from .output import stopping, terminal


def suppress(
    model: Model,
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
    overwrite: Overwrite = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Fit one method to a model and save it: the change itself, not a copy of the model.

    The strength is the largest whose cost on everyday text stays within the budget. Give the folder to
    `toxloc export`, or to toxloc.load_intervention in Python.
    """
    console = terminal(stderr=True)
    with console.status("loading libraries"):
        from ..interventions.budget import Budget
        from ..interventions.model_card import where
        from ..interventions.registry import check_method, fit_method
        from ..models.loading import load_model, pick_device
        from ..support.files import check_free
        from ..support.progress import shown, step
        from ..texts.loading import load_contrast, load_neutral
    check_free(Path(out), overwrite)
    check_method(method)
    limits = None if budget is None and kl_budget is None else Budget(perplexity=budget, kl=kl_budget)
    pick_device(device)
    pairs = load_contrast(contrast).limited(max_texts, seed)
    everyday = load_neutral(neutral, limit=max_neutral, seed=seed)
    with stopping("Nothing was written."), shown(console):
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
    out_console = terminal()
    out_console.print(table)
    out_console.print(f"Changes: {where(fitted)}", soft_wrap=True)
    out_console.print(f"Saved: {out}", soft_wrap=True)
