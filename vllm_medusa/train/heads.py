# SPDX-License-Identifier: Apache-2.0
"""Heads as training wants them: all heads' weights stacked, any part of the vocabulary.

The canonical tensors come out of `tensors()`; `heads.reference` computes the same
function from them one head at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from vllm_medusa.heads.spec import HeadsSpec


class TrainableHeads(nn.Module):
    """Medusa heads with float32 weights stacked over heads, [K, …].

    At the start every head repeats the base model's own guess, as the paper's do
    (section 2.2.1): a block's last linear layer is zero and the projection is the
    base LM head, or its best approximation of rank r. Blocks without a residual
    can't start there; theirs is PyTorch's initialisation.

    Args:
        spec: architecture; `draft_vocab_size` must be set.
        token_map: [Vd] int64.
        lm_head: [V, H], the base model's.
        compute_dtype: of the products; weights stay float32.
        dropout: on an "mlp" block's inner activations.
    """

    token_map: torch.Tensor
    base_rows: torch.Tensor

    def __init__(
        self,
        spec: HeadsSpec,
        token_map: torch.Tensor,
        lm_head: torch.Tensor,
        *,
        compute_dtype: torch.dtype = torch.bfloat16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.compute_dtype = compute_dtype
        self.dropout = dropout
        self.register_buffer("token_map", token_map, persistent=False)
        rows = lm_head[token_map]
        # [Vd, H], the base LM head's rows: frozen, also the teacher's projection.
        self.register_buffer("base_rows", rows.to(compute_dtype), persistent=False)
        self.blocks = nn.ParameterDict()
        for layer in range(spec.num_layers):
            self._add_layer(layer)
        self.projection = nn.ParameterDict()
        self._add_projection(rows.float())

    def _add_layer(self, layer: int) -> None:
        spec = self.spec
        heads, hidden = spec.num_heads, spec.hidden_size
        zeros = torch.zeros
        if spec.block == "mlp":
            assert spec.intermediate_size is not None
            inner = spec.intermediate_size
            up = torch.randn(heads, inner, hidden) * hidden**-0.5
            weights = {"up.weight": up, "down.weight": zeros(heads, hidden, inner)}
            biases = {"up.bias": zeros(heads, inner), "down.bias": zeros(heads, hidden)}
        else:
            weight = zeros(heads, hidden, hidden)
            if spec.block == "layernorm":
                weight = torch.randn(heads, hidden, hidden) * hidden**-0.5
            weights, biases = {"weight": weight}, {"bias": zeros(heads, hidden)}
        if spec.block_bias:
            weights |= biases
        if spec.block == "layernorm":
            weights |= {
                "norm.weight": torch.ones(heads, hidden),
                "norm.bias": zeros(heads, hidden),
            }
        for name, value in weights.items():
            # ParameterDict keys must not hold a dot in a state dict's path
            self.blocks[f"{layer}_{name.replace('.', '_')}"] = nn.Parameter(value)

    def _add_projection(self, rows: torch.Tensor) -> None:
        spec = self.spec
        if spec.projection == "single":
            self.projection["weight"] = nn.Parameter(rows.clone())
        elif spec.projection == "own":
            stacked = rows.expand(spec.num_heads, -1, -1).clone()
            self.projection["weight"] = nn.Parameter(stacked)
        elif spec.projection == "low_rank":
            u, s, v = torch.linalg.svd(rows, full_matrices=False)
            root = s[: spec.rank].sqrt()
            up, down = u[:, : spec.rank] * root, root[:, None] * v[: spec.rank]
            for name, value in (("up", up), ("down", down)):
                stacked = value.expand(spec.num_heads, -1, -1).clone()
                self.projection[name] = nn.Parameter(stacked)

    # hidden: [B, H] -> [K, B, H]
    def states(self, hidden: torch.Tensor) -> torch.Tensor:
        """Each head's state before the projection, in the compute dtype."""
        x = hidden.to(self.compute_dtype).expand(self.spec.num_heads, -1, -1)
        for layer in range(self.spec.num_layers):
            x = self._layer(layer, x)
        return x

    def _layer(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        if self.spec.block == "mlp":
            inner = F.silu(self._linear(f"{layer}_up", x))
            inner = F.dropout(inner, self.dropout, self.training)
            return x + self._linear(f"{layer}_down", inner)
        y = self._linear(f"{layer}", x)
        if self.spec.block == "residual":
            return x + F.silu(y)
        y = F.layer_norm(y.float(), y.shape[-1:])
        weight, bias = (
            self.blocks[f"{layer}_norm_weight"],
            self.blocks[f"{layer}_norm_bias"],
        )
        return F.silu(y * weight[:, None] + bias[:, None]).to(self.compute_dtype)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self.blocks[f"{name}_weight"].to(self.compute_dtype).transpose(1, 2)
        if not self.spec.block_bias:
            return torch.bmm(x, weight)
        bias = self.blocks[f"{name}_bias"].to(self.compute_dtype)
        return torch.baddbmm(bias[:, None], x, weight)

    # states: [K, B, H], ids: [S] -> [K, B, S]
    def logits(
        self, states: torch.Tensor, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores of the draft tokens `ids` (all if None), in the compute dtype."""
        states, rows = self.projected(states)
        rows = (rows if ids is None else rows[..., ids, :]).to(self.compute_dtype)
        if rows.dim() == 3:
            return torch.bmm(states, rows.transpose(1, 2))
        flat = states.reshape(-1, states.shape[-1]) @ rows.T
        return flat.view(*states.shape[:2], -1)

    # states: [K, B, H]; lm_head: [V, H]
    def projected(
        self, states: torch.Tensor, lm_head: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The last product's two factors, for losses over chunks of the vocabulary.

        Args:
            states: from `states`.
            lm_head: the base model's as it is now, which "shared" heads project with;
                None: as it was when the heads were made.

        Returns:
            [K, B, n] in the compute dtype, and [Vd, n] for all heads or [K, Vd, n],
            n being H or the rank; with gradients for weights and `lm_head`.
        """
        kind = self.spec.projection
        if kind == "shared":
            rows = self.base_rows if lm_head is None else lm_head[self.token_map]
            return states, rows
        if kind == "low_rank":
            down = self.projection["down"].to(self.compute_dtype)
            return torch.bmm(states, down.transpose(1, 2)), self.projection["up"]
        return states, self.projection["weight"]

    # hidden: [B, H] -> [B, S]
    def base_logits(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The base model's own scores of the draft tokens `ids`, float32."""
        return (hidden.to(self.compute_dtype) @ self.base_rows[ids].T).float()

    @torch.no_grad()
    def tensors(self, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
        """The canonical tensors, as `spec.tensor_shapes()` names them."""
        tensors = {name: view.to(dtype) for name, view in self._canonical_views()}
        tensors["token_map"] = self.token_map.clone()
        return {name: value.contiguous() for name, value in tensors.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the weights of canonical tensors of this spec."""
        for name, view in self._canonical_views():
            view.copy_(tensors[name])

    def _canonical_views(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Canonical names with the part of the stacked weights that each stands for."""
        for key, stacked in self.blocks.items():
            layer, name = key.split("_", 1)
            kind, suffix = "layers", f".{name.replace('_', '.')}"
            if name.startswith("norm_"):
                kind, suffix = "norms", f".{name.removeprefix('norm_')}"
            for head, view in enumerate(stacked):
                yield f"blocks.{head}.{kind}.{layer}{suffix}", view
        if self.spec.projection == "single":
            yield "lm_head.weight", self.projection["weight"]
            return
        for part, stacked in self.projection.items():
            infix = "" if part == "weight" else f"{part}."
            for head, view in enumerate(stacked):
                yield f"lm_heads.{head}.{infix}weight", view
