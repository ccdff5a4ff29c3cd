# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy against the true token mixed with the base model's distribution."""

from __future__ import annotations

from typing import Any

import torch


class MixedCrossEntropy(torch.autograd.Function):
    """Weighted sum of cross-entropies with a target of two parts.

    The target of row b is a · onehot(hard_b) + (1 - a) · soft_b, a = `hard_weight`,
    or 0 where the true token is outside the vocabulary. The gradient, softmax minus
    target, is formed in the forward pass in one buffer: on a CPU the passes over
    [B, S] cost as much as the matrix products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        correction: torch.Tensor,
        soft: torch.Tensor,
        hard: torch.Tensor,
        hard_weight: float,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss, float32 scalar.

        Args:
            ctx: autograd's.
            logits: [B, S], any float type.
            correction: [S] float32, added to the logits.
            soft: [B, S] probabilities, each row sums to 1.
            hard: [B] int64 index of the true token, -1 if it is not there.
            hard_weight: share of the one-hot part.
            weights: [B] float32, weight of each row in the sum.
        """
        scores = logits.float() + correction
        log_z = scores.logsumexp(-1)
        share = torch.where(hard >= 0, hard_weight, 0.0)
        index = hard.clamp(min=0)[:, None]
        hard_score = scores.gather(1, index)[:, 0]
        soft_score = torch.linalg.vecdot(scores, soft.to(scores.dtype))
        loss = log_z - share * hard_score - (1 - share) * soft_score
        gradient = scores.sub_(log_z[:, None]).exp_()
        gradient.addcmul_(soft.to(gradient.dtype), (1 - share)[:, None], value=-1)
        gradient.scatter_add_(1, index, -share[:, None].to(gradient.dtype))
        gradient.mul_(weights[:, None])
        ctx.save_for_backward(gradient.to(logits.dtype))
        return (loss * weights).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        """Scale the gradient kept by `forward`."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None, None, None, None


def head_weights(num_heads: int, decay: float) -> torch.Tensor:
    """Weight of each head's loss, decay^k scaled to sum 1, float32 [num_heads].

    The paper's λ_k = 0.8^k (section 2.2.1): later heads guess worse and would
    otherwise drive the gradient's norm.
    """
    weights = torch.tensor([decay**head for head in range(num_heads)])
    return weights / weights.sum()
