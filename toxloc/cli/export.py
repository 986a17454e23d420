"""`toxloc export`: write an edited model, or an edit as an adapter, for use without toxloc."""

from pathlib import Path
from typing import Annotated

import typer

from .options import EXECUTION, INPUTS, MEASUREMENT, Overwrite
from .output import terminal


def export(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="INTERVENTION_FOLDER", help="Folder that toxloc suppress, toxloc run or Intervention.save wrote."
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="Model on which the intervention was fitted: toxloc-tiny, a Hugging Face model folder, a .gguf file, "
            "or a hub id.",
            rich_help_panel=INPUTS,
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder to write.", rich_help_panel=EXECUTION)],
    format: Annotated[
        str,
        typer.Option(
            help="hf: a complete Hugging Face model folder; peft: a LoRA adapter, for low-rank edits of W_out.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = "hf",
    any_model: Annotated[
        bool,
        typer.Option("--any-model", help="Also accept another model of the same shape.", rich_help_panel=MEASUREMENT),
    ] = False,
    dtype: Annotated[
        str,
        typer.Option(
            help="Type of the weights, of the fit and of the saved model: float32, bfloat16 or float16.",
            rich_help_panel=EXECUTION,
        ),
    ] = "float32",
    offload: Annotated[
        bool,
        typer.Option(
            "--offload",
            help="Keep the weights on the disk, so that the model may be larger than memory.",
            rich_help_panel=EXECUTION,
        ),
    ] = False,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Quantization that the intervention was fitted with: torchao-int8, bnb-8bit or bnb-4bit.",
            rich_help_panel=EXECUTION,
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run the code that the model brings; only for code that you trust.",
            rich_help_panel=EXECUTION,
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a model with an intervention in its weights, or the intervention as an adapter, for use without toxloc.

    The folder contains a model card. For an intervention from a run, the card includes the figures of the run.
    """
    console = terminal(stderr=True)
    with console.status("loading libraries"):
        from ..interventions.export import check_fitted_on, check_format, export_hf, export_peft
        from ..interventions.loading import load_intervention
        from ..interventions.model_card import effect_in_run
        from ..models.loading import load_model
        from ..support.files import check_free, reserved
        from ..support.progress import shown, step
    check_free(Path(out), overwrite)
    check_format(format)
    intervention = load_intervention(folder)
    baked = intervention.baked()
    with reserved(out), shown(console):
        with step(f"Loading {model}"):
            lm = load_model(
                model,
                device="cpu",
                dtype=dtype,
                offload=offload,
                quantize=quantize,
                trust_remote_code=trust_remote_code,
            )
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
