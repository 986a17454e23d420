"""Slow reference for patching: plain Hugging Face forward passes, one text at a time."""

import torch
from torch.nn import functional as F

from tests.localization.by_hand import ids_of
from tests.localization.prefixes_by_hand import PAIRS
from toxloc.localization.first_difference import first_differences
from toxloc.localization.pair_batch import PairReader
from toxloc.models.sites import Site

HEAD = (Site(1, "attention"), 1)
NEURON = (Site(0), 5)


def outputs_of(lm, ids, part):
    """Return what a part computes [pos, d] in the plain Hugging Face model."""
    kept = []
    handle = placed(lm, part, lambda x: kept.append(x.clone()))
    with torch.no_grad():
        lm.hf(input_ids=ids)
    handle.remove()
    return kept[0]


def placed(lm, part, change):
    """Hook a site's term in the residual stream, or a unit's keys; `change` takes [pos, d] and returns None or new."""
    if isinstance(part, Site):

        def after(module, args, out):
            new = change(out.reshape(-1, out.shape[-1]))
            return None if new is None else new.reshape(out.shape)

        return lm.contribution(part).register_forward_hook(after)
    view = lm.at(part[0])
    columns = range(part[1] * view.width, (part[1] + 1) * view.width)

    def before(module, args):
        flat = args[0].clone().reshape(-1, args[0].shape[-1])
        new = change(flat[:, columns])
        if new is None:
            return None
        flat[:, columns] = new
        return (flat.reshape(args[0].shape),)

    return lm.down_projection(part[0]).register_forward_pre_hook(before)


def logits_with(lm, ids, part, positions, values):
    """Return the logits [pos, d_vocab] with a part's values at some positions replaced."""

    def change(x):
        new = x.clone()
        new[positions] = values.to(x)
        return new

    handle = placed(lm, part, change)
    with torch.no_grad():
        logits = lm.hf(input_ids=ids).logits[0]
    handle.remove()
    return logits


def mean_log_p(logits, ids, begin):
    """Return the mean log-probability of the tokens from `begin` on."""
    return -F.cross_entropy(logits[begin - 1 : -1].double(), ids[0, begin:]).item()


def mean_of(lm, part):
    return torch.cat([outputs_of(lm, ids_of(lm, text), part)[1:] for text in PAIRS.neutral]).mean(0)


def new_values(lm, by, part, ids, other):
    """Return the new values at all positions but the first."""
    own = outputs_of(lm, ids, part)
    if by == "zero":
        return torch.zeros_like(own[1:])
    if by == "mean":
        return mean_of(lm, part).expand(len(own) - 1, -1)
    donor = outputs_of(lm, other, part)
    return torch.stack([donor[min(t, len(donor) - 1)] for t in range(1, len(own))])


def others(lm, over="first", seed=0):
    usable = first_differences(lm, PAIRS).usable
    return PairReader(lm, usable, "resample", over, seed=seed, skip_first=True).other
