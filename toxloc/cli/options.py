"""Options that several commands share."""

from typing import Annotated

import typer

WHAT, HOW, WHERE = "What to read", "How to measure", "Where to run"

Model = Annotated[str, typer.Argument(help="toxloc-tiny (comes with toxloc), a Hugging Face model folder, a .gguf "
                                           "file, or a hub id such as org/name.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.", rich_help_panel=WHERE)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, or auto for layers over all CUDA devices. "
                                                  "Default: CUDA where there is one.",
                                            rich_help_panel=WHERE)]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.", rich_help_panel=WHERE)]
