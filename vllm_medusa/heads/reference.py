# SPDX-License-Identifier: Apache-2.0
"""Medusa heads in plain PyTorch, one head after the other.

Readable first: the formulas as they stand, and what the fast module in `medusa_heads`
and the stacked weights of training are tested against.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vllm_medusa.errors import CheckpointError
from vllm_medusa.heads.spec import HeadsSpec


class MlpLayer(nn.Module):
    """W2 SiLU(W1 x + b1) + b2; zero at the start, so that the block is x."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)
        nn.init.zeros_(self.down.weight)
        if bias:
            nn.init.zeros_(self.down.bias)

    # x: [..., hidden_size]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer, [..., hidden_size]."""
        return self.down(F.silu(self.up(x)))


class HeadBlocks(nn.Module):
    """The L blocks of one head (arXiv 2401.10774, section 2.1.1)."""

    def __init__(self, spec: HeadsSpec) -> None:
        super().__init__()
        self.kind = spec.block
        hidden, bias = spec.hidden_size, spec.block_bias
        layers: list[nn.Module] = []
        for _ in range(spec.num_layers):
            if spec.intermediate_size is not None:
                layers.append(MlpLayer(hidden, spec.intermediate_size, bias))
                continue
            linear = nn.Linear(hidden, hidden, bias=bias)
            if self.kind == "residual":
                # As in the reference: a fresh head is the base model's LM head.
                nn.init.zeros_(linear.weight)
                if bias:
                    nn.init.zeros_(linear.bias)
            layers.append(linear)
        self.layers = nn.ModuleList(layers)
        if self.kind == "layernorm":
            self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in layers)

    # x: [..., hidden_size]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The head's features, [..., hidden_size]."""
        for index, layer in enumerate(self.layers):
            if self.kind == "residual":
                x = x + F.silu(layer(x))
            elif self.kind == "mlp":
                x = x + layer(x)
            else:
                x = F.silu(self.norms[index](layer(x)))
        return x


class LowRankProjection(nn.Module):
    """up [vocab, rank] @ down [rank, hidden]."""

    def __init__(self, hidden_size: int, rank: int, vocab_size: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, rank, bias=False)
        self.up = nn.Linear(rank, vocab_size, bias=False)

    # x: [..., hidden_size]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, [..., vocab]."""
        return self.up(self.down(x))


class ReferenceHeads(nn.Module):
    """K heads; `state_dict()` has exactly the canonical checkpoint names.

    Args:
        spec: the heads' architecture.
        token_map: int64 [draft_vocab_size], required if the spec has a draft
            vocabulary (loading a state dict replaces it).

    Raises:
        CheckpointError: token_map and spec disagree.
    """

    token_map: torch.Tensor | None

    def __init__(
        self, spec: HeadsSpec, *, token_map: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.blocks = nn.ModuleList(HeadBlocks(spec) for _ in range(spec.num_heads))
        hidden, vocab = spec.hidden_size, spec.projected_vocab_size
        if spec.projection != "shared" and vocab is None:
            raise CheckpointError(
                f"projection {spec.projection!r} needs a vocabulary size"
            )
        if spec.projection == "single":
            self.lm_head = nn.Linear(hidden, vocab or 0, bias=False)
        elif spec.rank is not None:
            self.lm_heads = nn.ModuleList(
                LowRankProjection(hidden, spec.rank, vocab or 0) for _ in self.blocks
            )
        elif spec.projection == "own":
            self.lm_heads = nn.ModuleList(
                nn.Linear(hidden, vocab or 0, bias=False) for _ in self.blocks
            )
        given = None if token_map is None else token_map.numel()
        if given != spec.draft_vocab_size:
            raise CheckpointError(
                f"token_map holds {given} tokens, the spec says {spec.draft_vocab_size}"
            )
        self.register_buffer("token_map", token_map)

    @classmethod
    def from_tensors(
        cls, spec: HeadsSpec, tensors: dict[str, torch.Tensor]
    ) -> ReferenceHeads:
        """Heads in float32 with the weights of a checkpoint."""
        heads = cls(spec, token_map=tensors.get("token_map"))
        heads.load_state_dict(tensors)
        return heads

    # features: [..., hidden_size] of head `head`
    # lm_head: [vocab_size, hidden_size], the base model's, for a shared projection
    def project(
        self, head: int, features: torch.Tensor, lm_head: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits of one head, [..., draft vocabulary].

        Raises:
            CheckpointError: the projection is shared and no LM head is given.
        """
        if self.spec.projection == "single":
            return self.lm_head(features)
        if self.spec.projection != "shared":
            return self.lm_heads[head](features)
        if lm_head is None:
            raise CheckpointError("a shared projection needs the base model's LM head")
        rows = lm_head if self.token_map is None else lm_head[self.token_map]
        return F.linear(features, rows)

    # hidden: [..., hidden_size], last hidden state after the final norm
    # lm_head: [vocab_size, hidden_size]
    def forward(
        self, hidden: torch.Tensor, lm_head: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits of all heads, [..., num_heads, draft vocabulary]."""
        logits = [
            self.project(head, block(hidden), lm_head)
            for head, block in enumerate(self.blocks)
        ]
        return torch.stack(logits, dim=-2)

    # hidden: [batch, hidden_size]; lm_head: [vocab_size, hidden_size]
    def top_k(
        self,
        hidden: torch.Tensor,
        num_heads: int,
        k: int,
        lm_head: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `MedusaHeads.top_k` returns, the plain way."""
        log_probs = self(hidden, lm_head)[:, :num_heads].float().log_softmax(dim=-1)
        values, ids = log_probs.topk(k, dim=-1)
        return values, ids if self.token_map is None else self.token_map[ids]
