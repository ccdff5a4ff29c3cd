# SPDX-License-Identifier: Apache-2.0
"""The heads' loss as a module, so that gradients can be shared by its calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from vllm_medusa.train.chunked_loss import Teacher, chunked_loss, rows_per_chunk
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.vocabulary import SampledVocabulary


@dataclass(frozen=True)
class Guesses:
    """What the heads are to guess from some of the states.

    Attributes:
        places: [N] int64, the states that heads guess from.
        truth: [K, N] int64 index of the true token into the sampled vocabulary, -1 if
            it is not there.
        weights: [K, N] float32, of each guess in the loss; 0 where the answer has no
            token so far ahead.
        vocabulary: the tokens that the softmax runs over.
    """

    places: torch.Tensor
    truth: torch.Tensor
    weights: torch.Tensor
    vocabulary: SampledVocabulary


class HeadsLoss(nn.Module):
    """Calls heads and their loss.

    Args:
        heads: trained.
        hard_weight: share of the true token in the target, the rest is the base
            model's distribution.
    """

    def __init__(self, heads: TrainableHeads, hard_weight: float) -> None:
        super().__init__()
        self.heads = heads
        self.hard_weight = hard_weight

    # hidden: [M, H]
    def forward(
        self, hidden: torch.Tensor, guesses: Guesses
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted loss, and each guess' own, [K, N], without gradient.

        Args:
            hidden: the base model's states in a row, so that the distribution of
                head k's target comes from the state k + 1 places on.
            guesses: all tensors on the heads' device.
        """
        heads, places = self.heads, guesses.places
        states, rows = heads.projected(heads.states(hidden[places]))
        base_rows, correction = heads.base_rows, None
        ids = guesses.vocabulary.ids
        if len(ids) < len(heads.token_map):
            rows, base_rows = rows[..., ids, :], base_rows[ids]
            correction = guesses.vocabulary.correction
        teacher = None
        if self.hard_weight < 1:
            ahead = torch.arange(1, heads.spec.num_heads + 1, device=places.device)
            # Past the end nothing is guessed.
            sources = (places + ahead[:, None]).clamp(max=len(hidden) - 1)
            teacher = Teacher(hidden.to(heads.compute_dtype), base_rows, sources)
        return chunked_loss(
            states,
            rows,
            guesses.truth,
            guesses.weights,
            rows_per_chunk(len(ids)),
            teacher=teacher,
            hard_weight=self.hard_weight,
            correction=correction,
        )


def head_weights(num_heads: int, decay: float) -> torch.Tensor:
    """Weight of each head's loss, decay^k scaled to sum 1, float32 [num_heads].

    The paper's λ_k = 0.8^k (section 2.2.1): later heads guess worse and would
    otherwise drive the gradient's norm.
    """
    weights = torch.tensor([decay**head for head in range(num_heads)])
    return weights / weights.sum()
