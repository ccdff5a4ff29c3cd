# SPDX-License-Identifier: Apache-2.0
"""Backbone and heads as one module whose output is the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from vllm_medusa.train.chunked_loss import (
    Teacher,
    chunked_cross_entropy,
    chunked_kl,
    chunked_loss,
    rows_per_chunk,
)
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.medusa2.options import BaseLoss
from vllm_medusa.train.medusa2.tuned import TunedBackbone
from vllm_medusa.train.packing import PackedBatch
from vllm_medusa.train.vocabulary import inverse_map


@dataclass(frozen=True)
class LossWeights:
    """How the parts of the loss of one forward pass count.

    Attributes:
        base: weight of the backbone's loss, 1, or 0 while heads train alone.
        heads: λ0, weight of the heads' losses.
        per_target: [1 + K] float32, weight of one target: of the backbone, then of
            each head. One over the targets of a whole step makes its loss a mean.
    """

    base: float
    heads: float
    per_target: torch.Tensor


class JointModel(nn.Module):
    """L_LM + λ0 · Σ_k decay^k · L_k (paper, section 2.2.2), k from 1.

    L_LM is the cross-entropy or the KL divergence from the original model, L_k the
    cross-entropy of head k, each over the positions that answer tokens are drawn
    from. One module, so that DDP sees every use of a weight in one forward pass.

    Args:
        backbone: trained, or frozen (`TunedBackbone` itself).
        heads: trained.
        fit: how the heads' losses are made.
        base_loss: of the backbone.
    """

    draft_index: torch.Tensor
    decays: torch.Tensor

    def __init__(
        self,
        backbone: TunedBackbone,
        heads: TrainableHeads,
        fit: FitOptions,
        base_loss: BaseLoss,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads
        self.hard_weight = fit.hard_weight
        self.base_loss = base_loss
        spec = heads.spec
        assert spec.vocab_size is not None
        index = inverse_map(heads.token_map.cpu(), spec.vocab_size)
        self.register_buffer("draft_index", index, persistent=False)
        decays = [fit.head_decay**k for k in range(1, spec.num_heads + 1)]
        self.register_buffer("decays", torch.tensor(decays), persistent=False)

    def forward(
        self, batch: PackedBatch, weights: LossWeights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and each part's share of it [1 + K] without weight and gradient."""
        here = (batch.targets(1) >= 0).flatten().nonzero()[:, 0]  # [N]
        hidden = self.backbone.hidden(batch).flatten(0, 1)
        needs_original = (
            weights.base and self.base_loss == "kl"
        ) or self.hard_weight < 1
        original = None
        if needs_original:
            if self.backbone.trainable():
                original = self.backbone.original_hidden(batch).flatten(0, 1)
            else:
                original = hidden
        # The losses choose their own precision.
        with torch.autocast(hidden.device.type, enabled=False):
            heads_loss, heads_parts = self._heads_loss(
                hidden, original, here, batch, weights
            )
            base_loss = torch.zeros_like(heads_loss)
            if weights.base:
                base_loss = self._base_loss(hidden, original, here, batch, weights)
        loss = weights.base * base_loss + weights.heads * heads_loss
        return loss, torch.cat([base_loss.detach()[None], heads_parts])

    # hidden, original: [B * T, H]; here: [N]
    def _base_loss(
        self,
        hidden: torch.Tensor,
        original: torch.Tensor | None,
        here: torch.Tensor,
        batch: PackedBatch,
        weights: LossWeights,
    ) -> torch.Tensor:
        rows = hidden[here]
        per_row = weights.per_target[0].expand(len(here))
        lm_head = self.backbone.lm_head()
        chunk = rows_per_chunk(len(lm_head))
        if self.base_loss == "cross-entropy":
            targets = batch.targets(1).flatten()[here]
            return chunked_cross_entropy(rows, lm_head, targets, per_row, chunk)
        assert original is not None
        teacher = self.backbone.original_lm_head().to(original.dtype)
        return chunked_kl(rows, lm_head, original[here], teacher, per_row, chunk)

    # hidden, original: [B * T, H]; here: [N]
    def _heads_loss(
        self,
        hidden: torch.Tensor,
        original: torch.Tensor | None,
        here: torch.Tensor,
        batch: PackedBatch,
        weights: LossWeights,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        heads = self.heads
        ahead = range(2, heads.spec.num_heads + 2)
        # [K, N], base vocabulary
        truth = torch.stack([batch.targets(n).flatten()[here] for n in ahead])
        valid = truth >= 0
        draft = torch.where(valid, self.draft_index[truth.clamp(min=0)], -1)
        teacher = None
        if self.hard_weight < 1:
            assert original is not None
            # The state that the true token is drawn from lies one before it.
            places = torch.stack([here + n - 1 for n in ahead])
            teacher_weight = self.backbone.original_lm_head()[heads.token_map]
            teacher = Teacher(
                original,
                teacher_weight.to(original.dtype),
                places.clamp(max=len(original) - 1),
            )
        per_target = weights.per_target[1:]
        states, projection = heads.projected(
            heads.states(hidden[here]), self.backbone.lm_head()
        )
        loss, losses = chunked_loss(
            states,
            projection,
            draft,
            valid * (per_target * self.decays)[:, None],
            rows_per_chunk(len(heads.token_map)),
            teacher=teacher,
            hard_weight=self.hard_weight,
        )
        return loss, (losses * valid).sum(1) * per_target
