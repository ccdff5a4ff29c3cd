# SPDX-License-Identifier: Apache-2.0
"""Whether a model keeps the sequences of a packed row apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vllm_medusa.errors import UnsupportedError
from vllm_medusa.train.backbone import hidden_states
from vllm_medusa.train.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LENGTH = 8
_TOLERANCE = 0.05
"""Largest change of a state, relative to its norm; rounding of 8-bit layers is less."""


@torch.no_grad()
def check_packing(backbone: PreTrainedModel) -> None:
    """See that what stands before a sequence in its row does not change its states.

    transformers masks attention by the positions, but layers that carry a state along
    the row (state-space models, linear attention) may not reset it.

    Args:
        backbone: from `load_backbone`, whole on one device.

    Raises:
        UnsupportedError: it does.
    """
    vocab_size = backbone.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    # [4, 8]: the sequence, then three others.
    ids = torch.randint(vocab_size, (4, _LENGTH), generator=generator)
    alone = _states(backbone, ids[:1])[0]
    # [3, 8, H]: behind each of the others.
    behind = _states(backbone, torch.cat([ids[1:], ids[:1].expand(3, -1)], 1))
    change = (behind[:, _LENGTH:] - alone).norm(dim=-1) / alone.norm(dim=-1)
    # A NaN is no small change either.
    if not bool((change < _TOLERANCE).all()):
        raise UnsupportedError(
            f"{type(backbone).__name__} lets a sequence see those before it in a "
            f"packed row (its states change by {change.max():.0%}), so that it can't "
            "run along: train heads alone, with --hidden-states cached"
        )


def _states(backbone: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """[B, T, H] float32, of rows [B, T] of sequences of `_LENGTH` tokens."""
    places = torch.arange(ids.shape[1]).expand_as(ids)
    batch = PackedBatch(
        tokens=ids,
        positions=places % _LENGTH,
        segments=places // _LENGTH + 1,
        answer_mask=torch.ones_like(ids, dtype=torch.bool),
    )
    return hidden_states(backbone, batch.to(backbone.device)).float()
