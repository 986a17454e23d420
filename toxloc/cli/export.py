"""`toxloc export`: an edited model, or an edit, for use without toxloc."""

from pathlib import Path
from typing import Annotated

import typer

from .options import HOW, WHAT, WHERE, Overwrite
from .output import terminal


def export(
    folder: Annotated[
        str,
        typer.Argument(metavar="INTERVENTION_FOLDER", help="What toxloc suppress, a run or Intervention.save wrote."),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="The model it was fitted on: toxloc-tiny, a Hugging Face model folder, a .gguf file, or a hub id.",
            rich_help_panel=WHAT,
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder to write.", rich_help_panel=WHERE)],
    format: Annotated[
        str,
        typer.Option(
            help="hf: a whole Hugging Face model folder; peft: a LoRA adapter, for edits of W_out of low rank.",
            rich_help_panel=HOW,
        ),
    ] = "hf",
    any_model: Annotated[
        bool,
        typer.Option(
            "--any-model", help="Also for a model it was not fitted on, of the same shape.", rich_help_panel=HOW
        ),
    ] = False,
    dtype: Annotated[
        str,
        typer.Option(help="float32, bfloat16 or float16: as it was fitted, and as it is saved.", rich_help_panel=WHERE),
    ] = "float32",
    overwrite: Overwrite = False,
) -> None:
    """Write a model with an intervention in its weights, or the intervention as an adapter, for use without toxloc.

    The folder has a model card. Of an intervention from a run it says what the run measured.
    """
    console = terminal(stderr=True)
    with console.status("loading libraries"):
        from ..interventions.export import check_fitted_on, check_format, export_hf, export_peft
        from ..interventions.loading import load_intervention
        from ..interventions.model_card import effect_in_run
        from ..models.loading import load_model
        from ..support.files import check_free
        from ..support.progress import shown, step
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
    terminal().print(f"Saved: {out}", soft_wrap=True)
