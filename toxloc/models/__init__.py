"""Load language models, and read and change their weights and activations."""

from ..support.quiet import hide_notes_of_torchao

hide_notes_of_torchao()  # before a module of this package imports transformers
