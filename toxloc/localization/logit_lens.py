"""Logit lens: at which depth does the toxic word of a pair become likely?

The two texts of a pair share a prefix. The residual stream at its last position is read before the first block and
after every block, and passed through the model's final norm and unembedding, as if the blocks ended there. D is the
log-probability of the toxic text's next token minus that of the neutral text's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..errors import ToxlocError
from ..models.batching import batches, groups_of_rows, pad
from ..models.depths import hidden_by_depth
from ..models.likelihood import log_probabilities, predicted
from ..models.loaded import AnyModel, LoadedModel
from ..support.arguments import whole_number
from ..support.progress import track
from ..support.significance import ALPHA
from ..texts.contrast import ContrastSet
from .difference_statistics import groups_of_pairs
from .first_difference import FirstDifference, first_differences
from .pair_batch import first_tokens
from .scored import estimate_over_pairs
from .uncertainty import DRAWS, Uncertainty

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

Baseline = Literal["neutral", "other_prefixes", "none"]
BASELINES: tuple[str, ...] = get_args(Baseline)


@dataclass(frozen=True, repr=False)
class LogitLens:
    """D by depth. Depth 0 is the residual stream before the first block, and depth n_layers the model's output.

    Attributes:
        model: name of the model.
        baseline: what is subtracted from D; see `logit_lens`.
        n_pairs: number of pairs that are averaged over.
        n_left_out: number of pairs without a usable first difference.
        toxic: mean log-probability of the toxic token at each depth, in nats, float64 [n_layers + 1].
        neutral: mean log-probability of the neutral token at each depth, in nats, float64 [n_layers + 1].
        difference: mean D at each depth, minus the baseline, in nats, float64 [n_layers + 1]; positive where the toxic
            token is the likelier one. With `baseline="none"`, it is `toxic - neutral`.
        step: change of `difference` by each block, float64 [n_layers].
        uncertainty: 95% intervals of `difference`, and its null distribution, in which the two texts of a pair swap;
            `p_adjusted` is adjusted for all depths. None without draws.
        step_uncertainty: the same of `step`, adjusted for all blocks.
    """

    model: str
    baseline: str
    n_pairs: int
    n_left_out: int
    toxic: Float64[np.ndarray, " n_depths"]
    neutral: Float64[np.ndarray, " n_depths"]
    difference: Float64[np.ndarray, " n_depths"]
    step: Float64[np.ndarray, " n_layers"]
    uncertainty: Uncertainty | None
    step_uncertainty: Uncertainty | None

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.step)

    @property
    def first_depth(self) -> int | None:
        """The first depth from which on `difference` is positive, with an adjusted p below 0.05, up to the output.

        None if there is no such depth, or without draws.
        """
        if self.uncertainty is None:
            return None
        fails = (self.difference <= 0) | (self.uncertainty.p_adjusted >= ALPHA)
        first = 1 + max(np.flatnonzero(fails), default=-1)
        return int(first) if first <= self.n_layers else None

    @property
    def first_relative_depth(self) -> float | None:
        """`first_depth` divided by the number of blocks: 0 for the embedding, 1 for the output; None if it is None."""
        return None if self.first_depth is None else self.first_depth / self.n_layers

    def table(self) -> "pd.DataFrame":
        """Return one row per depth: log-probabilities, difference, step, interval, null, z, p-values of the difference.

        The step is that of the block before the depth, with its adjusted p-value. It is NaN at depth 0, as is
        everything that comes from draws, without draws.

        Example:
            >>> logit_lens(lm, pairs).table().nlargest(3, "step")     # doctest: +SKIP
        """
        import pandas as pd

        columns: dict[str, object] = {
            "depth": np.arange(self.n_layers + 1),
            "relative_depth": np.linspace(0, 1, self.n_layers + 1),
            "toxic": self.toxic,
            "neutral": self.neutral,
            "difference": self.difference,
        }
        for name in Uncertainty.names():
            columns[name] = np.nan if self.uncertainty is None else getattr(self.uncertainty, name)
        columns["step"] = np.r_[np.nan, self.step]
        step_p = np.nan if self.step_uncertainty is None else np.r_[np.nan, self.step_uncertainty.p_adjusted]
        return pd.DataFrame(columns | {"step_p_adjusted": step_p})

    def figure(self) -> "Figure":
        """Return a Plotly figure of D over relative depth; `toxloc.plots.logit_lens` draws several models."""
        from ..plots import logit_lens  # plotly is slow to import

        return logit_lens([self])

    def __repr__(self) -> str:
        tested = "the toxic word was not tested, without draws"
        if self.uncertainty is not None:
            tested = "there is no depth from which on the toxic word is significantly likelier"
        if self.first_depth is not None:
            tested = f"the toxic word is significantly likelier from depth {self.first_depth} of {self.n_layers} on"
        end = f"D is {self.difference[-1]:+.2f} nats"
        if self.uncertainty is not None:
            end += f" [{self.uncertainty.low[-1]:+.2f}, {self.uncertainty.high[-1]:+.2f}]"
        return f"LogitLens({self.model}, {self.n_pairs} pairs, baseline {self.baseline}: {tested}; at the output {end})"


def logit_lens(
    lm: AnyModel,
    pairs: ContrastSet,
    baseline: Baseline = "neutral",
    *,
    draws: int = DRAWS,
    seed: int = 0,
    max_length: int = 128,
) -> LogitLens:
    """Measure at every depth how much likelier the toxic token is than the neutral token, where two texts first differ.

    At the last position of the prefix that the two texts share, the residual stream h is passed through the model's
    final norm and unembedding: D = log p(toxic token) - log p(neutral token). At the last depth this is the model's own
    prediction. At every other depth it is what the model would predict if the remaining blocks added nothing.

    D contains how frequent the two words are in every text, and toxic words are rare. A baseline takes that away: D of
    the same two tokens, averaged over other positions.

    * baseline="neutral": over the positions of the neutral texts of `pairs`, without the first. What remains is how
      much more these prefixes call for the toxic word than neutral text does.
    * baseline="other_prefixes": over the prefixes of all other pairs. What remains is what distinguishes a pair's
      prefix from the other prefixes, so it does not contain what all these prefixes have in common. The mean over pairs
      is the covariance of prefixes and words.
    * baseline="none": nothing is subtracted.

    Logits are linear in the normed hidden state, so the mean D over positions is D at the mean of their normed hidden
    states: only this mean is kept, and the baseline is exact. In models that soft-cap their logits (Gemma 2), D minus a
    baseline is that of the logits before the cap.

    Args:
        lm: the model, with the interventions that are applied to it; it is left unchanged.
        pairs: a paired contrast set.
        baseline: "neutral", "other_prefixes" or "none".
        draws: number of bootstrap draws and of sign flips; 0 for none. They need no further pass over the model.
        seed: seed for the draws.
        max_length: number of tokens read from each text.

    Raises:
        ToxlocError: an unknown baseline; negative `draws` or `seed`; the set is not paired, or fewer than two pairs
            share a prefix and then differ; or the model reads its output from something else than the residual stream
            after the last block.

    Source: the logit lens (nostalgebraist 2020), and its bias early in a model (Belrose et al. 2023, arXiv:2303.08112).

    Example:
        >>> from toxloc import load_contrast, load_model
        >>> lens = logit_lens(load_model(), load_contrast().limited(40))
        >>> lens.difference.shape, lens.step.shape
        ((9,), (8,))
    """
    lm = LoadedModel.of(lm)
    if baseline not in BASELINES:
        raise ToxlocError(f"baseline={baseline!r}: choose one of {', '.join(BASELINES)}.")
    draws, seed = whole_number(draws, "draws"), whole_number(seed, "seed")
    usable = first_differences(lm, pairs, max_length).usable
    with torch.inference_mode():
        sums = _Sums(lm, usable, baseline)
        for index in track(sums.rows, "logit lens"):
            sums.read(index)
        values = sums.by_group(pairs.neutral, max_length)
    difference, uncertainty = estimate_over_pairs(values, sums.counts, draws, seed)
    step, step_uncertainty = estimate_over_pairs(np.diff(values, axis=1), sums.counts, draws, seed)
    toxic, neutral = sums.log_p / len(usable)
    return LogitLens(
        lm.name,
        baseline,
        len(usable),
        len(pairs.toxic) - len(usable),
        toxic,
        neutral,
        difference,
        step,
        uncertainty,
        step_uncertainty,
    )


class _Sums:
    """What one pass over the prefixes accumulates.

    The logits of two tokens differ by w @ h, for a normed hidden state h and the difference w of two rows of the
    unembedding. So a pair's D minus the mean D of its tokens at other positions is w @ (h - mean h). If the other
    positions are the prefixes of the other pairs, the mean over pairs is n / (n - 1) times the mean of
    (w - mean w) @ (h - mean h). Both means are subtracted there, because what they add to the value of a single pair
    cancels in the mean over pairs, also in every draw.

    Attributes:
        rows: the indices of the pairs of each batch.
        group: group of each pair.
        counts: number of pairs of each group, float64 [groups].
        sums: sum over the pairs of each group of D or, with a baseline, of w @ h, float64 [groups, depths].
        log_p: sums over pairs of the log-probabilities of the toxic and the neutral token, float64 [2, depths].
        hidden: sum over pairs of h, float64 [depths, d].
        centre: what is subtracted from each w, float32 [d].
        directions: sum over the pairs of each group of w, float64 [groups, d].
    """

    def __init__(self, lm: LoadedModel, usable: Sequence[FirstDifference], baseline: Baseline):
        self.lm, self.usable, self.baseline = lm, usable, baseline
        self.rows = groups_of_rows(lm, [len(pair.prefix) for pair in usable])
        self.group = groups_of_pairs(len(usable))
        self.counts = np.bincount(self.group).astype(np.float64)
        depths, d = lm.n_layers + 1, lm.unembedding[0].shape[1]
        self.sums, self.log_p = np.zeros((len(self.counts), depths)), np.zeros((2, depths))
        self.hidden, self.directions = np.zeros((depths, d)), np.zeros((len(self.counts), d))
        self.centre = torch.zeros(d, device=lm.device)
        if baseline == "other_prefixes":
            chosen = ([usable[i] for i in index] for index in self.rows)
            total = sum(self._directions(first_tokens(lm, pairs)).sum(0) for pairs in chosen)
            self.centre += total / len(usable)

    def read(self, index: list[int]) -> None:
        """Run one batch of prefixes through the model."""
        pairs = [self.usable[i] for i in index]
        batch, tokens = pad(self.lm, [pair.prefix for pair in pairs], index, "right"), first_tokens(self.lm, pairs)
        last = torch.nn.functional.one_hot(batch.mask.sum(1) - 1, batch.mask.shape[1]).bool()
        hidden = hidden_by_depth(self.lm, batch, last)
        both = tokens.T.repeat(len(hidden), 1)
        log_p = log_probabilities(self.lm, hidden.flatten(0, 1), both).unflatten(0, hidden.shape[:2])
        directions = self._directions(tokens) - self.centre
        values = log_p[..., 0] - log_p[..., 1] if self.baseline == "none" else (hidden.float() * directions).sum(-1)
        self.log_p += _array(log_p.double().sum(1).T)
        self.hidden += _array(hidden.double().sum(1))
        np.add.at(self.sums, self.group[index], _array(values.T))
        np.add.at(self.directions, self.group[index], _array(directions))

    def _directions(self, tokens: Int[Tensor, "2 n"]) -> Float[Tensor, "n d"]:
        """Return w of some pairs, from their toxic and their neutral tokens."""
        W_U = self.lm.unembedding[0]
        toxic, neutral = (W_U[token.to(W_U.device)].float() for token in tokens)
        return self.lm.logit_scale * (toxic - neutral).to(self.lm.device)

    def by_group(self, neutral: Sequence[str], max_length: int) -> Float64[np.ndarray, "groups depths"]:
        """Return the sum over the pairs of each group of D minus its baseline."""
        n = len(self.usable)
        if self.baseline == "none":
            return self.sums
        if self.baseline == "neutral":
            mean, factor = mean_of_texts(self.lm, neutral, max_length), 1.0
        else:
            mean, factor = self.hidden / n, n / (n - 1)
        values: np.ndarray = factor * (self.sums - self.directions @ mean.T)
        return values


def mean_of_texts(lm: LoadedModel, texts: Sequence[str], max_length: int) -> Float64[np.ndarray, "depths d"]:
    """Return the mean normed hidden state at every depth, over the positions that predict a token except the first."""
    total, count = np.zeros((lm.n_layers + 1, lm.unembedding[0].shape[1])), 0
    for batch in batches(lm, texts, max_length=max_length, describe="neutral texts"):
        kept = predicted(batch)
        kept[:, 0] = False
        total += _array(hidden_by_depth(lm, batch, kept, lambda hidden: hidden.double().sum(0)))
        count += int(kept.sum())
    mean: np.ndarray = total / count
    return mean


def _array(values: Tensor) -> Float64[np.ndarray, "..."]:
    array: np.ndarray = values.double().cpu().numpy()
    return array
