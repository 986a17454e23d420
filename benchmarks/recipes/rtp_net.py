"""The second part of toxloc-rtp: a network with one hidden layer on the sum of short vectors of a text's terms."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from benchmarks.recipes.rtp_linear import Model
from benchmarks.recipes.rtp_rows import Rows
from toxloc.evaluation.evaluators.rtp import ATTRIBUTES, features

SEED = 0
D_TERM = 24  # numbers per term
D_HIDDEN = 64
DROPPED_TERMS, DROPPED_HIDDEN = 0.1, 0.2
LR, LR_LINEAR = 2e-3, 2e-4
EPOCHS, BATCH = 4, 256
REPEATED = 2  # times that a text with a score is seen per pass, where a labelled comment is seen once

Bags = tuple[Int[Tensor, " n"], Int[Tensor, " texts"], Float[Tensor, " n"]]


class Net(nn.Module):
    """The linear part, which starts at the ridge regression, and the network, which starts at zero."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        super().__init__()
        n_terms = len(tensors["weights"])
        self.linear = nn.EmbeddingBag(n_terms, len(ATTRIBUTES), mode="sum")
        self.linear.weight.data = torch.tensor(tensors["weights"]).float()
        self.bias = nn.Parameter(torch.tensor(tensors["bias"]).float())
        self.terms = nn.EmbeddingBag(n_terms, D_TERM, mode="sum")
        nn.init.normal_(self.terms.weight, std=0.3)
        self.hidden, self.out = nn.Linear(D_TERM, D_HIDDEN), nn.Linear(D_HIDDEN, len(ATTRIBUTES), bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, terms: Tensor, starts: Tensor, weights: Tensor) -> Float[Tensor, "texts n_attributes"]:
        """Return the logits of texts, whose terms follow each other in one list."""
        if self.training:
            weights = F.dropout(weights, DROPPED_TERMS)
        hidden = torch.relu(self.hidden(self.terms(terms, starts, per_sample_weights=weights)))
        linear = self.linear(terms, starts, per_sample_weights=weights) + self.bias
        logits: Tensor = linear + self.out(F.dropout(hidden, DROPPED_HIDDEN, self.training))
        return logits


def bags(x: csr_matrix, index: Int[np.ndarray, " texts"]) -> Bags:
    """Return the terms of some texts, where each text starts, and the tf-idf weights."""
    part = x[index]
    return (
        torch.tensor(part.indices, dtype=torch.long),
        torch.tensor(part.indptr[:-1], dtype=torch.long),
        torch.tensor(part.data, dtype=torch.float32),
    )


def refined(model: Model, rows: Rows, comments: Rows) -> Model:
    """Train the linear part further together with the network, on scores and labelled comments."""
    tensors, terms = model
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    x = features(tensors, terms)(rows.texts + comments.texts)
    scores = torch.tensor(np.concatenate([rows.scores, comments.scores]), dtype=torch.float32)
    net = Net(tensors).train()
    groups = [{"params": [net.linear.weight], "lr": LR_LINEAR}]
    groups.append({"params": [value for name, value in net.named_parameters() if name != "linear.weight"], "lr": LR})
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda epoch: max(0.05, 1 - epoch / EPOCHS))
    every = np.concatenate([np.tile(np.arange(len(rows.texts)), REPEATED), np.arange(len(rows.texts), x.shape[0])])
    for _ in range(EPOCHS):
        order = rng.permutation(every)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            loss = F.binary_cross_entropy_with_logits(net(*bags(x, batch)), scores[batch])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        schedule.step()
    learned = {name: value.detach().numpy() for name, value in net.named_parameters()}
    return {
        **tensors,
        "weights": learned["linear.weight"].astype(np.float16),
        "bias": learned["bias"],
        "embedding": learned["terms.weight"].astype(np.float16),
        "hidden": learned["hidden.weight"].T,
        "hidden_bias": learned["hidden.bias"],
        "out": learned["out.weight"].T,
    }, terms
