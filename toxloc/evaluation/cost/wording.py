"""Length, variety and repetition of completions, which show damage that perplexity on everyday text does not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Wording:
    """Figures of all completions together; words are separated by whitespace.

    Attributes:
        median_words: median length in words.
        distinct_2: number of distinct pairs of neighbouring words divided by the number of pairs (Li et al. 2016,
            arXiv:1510.03055). It falls with the number of completions: compare only equal numbers of completions.
        repetition: share of pairs of neighbouring words in which both words are the same.
        empty: share of completions without a word.
    """

    median_words: float
    distinct_2: float
    repetition: float
    empty: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields by name."""
        return asdict(self)


def wording(completions: Sequence[Sequence[str]]) -> Wording:
    """Measure length, variety and repetition of completions [n_prompts][samples].

    Example:
        >>> wording([["a b a b", "so so"]])
        Wording(median_words=3.0, distinct_2=0.75, repetition=0.25, empty=0.0)
    """
    texts = [text.split() for samples in completions for text in samples]
    word_pairs = [pair for words in texts for pair in pairwise(words)]
    return Wording(
        median_words=float(np.median([len(words) for words in texts])),
        distinct_2=len(set(word_pairs)) / max(1, len(word_pairs)),
        repetition=sum(a == b for a, b in word_pairs) / max(1, len(word_pairs)),
        empty=sum(not words for words in texts) / len(texts),
    )
