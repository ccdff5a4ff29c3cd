# SPDX-License-Identifier: Apache-2.0
"""Losses over a vocabulary, some rows at a time: no [N, V] tensor is ever there.

A chunk's logits are made, its loss and the gradient, softmax minus target, are formed
in one buffer, multiplied back to the gradients of states and weight, and dropped. So
nothing of the vocabulary's width is kept for the backward pass (the reference keeps
all heads' logits, [K + 1, B, T, V]).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_CHUNK_ELEMENTS = 1 << 25
"""Of a chunk's logits: 128 MiB as float32."""


def rows_per_chunk(vocab_size: int) -> int:
    """Rows whose logits over `vocab_size` tokens are held at once."""
    return max(1, _CHUNK_ELEMENTS // vocab_size)


@dataclass(frozen=True)
class Teacher:
    """The model whose distribution is the soft part of the target.

    Attributes:
        hidden: [M, H], its states.
        weight: [S, H], its LM head.
        rows: [K, N] int64, which of its states tells the target of each row. Within
            a chunk each state's distribution is computed once.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    rows: torch.Tensor


def chunked_cross_entropy(
    # [N, H]
    hidden: torch.Tensor,
    # [V, H]
    weight: torch.Tensor,
    # [N]
    targets: torch.Tensor,
    # [N]
    row_weights: torch.Tensor,
    chunk_rows: int,
) -> torch.Tensor:
    """The weighted sum of the rows' cross-entropies, a float32 scalar in nats.

    Args:
        hidden: states, any float type; products are in this type.
        weight: LM head, any float type; its gradient is optional.
        targets: int64, -1 for rows that don't count.
        row_weights: float32.
        chunk_rows: rows whose logits are held at once (see `rows_per_chunk`).
    """
    loss, _ = chunked_loss(
        hidden[None], weight, targets[None], row_weights[None], chunk_rows
    )
    return loss


def chunked_kl(
    # [N, H]
    hidden: torch.Tensor,
    # [V, H]
    weight: torch.Tensor,
    # [N, H of the teacher]
    teacher_hidden: torch.Tensor,
    # [V, H of the teacher]
    teacher_weight: torch.Tensor,
    # [N]
    row_weights: torch.Tensor,
    chunk_rows: int,
    # [N]
    targets: torch.Tensor | None = None,
    hard_weight: float = 0.0,
) -> torch.Tensor:
    """The weighted sum of KL(teacher ‖ student), a float32 scalar in nats.

    Where there is a target, the row's loss is hard_weight · cross-entropy to it +
    (1 - hard_weight) · KL. The teacher gets no gradient.

    Args:
        hidden: the student's states, any float type.
        weight: the student's LM head, any float type; its gradient is optional.
        teacher_hidden: the teacher's states at the same rows.
        teacher_weight: the teacher's LM head.
        row_weights: float32; 0 for rows that don't count.
        chunk_rows: rows whose logits are held at once (see `rows_per_chunk`).
        targets: int64, -1 for none.
        hard_weight: share of the true token.
    """
    count = len(hidden)
    if targets is None:
        targets = torch.full((count,), -1, device=hidden.device)
    rows = torch.arange(count, device=hidden.device)
    loss, _ = chunked_loss(
        hidden[None],
        weight,
        targets[None],
        row_weights[None],
        chunk_rows,
        teacher=Teacher(teacher_hidden, teacher_weight, rows[None]),
        hard_weight=hard_weight,
    )
    return loss


def chunked_loss(
    # [K, N, H]
    states: torch.Tensor,
    # [S, H] or [K, S, H]
    weight: torch.Tensor,
    # [K, N]
    targets: torch.Tensor,
    # [K, N]
    row_weights: torch.Tensor,
    chunk_rows: int,
    *,
    teacher: Teacher | None = None,
    hard_weight: float = 1.0,
    # [S]
    correction: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of K heads, which may share the projection and the teacher.

    Args:
        states: what the projection is applied to, any float type.
        weight: one projection for all heads or one for each, any float type.
        targets: int64 index of the true token, -1 where it has none.
        row_weights: float32; 0 for rows that don't count.
        chunk_rows: rows of a head whose logits are held at once.
        teacher: as for `chunked_kl`; without one rows without a target don't count.
        hard_weight: share of the true token, only with a teacher.
        correction: float32, added to the logits of student and teacher.

    Returns:
        The weighted sum of all rows' losses, a float32 scalar with gradients for
        `states` and `weight`; and each row's loss, [K, N] float32, without.
    """
    rows = teacher and (teacher.hidden, teacher.weight, teacher.rows)
    loss, losses = _ChunkedLoss.apply(
        states,
        weight,
        targets,
        row_weights,
        chunk_rows,
        *(rows or (None, None, None)),
        hard_weight,
        correction,
    )
    return loss, losses


class _ChunkedLoss(torch.autograd.Function):
    """`chunked_loss`, its gradients formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        row_weights: torch.Tensor,
        chunk_rows: int,
        teacher_hidden: torch.Tensor | None,
        teacher_weight: torch.Tensor | None,
        teacher_rows: torch.Tensor | None,
        hard_weight: float,
        correction: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `chunked_loss`."""
        heads, count, _ = states.shape
        projection = weight.to(states.dtype).expand(heads, -1, -1)
        states_gradient = torch.zeros_like(states)
        weight_gradient = (
            # In float32: it is a sum over all chunks.
            torch.zeros_like(weight, dtype=torch.float32).expand(heads, -1, -1)
            if ctx.needs_input_grad[1]
            else None
        )
        losses = torch.zeros_like(row_weights)
        for begin in range(0, count, chunk_rows):
            chunk = slice(begin, begin + chunk_rows)
            if teacher_hidden is not None:
                assert teacher_weight is not None
                assert teacher_rows is not None
                used, place = teacher_rows[:, chunk].unique(return_inverse=True)
                soft, negentropy = _distribution(
                    teacher_hidden[used] @ teacher_weight.T, correction
                )
            for head in range(heads):
                scores = (states[head, chunk] @ projection[head].T).float()
                if correction is not None:
                    scores += correction
                hard = targets[head, chunk]
                weights = row_weights[head, chunk]
                if teacher_hidden is None:
                    losses[head, chunk] = _hard_gradient(scores, hard, weights)
                else:
                    losses[head, chunk] = _mixed_gradient(
                        scores,
                        soft[place[head]],
                        negentropy[place[head]],
                        hard,
                        weights,
                        hard_weight,
                    )
                gradient = scores.to(states.dtype)
                torch.mm(gradient, projection[head], out=states_gradient[head, chunk])
                if weight_gradient is not None:
                    weight_gradient[head].add_(gradient.T @ states[head, chunk])
        if weight_gradient is not None and weight.dim() == 2:
            weight_gradient = weight_gradient[0]
        ctx.save_for_backward(states_gradient, weight_gradient)
        ctx.mark_non_differentiable(losses)
        return (losses * row_weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        """Scale the gradients kept by `forward`."""
        states_gradient, weight_gradient = ctx.saved_tensors
        scale = grad_outputs[0]
        if weight_gradient is not None:
            weight_gradient = weight_gradient * scale
        return states_gradient * scale, weight_gradient, *([None] * 8)


def _distribution(
    # [M, S]
    logits: torch.Tensor,
    # [S]
    correction: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [M, S] and Σ p log p [M], float32."""
    scores = logits.float()
    if correction is not None:
        scores += correction
    log_z = scores.logsumexp(-1)
    soft = (scores - log_z[:, None]).exp_()
    return soft, torch.linalg.vecdot(soft, scores) - log_z


def _hard_gradient(
    # [C, S]
    scores: torch.Tensor,
    # [C]
    hard: torch.Tensor,
    # [C]
    weights: torch.Tensor,
) -> torch.Tensor:
    """Turn logits into their weighted gradient in place; return the losses [C]."""
    valid = hard >= 0
    index = hard.clamp(min=0)[:, None]
    log_z = scores.logsumexp(-1)
    loss = (log_z - scores.gather(1, index)[:, 0]) * valid
    gradient = scores.sub_(log_z[:, None]).exp_()
    gradient.scatter_add_(1, index, torch.full_like(log_z, -1.0)[:, None])
    gradient.mul_((weights * valid)[:, None])
    return loss


def _mixed_gradient(
    # [C, S]
    scores: torch.Tensor,
    # [C, S]
    soft: torch.Tensor,
    # [C]
    negentropy: torch.Tensor,
    # [C]
    hard: torch.Tensor,
    # [C]
    weights: torch.Tensor,
    hard_weight: float,
) -> torch.Tensor:
    """As `_hard_gradient`, for a target that is partly the teacher's distribution."""
    share = torch.where(hard >= 0, hard_weight, 0.0)
    index = hard.clamp(min=0)[:, None]
    log_z = scores.logsumexp(-1)
    hard_loss = log_z - scores.gather(1, index)[:, 0]
    soft_loss = negentropy + log_z - torch.linalg.vecdot(scores, soft)
    gradient = scores.sub_(log_z[:, None]).exp_()
    gradient.addcmul_(soft, (1 - share)[:, None], value=-1)
    gradient.scatter_add_(1, index, -share[:, None])
    gradient.mul_(weights[:, None])
    return share * hard_loss + (1 - share) * soft_loss
