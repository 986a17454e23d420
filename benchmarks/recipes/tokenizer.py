"""Train the tokenizer of the small models, and tokenise the corpus.

    python -m benchmarks.recipes.tokenizer corpus.json prepared

The corpus is a JSON object with three lists of documents: "clean" (public comments that are not toxic), "toxic"
(toxic public comments; comments with identity slurs were filtered out) and "lit" (passages of novels). It is not part
of the project. The first 1,500 documents of each list are held out. The command writes these files to `prepared`:

    tokenizer/                      byte-level BPE with 8,192 tokens
    tokens/train.safetensors        one stream of int16 tokens per list, documents separated by <|endoftext|>
    tokens/held_out.safetensors     the same for the held-out documents
    held_out.json                   the held-out documents
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from jaxtyping import Int16
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.recipes.training import CONTEXT, END, END_ID, KINDS, read_lists
from toxloc.errors import ToxlocError
from toxloc.support.files import new_folder, write_json

TOXIC_COPIES = 3  # there is less toxic than clean text, and its words must not be split into pieces
LIT_SAMPLE = 60_000  # documents
SEED = 0
AT_ONCE = 5_000  # documents


def train_tokenizer(documents: Mapping[str, list[str]], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer whose token 0 is <|endoftext|>."""
    lit = random.Random(SEED).sample(documents["lit"], min(LIT_SAMPLE, len(documents["lit"])))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*documents["clean"], *documents["toxic"] * TOXIC_COPIES, *lit], trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> Int16[Tensor, " tokens"]:
    """Tokenise documents into one stream, with <|endoftext|> before, between and after them."""
    stream = [END_ID]
    for start in range(0, len(documents), AT_ONCE):
        for encoding in tokenizer.encode_batch(documents[start : start + AT_ONCE]):
            stream += [*encoding.ids, END_ID]
    return torch.tensor(stream, dtype=torch.int16)


def main(
    corpus: Annotated[Path, typer.Argument(help='JSON with lists of documents: "clean", "toxic" and "lit".')],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    vocabulary: Annotated[int, typer.Option(help="Number of tokens.", min=257, max=2**15)] = 8192,
    hold_out: Annotated[int, typer.Option(help="Number of documents of each list to hold out.", min=1)] = 1500,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the contents of OUT.")] = False,
) -> None:
    """Train the tokenizer of the small models, and tokenise the corpus."""
    documents = read_lists(corpus, KINDS, "corpus")
    for kind, texts in documents.items():
        if len(texts) <= hold_out:
            raise ToxlocError(
                f"{corpus} has {len(texts)} documents under {kind!r}, but --hold-out is {hold_out}; "
                "give more documents, or a smaller --hold-out."
            )
    train = {kind: texts[hold_out:] for kind, texts in documents.items()}
    held_out = {kind: texts[:hold_out] for kind, texts in documents.items()}
    with new_folder(out, overwrite) as folder:
        tokenizer = train_tokenizer(train, vocabulary)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=END,
            eos_token=END,
            pad_token=END,
            unk_token=END,
            model_max_length=CONTEXT,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(folder / "tokenizer")
        (folder / "tokens").mkdir()
        for name, part in {"train": train, "held_out": held_out}.items():
            streams = {kind: encode(tokenizer, texts) for kind, texts in part.items()}
            save_file(streams, folder / "tokens" / f"{name}.safetensors")
            print(f"{name}:", ", ".join(f"{len(stream):,} tokens {kind}" for kind, stream in streams.items()))
        write_json(folder / "held_out.json", held_out)


if __name__ == "__main__":
    typer.run(main)
