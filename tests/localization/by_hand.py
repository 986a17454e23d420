"""Slow reference: one text at a time through the plain Hugging Face model, with forward hooks and full autograd."""

import numpy as np
import torch
from torch.nn import functional as F

from toxloc.models.sites import Site


def ids_of(lm, text):
    return torch.tensor([[0, *lm.tokenizer(text)["input_ids"]]])


def rows_of(lm, texts, site, skip_first=True):
    """Return the keys [tokens, d_in] and outputs [tokens, d_model] of a site at the tokens of all texts, in float64."""
    keys, outputs = [], []

    def keep(module, args, out):
        keys.append(args[0].detach().flatten(0, -2)[int(skip_first) :].double())
        outputs.append(out.detach().flatten(0, -2)[int(skip_first) :].double())

    handle = lm.down_projection(site).register_forward_hook(keep)
    with torch.no_grad():
        for text in texts:
            lm.hf(input_ids=ids_of(lm, text))
    handle.remove()
    return torch.cat(keys), torch.cat(outputs)


def statistics_of(lm, texts, sites, skip_first=True):
    """Return G, C, S, attribution, keys and outputs of every site, from autograd on the weights, text by text.

    Attribution is minus the sum over tokens of <c - b, dNLL/dc>, with c the site's output to the residual stream.
    """
    first = int(skip_first)
    results = {Site.of(site): {"G": 0.0, "C": [], "S": [], "a": [], "m": [], "attribution": []} for site in sites}
    predicted, total = 0, 0.0
    for text in texts:
        ids, kept, handles = ids_of(lm, text), {}, []
        for site in results:

            def on_linear(module, args, out, site=site, kept=kept):
                out.retain_grad()
                kept[site, "a"], kept[site, "m"] = args[0].detach().flatten(0, -2), out

            def on_writer(module, args, out, site=site, kept=kept):
                out.retain_grad()
                kept[site, "c"] = out

            handles += [
                lm.down_projection(site).register_forward_hook(on_linear),
                lm.contribution(site).register_forward_hook(on_writer),
            ]
        lm.hf.requires_grad_(True)
        loss = F.cross_entropy(lm.hf(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        loss.backward()
        total += loss.item()
        predicted += ids.shape[1] - 1
        for site, result in results.items():
            linear, a = lm.down_projection(site), kept[site, "a"]
            delta = kept[site, "m"].grad.flatten(0, -2)
            gradient = linear.weight.grad if type(linear).__name__ == "Conv1D" else linear.weight.grad.T
            result["G"] = result["G"] + gradient - (torch.outer(a[0], delta[0]) if skip_first else 0)
            result["C"] += [torch.outer(x, x) for x in a]
            result["S"] += [torch.outer(x, x) for x in delta]
            result["a"].append(a[first:].double())
            result["m"].append(kept[site, "m"].detach().flatten(0, -2)[first:].double())
            c, slope = kept[site, "c"], kept[site, "c"].grad.flatten(0, -2)[first:]
            bias = linear.bias if lm.contribution(site) is linear else None
            written = c.detach().flatten(0, -2)[first:] - (0 if bias is None else bias.detach())
            result["attribution"].append(-(written.double() * slope.double()).sum().item())
        for handle in handles:
            handle.remove()
        lm.hf.zero_grad(set_to_none=True)
        lm.hf.requires_grad_(False)
    for result in results.values():
        result |= {
            "G": result["G"] / predicted,
            "C": torch.stack(result["C"]).mean(0),
            "S": torch.stack(result["S"]).sum(0) / predicted,
            "a": torch.cat(result["a"]),
            "m": torch.cat(result["m"]),
        }
    return results, total / predicted, predicted


def contrast_of(lm, pairs, hooks=()):
    """Return NLL_T - NLL_N per token, from one text at a time through the hooked model with `hooks`."""
    sides = []
    for texts in (pairs.toxic, pairs.neutral):
        total, count = 0.0, 0
        for text in texts:
            ids = ids_of(lm, text)
            with torch.no_grad(), lm.hooks(hooks):
                logits = lm.forward(ids, torch.ones_like(ids))
            total += F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
        sides.append(total / count)
    return sides[0] - sides[1]


def scaled_after_first(factor, keys=slice(None)):
    """Return a hook that multiplies some elements of an activation at all tokens but the first."""

    def hook(x):
        flat = x.flatten(2).clone()
        flat[:, 1:, keys] *= factor
        return flat.view_as(x)

    return hook


def slope_of(lm, pairs, place, step, keys=slice(None)):
    """Return the slope of the contrast as some elements of an activation are scaled down, by a central difference."""
    less, more = (contrast_of(lm, pairs, [(place, scaled_after_first(1 + sign * step, keys))]) for sign in (-1, 1))
    return (less - more) / (2 * step)


def norm_of_heads(z, n_heads):
    """Return the Euclidean norm of every head's part of z."""
    return np.linalg.norm(z.reshape(len(z), n_heads, -1), axis=2)
