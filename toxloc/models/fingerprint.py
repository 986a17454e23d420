"""Fingerprints: hashes that tell models apart by their weights."""

import hashlib
import json
from collections.abc import Sequence

from torch import Tensor, nn

from .quantized import plain_tensors
from .weights import checksum

PREFIX = "w2-"


def fingerprint_of(model: nn.Module, model_type: str) -> str:
    """Return a hash of the family, and of the names, shapes and bits of all weights in their current state.

    Args:
        model: the module tree with the weights.
        model_type: name of the family.
    """
    shapes = [(name, list(weight.shape), str(weight.dtype)) for name, weight in plain_tensors(model)]
    content = json.dumps([model_type, shapes, checksum(model)])
    return PREFIX + hashlib.sha256(content.encode()).hexdigest()[:16]


def is_current(fingerprint: str) -> bool:
    """Return whether a fingerprint is of the kind that `fingerprint_of` makes."""
    return fingerprint.startswith(PREFIX)


def fingerprint_0_1(model_type: str, weights: Sequence[Tensor]) -> str:
    """Return the fingerprint of toxloc 0.1: a hash of the shape and of about 16 rows of W_out of every layer."""
    d_mlp, d_model = weights[0].shape
    digest = hashlib.sha256(json.dumps([model_type, len(weights), d_mlp, d_model]).encode())
    for weight in weights:
        digest.update(weight[:: max(1, d_mlp // 16)].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
