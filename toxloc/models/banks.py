"""Banks: modules that hold the weights of all routed experts of a block as one tensor [experts, ...].

A bank runs several experts in one call, so ordinary hooks cannot tell them apart. While a bank is watched, it computes
its experts one after another, and shows each expert's activations to the watchers. Three layouts exist in transformers:

* "fused": called with the tokens, the chosen experts and the router weights (most families);
* "batched": called with the tokens repeated for each expert, already multiplied by the router weights (Llama 4);
* "parallel": called with the tokens sorted by expert; the caller multiplies by the router weights (JetMoE).
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Layout = Literal["fused", "batched", "parallel"]


@dataclass(frozen=True)
class Routed:
    """The tokens that one call of a bank routes to one expert.

    Attributes:
        expert: number of the expert.
        activations: activations of the expert's neurons, the inputs of its W_out [n, d_in].
        keys: what the expert's W_out maps to its share of the block's output: the activations times the router weights
            (Llama 4 multiplies the expert's inputs instead, so that keys and activations are equal) [n, d_in].
        tokens: index of each token in the flattened batch.
        router: router weight of each token.
        rows: row of the bank's flattened output that holds the expert's output for each token.
        after: whether the caller of the bank multiplies the output by the router weights.
    """

    expert: int
    activations: Float[Tensor, "n d_in"]
    keys: Float[Tensor, "n d_in"]
    tokens: Int[Tensor, " n"]
    router: Float[Tensor, " n"]
    rows: Int[Tensor, " n"]
    after: bool = False


Watcher = Callable[[Routed], None]
Transform = Callable[[Tensor], Tensor]


def layout_of(module: nn.Module) -> Layout | None:
    """Return how a module holds experts, or None if it holds no experts that toxloc can read."""
    if hasattr(module, "_apply_gate") and hasattr(module, "is_transposed") and hasattr(module, "down_proj"):
        return None if getattr(module, "has_post_expert_norm", False) else "fused"
    name = type(module).__name__
    if name == "Llama4TextExperts":
        return "batched"
    return "parallel" if name.endswith("ParallelExperts") else None


class Bank:
    """A bank of experts in one module tree.

    Args:
        module: the module that holds the experts.
        router: the module that chooses the experts; needed for the layouts "batched" and "parallel".
    """

    def __init__(self, module: nn.Module, router: nn.Module | None = None):
        layout = layout_of(module)
        assert layout is not None
        self.module, self.router, self.layout = module, router, layout
        self.watchers: list[Watcher] = []
        self.on_keys: list[tuple[int, Transform]] = []
        self.on_outputs: list[tuple[int, Transform]] = []
        self._routing: tuple[Tensor, ...] = ()

    @property
    def parameter(self) -> str:
        """Name, in the module, of the parameter that holds W_out of all experts."""
        return "weight" if self.layout == "parallel" else "down_proj"

    @property
    def weight(self) -> Tensor:
        """The parameter that holds W_out of all experts."""
        return self.module.get_parameter(self.parameter)

    @property
    def bias(self) -> Tensor | None:
        """The parameter that holds the biases of all experts [experts, d_model], or None."""
        has_bias = self.layout == "fused" and bool(self.module.has_bias)
        return self.module.get_parameter("down_proj_bias") if has_bias else None

    @property
    def is_transposed(self) -> bool:
        """Whether the parameter is [experts, d_in, d_model] instead of [experts, d_model, d_in]."""
        return self.layout == "batched" or (self.layout == "fused" and bool(self.module.is_transposed))

    @property
    def n_experts(self) -> int:
        """Number of experts."""
        return int(self.weight.shape[0])

    def weights(self, expert: int) -> tuple[Float[Tensor, "d_in d_model"], Float[Tensor, " d_model"] | None]:
        """Return live views of an expert's W_out and bias."""
        weight, bias = self.weight[expert], self.bias
        return weight if self.is_transposed else weight.T, None if bias is None else bias[expert]

    def watch(self, watcher: Watcher, stack: ExitStack) -> None:
        """Show every expert's activations to a watcher until the stack is closed."""
        self._add(self.watchers, watcher, stack)

    def change_keys(self, expert: int, transform: Transform, stack: ExitStack) -> None:
        """Change the activations of an expert's neurons until the stack is closed."""
        self._add(self.on_keys, (expert, transform), stack)

    def change_output(self, expert: int, transform: Transform, stack: ExitStack) -> None:
        """Change the output of an expert, before the router weights, until the stack is closed."""
        self._add(self.on_outputs, (expert, transform), stack)

    def _add(self, items: list[Any], item: Any, stack: ExitStack) -> None:
        if not (self.watchers or self.on_keys or self.on_outputs):
            self._install()
        items.append(item)

        def remove() -> None:
            items[:] = [kept for kept in items if kept is not item]
            if not (self.watchers or self.on_keys or self.on_outputs):
                self._uninstall()

        stack.callback(remove)

    def _install(self) -> None:
        """Replace the module's computation; accelerate keeps the original one under another name."""
        name = "_old_forward" if hasattr(self.module, "_hf_hook") else "forward"
        self._replaced = name, self.module.__dict__.get(name)
        self._handle = None
        if self.layout != "fused":
            assert self.router is not None
            self._handle = self.router.register_forward_hook(self._keep_routing)
        forward = {"fused": self._fused, "batched": self._batched, "parallel": self._parallel}[self.layout]
        self.module.__dict__[name] = forward

    def _uninstall(self) -> None:
        name, before = self._replaced
        if before is None:
            del self.module.__dict__[name]
        else:
            self.module.__dict__[name] = before
        if self._handle is not None:
            self._handle.remove()

    def _keep_routing(self, module: nn.Module, args: Any, output: Any) -> None:
        self._routing = tuple(output)

    def _expert(self, routed: Routed) -> Float[Tensor, "n d_model"]:
        """Show an expert's activations, apply the changes, and return its output without the router weights."""
        a = routed.activations
        for expert, transform in self.on_keys:
            if expert == routed.expert:
                a = _in_float32(transform, a)
        if a is not routed.activations:
            scale = routed.router[:, None] if self.layout != "batched" else 1.0
            routed = Routed(
                routed.expert, a, (a * scale).to(a.dtype), routed.tokens, routed.router, routed.rows, routed.after
            )
        for watcher in self.watchers:
            watcher(routed)
        W, bias = self.weights(routed.expert)
        m = a @ W if bias is None else a @ W + bias
        for expert, transform in self.on_outputs:
            if expert == routed.expert:
                m = _in_float32(transform, m)
        return m

    def _fused(
        self,
        hidden_states: Float[Tensor, "*batch d_model"],
        top_k_index: Int[Tensor, "tokens k"],
        top_k_weights: Float[Tensor, "tokens k"],
    ) -> Float[Tensor, "*batch d_model"]:
        module: Any = self.module
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        out = torch.zeros_like(flat, dtype=torch.promote_types(flat.dtype, top_k_weights.dtype))
        top_k_index, top_k_weights = (x.reshape(len(flat), -1) for x in (top_k_index, top_k_weights))
        for expert in range(self.n_experts):
            tokens, slot = torch.where(top_k_index == expert)
            if not len(tokens):
                continue
            name = "gate_up_proj" if module.has_gate else "up_proj"
            weight: Tensor = getattr(module, name)[expert]
            pre = flat[tokens] @ (weight if module.is_transposed else weight.T)
            if module.has_bias:
                pre = pre + getattr(module, f"{name}_bias")[expert]
            a = module._apply_gate(pre) if module.has_gate else module.act_fn(pre)
            router = top_k_weights[tokens, slot]
            routed = Routed(expert, a, (a * router[:, None]).to(a.dtype), tokens, router, tokens)
            m = self._expert(routed) * router[:, None]
            out = out.index_add(0, tokens, m.to(out.dtype))
        return out.to(hidden_states.dtype).reshape(hidden_states.shape)

    def _batched(self, hidden_states: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        module: Any = self.module
        scores = self._routing[0]
        inputs = hidden_states.view(self.n_experts, -1, hidden_states.shape[-1])
        n = inputs.shape[1]
        out = torch.zeros_like(inputs)
        for expert in range(self.n_experts):
            tokens = torch.where(scores[:, expert] > 0)[0]
            if not len(tokens):
                continue
            gate, up = (inputs[expert, tokens] @ module.gate_up_proj[expert]).chunk(2, dim=-1)
            a = up * module.act_fn(gate)
            routed = Routed(expert, a, a, tokens, scores[tokens, expert], expert * n + tokens)
            out = out.index_put((torch.tensor(expert, device=out.device), tokens), self._expert(routed))
        return out.view(-1, hidden_states.shape[-1])

    def _parallel(self, inputs: Float[Tensor, "rows d_in"], expert_size: Any) -> Float[Tensor, "rows d_model"]:
        _, batch_index, gates = self._routing[:3]
        sizes = expert_size.tolist() if isinstance(expert_size, Tensor) else list(expert_size)
        outputs, start = [], 0
        for expert, size in enumerate(sizes):
            rows = torch.arange(start, start + size, device=inputs.device)
            start += size
            if size:
                a, router = inputs[rows], gates[rows]
                routed = Routed(
                    expert, a, (a * router[:, None]).to(a.dtype), batch_index[rows], router, rows, after=True
                )
                outputs.append(self._expert(routed))
        return torch.cat(outputs)


def _in_float32(transform: Transform, x: Tensor) -> Tensor:
    """Transform a 16-bit tensor in float32, and return the result in its own dtype."""
    return transform(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)
