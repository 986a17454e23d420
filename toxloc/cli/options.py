"""Options that several commands share."""

from typing import Annotated

import typer

PANELS = INPUTS, MEASUREMENT, EXECUTION = "What to read", "How to measure", "Where to run"

MODEL = (
    "model to load: toxloc-tiny (comes with toxloc), a Hugging Face model folder, a .gguf file, or a hub id "
    "such as org/name"
)
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace --out if it is not empty.", rich_help_panel=EXECUTION)
]
