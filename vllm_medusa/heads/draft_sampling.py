# SPDX-License-Identifier: Apache-2.0
"""Candidates drawn from the heads without replacement, for rejection acceptance."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_medusa.noise import Stream, exponential


@dataclass(frozen=True, slots=True)
class DraftSampling:
    """How each request's candidates are drawn.

    `temperature` [num_reqs] float32; at 0 the best tokens are taken. `seeds`
    [num_reqs] int64. `positions` [num_reqs] int64: of the root that the candidates
    will follow, so that no noise is used twice in a request.
    """

    temperature: torch.Tensor
    seeds: torch.Tensor
    positions: torch.Tensor


def draw_drafts(
    # [num_reqs, num_heads, draft_vocab] float32
    logits: torch.Tensor,
    k: int,
    sampling: DraftSampling,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw k different columns of each head's distribution, one after the other.

    An exponential race: the columns ordered by -log(noise) + log(probability) are a
    sequence drawn without replacement (the Gumbel top-k trick, arXiv 1903.06059).

    Returns:
        int64 columns in the order of the draw, [num_reqs, num_heads, k], and the
        probabilities at the request's temperature, float32 [num_reqs, num_heads,
        draft_vocab].
    """
    temperature = sampling.temperature[:, None]
    is_greedy = temperature == 0
    divisor = torch.where(is_greedy, 1.0, temperature)
    columns = torch.arange(logits.shape[2], device=logits.device)
    drawn, probs = [], torch.empty_like(logits)
    # One head at a time: the noise of one takes several times its logits' memory.
    for head in range(logits.shape[1]):
        log_probs = (logits[:, head] / divisor).log_softmax(dim=-1)
        noise = exponential(
            Stream.DRAFT,
            sampling.seeds[:, None],
            sampling.positions[:, None],
            head,
            columns,
        )
        race = torch.where(is_greedy, log_probs, log_probs - noise.log_())
        drawn.append(race.topk(k, dim=-1).indices)
        probs[:, head] = log_probs.exp_()
    return torch.stack(drawn, dim=1), probs
