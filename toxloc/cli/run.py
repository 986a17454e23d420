"""`toxloc run`: the whole job."""

from typing import Annotated

import typer
from rich.table import Table

from .options import HOW, WHAT, WHERE, Device, Dtype
from .output import interval, stopping, terminal


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
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Localize toxicity, turn it down with Meow2X and TRNE, and write a report that says what that cost.

    Without options this runs on the small model that comes with toxloc, in under three minutes on two cores and
    without a network. **The texts it writes are offensive by nature**; the report masks them until clicked.
    """
    console = terminal(stderr=True)
    with console.status("loading libraries"):
        from ..runs.pipeline import run as run_all
        from ..support.progress import shown
    with stopping("Nothing was written."), shown(console):
        result = run_all(model, out, overwrite=overwrite, contrast=contrast, prompts=prompts, neutral=neutral,
                         check=check, evaluators=evaluator, budget=budget, meow2x_budget=meow2x_budget,
                         samples=samples, max_prompts=max_prompts, max_texts=max_texts, max_neutral=max_neutral,
                         knockouts=knockouts, max_new_tokens=max_new_tokens, seed=seed, device=device, dtype=dtype)
    table = Table("method", "toxic by any", "change", "perplexity", title=f"{result.results['model']}, seed {seed}")
    for entry in result.results["runs"]:
        figures, change = entry["toxicity"]["any"], (entry.get("change") or {}).get("any")
        table.add_row(entry["method"], interval(figures["rate"], figures["rate_ci"]),
                      f"{change['relative']:+.0%}" if change else "",
                      f"{entry['fluency']['perplexity']:.2f} ({entry['fluency']['perplexity_ratio'] - 1:+.2%})")
    out_console = terminal()
    out_console.print(table)
    out_console.print(f"Report: {result.report}", soft_wrap=True)
