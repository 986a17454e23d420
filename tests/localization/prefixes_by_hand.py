"""Slow reference for pairs that share a prefix: plain Hugging Face forward passes, one pair at a time."""

import torch

from toxloc import ContrastSet
from toxloc.models.sites import Site

from .by_hand import ids_of

PAIRS = ContrastSet(
    [
        "They are all fools and liars.",
        "What a dull and stupid idea.",
        "Good morning!",
        "You should never trust such an idiot again.",
        "Nobody asked for your nasty opinion.",
    ],
    [
        "They are all here now.",
        "What a dull day.",
        "Nice to see you!",
        "You should never trust such a promise.",
        "Nobody asked for your kind of help, but thank you.",
    ],
    paired=True,
)
USABLE = (0, 1, 3, 4)


def prefix_and_tokens(lm, i, pairs=PAIRS):
    """Return the ids of the shared prefix [1, pos], and the tokens at the first difference."""
    toxic, neutral = (ids_of(lm, side[i])[0].tolist() for side in (pairs.toxic, pairs.neutral))
    shared = 0
    while toxic[shared] == neutral[shared]:
        shared += 1
    return torch.tensor([toxic[:shared]]), toxic[shared], neutral[shared]


def difference_of(logits, toxic, neutral):
    """Return log p(toxic) - log p(neutral) from the logits of one position."""
    p = logits.double().softmax(-1)
    return p[toxic].log() - p[neutral].log()


def values_of(lm, i, sites, baseline, skip_first=False, pairs=PAIRS):
    """Return dD/da * (a - baseline) of every site [pos, d_in] at the positions that count, and D, from autograd."""
    ids, toxic, neutral = prefix_and_tokens(lm, i, pairs)
    kept, handles = {}, []
    for site in map(Site.of, sites):

        def keep(module, args, site=site):
            args[0].retain_grad()
            kept[site] = args[0]

        handles.append(lm.down_projection(site).register_forward_pre_hook(keep))
    lm.hf.requires_grad_(True)
    difference = difference_of(lm.hf(input_ids=ids).logits[0, -1], toxic, neutral)
    difference.backward()
    lm.hf.zero_grad(set_to_none=True)
    lm.hf.requires_grad_(False)
    for handle in handles:
        handle.remove()
    values = {}
    for site, a in kept.items():
        gradient, keys = (x.detach().flatten(0, -2)[int(skip_first) :].double() for x in (a.grad, a))
        values[site] = gradient * (keys - baseline[site])
    return values, difference.item()
