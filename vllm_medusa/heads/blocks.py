# SPDX-License-Identifier: Apache-2.0
"""All heads' blocks as stacked weights: one product per layer for all heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from vllm_medusa.heads.parallel import TensorParallel
from vllm_medusa.heads.spec import HeadsSpec


class StackedLinear(nn.Module):
    """One linear layer of every head, weight [num_heads, out, in].

    Layer 0 of all heads reads the same hidden state, so it is a single matrix
    product over [num_heads * out, in]; later layers are a batched product. The
    first n heads are a view of the weights: nothing is copied per step.

    Attributes:
        weight: [num_heads, out, in], this rank's part.
        bias: [num_heads, out] or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous(), persistent=False)
        self.register_buffer(
            "bias", None if bias is None else bias.contiguous(), persistent=False
        )

    # x: [batch, in], the same for all heads
    def from_shared(self, x: torch.Tensor, num_heads: int) -> torch.Tensor:
        """Outputs of the first heads, [num_heads, batch, out]."""
        weight = self.weight[:num_heads].flatten(0, 1)
        bias = None if self.bias is None else self.bias[:num_heads].flatten()
        y = F.linear(x, weight, bias)
        return y.unflatten(-1, (num_heads, -1)).transpose(0, 1)

    # x: [num_heads, batch, in]
    def from_each(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs of the first heads, [num_heads, batch, out]."""
        num_heads = x.shape[0]
        weight = self.weight[:num_heads].transpose(1, 2)
        if self.bias is None:
            return torch.bmm(x, weight)
        return torch.baddbmm(self.bias[:num_heads].unsqueeze(1), x, weight)


class FusedBlocks(nn.Module):
    """The blocks of all heads, tensor-parallel.

    "residual" and "layernorm" layers are split by output and gathered; "mlp"
    layers are split by their inner width, and the second product is summed.
    """

    down_bias: torch.Tensor
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor

    def __init__(
        self,
        spec: HeadsSpec,
        tensors: Mapping[str, torch.Tensor],
        parallel: TensorParallel,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.parallel = parallel

        def stack(name: str, split: int | None) -> torch.Tensor:
            parts = [tensors[f"blocks.{head}.{name}"] for head in range(spec.num_heads)]
            if split is not None:
                parts = [parallel.shard(part, split) for part in parts]
            return torch.stack([part.to(device, dtype) for part in parts])

        layers = range(spec.num_layers)
        if spec.block == "mlp":
            names = [f"layers.{layer}.up" for layer in layers]
            self.down = nn.ModuleList(
                # The bias waits for the sum over the ranks.
                StackedLinear(stack(f"layers.{layer}.down.weight", 1), None)
                for layer in layers
            )
            if spec.block_bias:
                self._register("down_bias", lambda n: stack(n, None), "down.bias")
        else:
            names = [f"layers.{layer}" for layer in layers]
        self.linears = nn.ModuleList(
            StackedLinear(
                stack(f"{name}.weight", 0),
                stack(f"{name}.bias", 0) if spec.block_bias else None,
            )
            for name in names
        )
        if spec.block == "layernorm":
            for part in ("weight", "bias"):
                self._register(f"norm_{part}", lambda n: stack(n, None), part, "norms")

    def _register(
        self,
        name: str,
        stack: Callable[[str], torch.Tensor],
        part: str,
        group: str = "layers",
    ) -> None:
        """A buffer [num_layers, num_heads, 1, hidden_size]."""
        vectors = [
            stack(f"{group}.{layer}.{part}") for layer in range(self.spec.num_layers)
        ]
        self.register_buffer(name, torch.stack(vectors).unsqueeze(2), persistent=False)

    @torch.no_grad()
    def update(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take other values of the same shapes from a checkpoint's tensors; in place,
        since captured graphs know the addresses."""
        own = dict(self.named_buffers())
        dtype = next(iter(own.values())).dtype
        other = FusedBlocks(
            self.spec, tensors, self.parallel, dtype=dtype, device=torch.device("cpu")
        )
        for name, buffer in other.named_buffers():
            own[name].copy_(buffer)

    # hidden: [batch, hidden_size]
    def forward(self, hidden: torch.Tensor, num_heads: int) -> torch.Tensor:
        """Features of the first `num_heads` heads, [num_heads, batch, hidden_size]."""
        width = self.spec.hidden_size
        x = hidden
        for layer, module in enumerate(self.linears):
            linear = cast(StackedLinear, module)
            if layer == 0:
                y = linear.from_shared(hidden, num_heads)
            else:
                y = linear.from_each(x)
            if self.spec.block == "mlp":
                down = cast(StackedLinear, self.down[layer])
                y = self.parallel.sum(down.from_each(F.silu(y)))
                if self.spec.block_bias:
                    y = y + self.down_bias[layer, :num_heads]
                x = x + y
                continue
            y = self.parallel.gather(y, width)
            if self.spec.block == "residual":
                x = x + F.silu(y)
                continue
            y = F.layer_norm(y, (width,))
            scale = self.norm_weight[layer, :num_heads]
            x = F.silu(torch.addcmul(self.norm_bias[layer, :num_heads], y, scale))
        return x
