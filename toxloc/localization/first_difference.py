"""First differences: the tokens that the two texts of a pair share, and the first token in which they differ.

After the shared prefix, a model gives one log-probability to the toxic text's next token and another to that of the
neutral text. Both are predicted from the same tokens, so their difference depends on nothing but this choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ToxlocError
from ..models.batching import Row, encode, encode_rows
from ..models.loaded import AnyModel, LoadedModel
from ..support.arguments import as_list, check_kind, short_repr
from ..texts.contrast import ContrastSet

FEWEST_SHARED = 2  # tokens of a usable prefix; the BOS token does not count
FEWEST_PAIRS = 2


@dataclass(frozen=True)
class FirstDifference:
    """A pair of texts as tokens: what both share, and what follows in each.

    Attributes:
        pair: index of the pair in the contrast set.
        prefix: the tokens that both texts begin with, including BOS if the model's texts begin with it.
        toxic: the further tokens of the toxic text, at least one.
        neutral: the further tokens of the neutral text, at least one; the first is not that of `toxic`.
        counterfactual: the tokens of a counterfactual prefix, as many as those of `prefix`; None if none was given.
        template: positions of `prefix` that belong to a chat template, and do not count (see `ChatText`).
    """

    pair: int
    prefix: tuple[int, ...]
    toxic: tuple[int, ...]
    neutral: tuple[int, ...]
    counterfactual: tuple[int, ...] | None = None
    template: tuple[int, ...] = ()

    @property
    def neutral_row(self) -> Row:
        """The neutral text as tokens, with those that count."""
        ids = [*self.prefix, *self.neutral]
        return Row(ids, [int(i not in self.template) for i in range(len(ids))])


@dataclass(frozen=True)
class FirstDifferences:
    """The usable pairs of a contrast set, in its order, and the number of pairs that are left out.

    Attributes:
        usable: the pairs whose texts share a prefix and then differ.
        differ_early: number of pairs that share fewer than two tokens (BOS not counted).
        without_difference: number of other pairs in which a text ends, or is cut at the largest length, before the
            texts differ.
    """

    usable: tuple[FirstDifference, ...]
    differ_early: int = 0
    without_difference: int = 0

    @property
    def n_left_out(self) -> int:
        """Number of pairs that are left out."""
        return self.differ_early + self.without_difference

    @property
    def have_counterfactuals(self) -> bool:
        """Whether every usable pair has a counterfactual prefix."""
        return all(difference.counterfactual is not None for difference in self.usable)


def first_differences(lm: AnyModel, pairs: ContrastSet, max_length: int = 128) -> FirstDifferences:
    """Find the first token in which the two texts of each pair differ.

    A pair is left out if its texts share fewer than two tokens, not counting BOS, or if one text ends before they
    differ.

    Args:
        lm: the model, whose tokenizer splits the texts.
        pairs: a paired contrast set.
        max_length: number of tokens read from each text.

    Raises:
        ToxlocError: the set is not paired, or fewer than two pairs are usable.

    Example:
        >>> from toxloc import ContrastSet, load_model
        >>> toxic, neutral = ["They are all fools.", "Go away, liar"], ["They are all here.", "Go away now"]
        >>> differences = first_differences(load_model(), ContrastSet(toxic, neutral, paired=True))
        >>> [len(difference.prefix) for difference in differences.usable]
        [4, 3]
    """
    lm = LoadedModel.of(lm)
    check_kind(pairs, ContrastSet, "the contrast set")
    if not pairs.paired:
        raise ToxlocError(
            f"The contrast set {pairs.name!r} is not paired, so its texts have no first difference; give pairs of "
            "texts that begin alike, with paired=True."
        )
    usable: list[FirstDifference] = []
    early = ended = 0
    bos = lm.tokenizer.bos_token_id
    rows = zip(encode_rows(lm, pairs.toxic, max_length), encode_rows(lm, pairs.neutral, max_length), strict=True)
    for pair, (of_toxic, of_neutral) in enumerate(rows):
        toxic, neutral = (row.ids[: row.end] for row in (of_toxic, of_neutral))
        shorter = min(len(toxic), len(neutral))
        shared = next((i for i in range(shorter) if toxic[i] != neutral[i]), shorter)
        prefix = tuple(toxic[:shared])
        template = tuple(i for i in range(shared) if not of_toxic.own[i])
        if shared < shorter and shared - (bos is not None and prefix[:1] == (bos,)) < FEWEST_SHARED:
            early += 1
        elif shared == shorter:
            ended += 1
        else:
            after = tuple(toxic[shared:]), tuple(neutral[shared:])
            usable.append(FirstDifference(pair, prefix, *after, template=template))
    if len(usable) < FEWEST_PAIRS:
        raise ToxlocError(
            f"Only {len(usable)} of the {len(pairs.toxic)} pairs of {pairs.name!r} can be compared at their first "
            f"difference, and {FEWEST_PAIRS} are needed: {early} share fewer than {FEWEST_SHARED} tokens, and in "
            f"{ended} a text ends before the two differ. Give pairs of texts that begin with the same words."
        )
    return FirstDifferences(tuple(usable), early, ended)


def first_differences_of(
    lm: AnyModel,
    prompts: Sequence[str],
    toxic_words: Sequence[str],
    neutral_words: Sequence[str],
    counterfactual_prompts: Sequence[str] | None = None,
) -> FirstDifferences:
    """Make first differences from prompts, and a toxic and a neutral continuation of each.

    Args:
        lm: the model, whose tokenizer splits the texts.
        prompts: the prompts.
        toxic_words: the toxic continuation of each prompt, with the space between them: " idiot".
        neutral_words: the neutral continuation of each prompt.
        counterfactual_prompts: for each prompt, a prompt of as many tokens after which the toxic continuation should be
            less likely. `patch(..., by="counterfactual")` takes new values from it.

    Raises:
        ToxlocError: there are fewer than two prompts, or not as many of everything; the tokenizer does not split a
            text at the end of its prompt; both continuations begin with the same token; or a counterfactual prompt has
            another number of tokens than its prompt.

    Example:
        >>> from toxloc import load_model, patch
        >>> lm, prompts = load_model(), ["They hate you. You are", "She hates him. He is"]
        >>> others = ["They like you. You are", "She likes him. He is"]
        >>> given = first_differences_of(lm, prompts, [" stupid"] * 2, [" here"] * 2, others)
        >>> patch(lm, given, [3, 4], by="counterfactual").over
        'first'
    """
    lm = LoadedModel.of(lm)
    given = {"prompts": prompts, "toxic_words": toxic_words, "neutral_words": neutral_words}
    if counterfactual_prompts is not None:
        given["counterfactual_prompts"] = counterfactual_prompts
    lists = {name: as_list(values, name) for name, values in given.items()}
    n = len(lists["prompts"])
    for name, values in lists.items():
        if len(values) != n or n < FEWEST_PAIRS:
            raise ToxlocError(f"{len(values)} {name} and {n} prompts were given; give as many, {FEWEST_PAIRS} or more.")
    prefixes = encode(lm, lists["prompts"], lm.context)
    toxic, neutral = (_after(lm, lists["prompts"], prefixes, lists[name]) for name in ("toxic_words", "neutral_words"))
    others = None if counterfactual_prompts is None else encode(lm, lists["counterfactual_prompts"], lm.context)
    usable = []
    for i, prefix in enumerate(prefixes):
        if toxic[i][0] == neutral[i][0]:
            raise ToxlocError(
                f"The continuations of prompt {i} begin with the same token; give continuations that differ in their "
                "first token."
            )
        if others is not None and len(others[i]) != len(prefix):
            raise ToxlocError(
                f"Prompt {i} has {len(prefix)} tokens and its counterfactual prompt {len(others[i])}; give prompts "
                "with the same number of tokens."
            )
        other = None if others is None else tuple(others[i])
        usable.append(FirstDifference(i, tuple(prefix), toxic[i], neutral[i], other))
    return FirstDifferences(tuple(usable))


def _after(lm: LoadedModel, prompts: list[str], prefixes: list[list[int]], words: list[str]) -> list[tuple[int, ...]]:
    """Return the tokens of each word after its prompt."""
    texts = [prompt + word for prompt, word in zip(prompts, words, strict=True)]
    rows = encode(lm, texts, lm.context)
    for i, (row, prefix) in enumerate(zip(rows, prefixes, strict=True)):
        if row[: len(prefix)] != prefix or len(row) == len(prefix):
            raise ToxlocError(
                f"The tokenizer does not split text {i} at the end of its prompt, {short_repr(prompts[i])}; begin the "
                "continuation with the space that follows the prompt, and leave room for it in the model's context."
            )
    return [tuple(row[len(prefix) :]) for row, prefix in zip(rows, prefixes, strict=True)]
