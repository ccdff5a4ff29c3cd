# SPDX-License-Identifier: Apache-2.0
"""The heads a run begins with, where they were trained before."""

from __future__ import annotations

from dataclasses import replace

import torch

from vllm_medusa.checkpoint import HeadsCheckpoint
from vllm_medusa.errors import CheckpointError
from vllm_medusa.train.heads import TrainableHeads


def heads_from(
    checkpoint: HeadsCheckpoint,
    # [V, H]
    lm_head: torch.Tensor,
    compute_dtype: torch.dtype,
    dropout: float,
) -> TrainableHeads:
    """Heads trained before; those over the whole vocabulary get a token_map of it.

    Raises:
        CheckpointError: they are of a model of other sizes.
    """
    vocab_size, hidden_size = lm_head.shape
    found = checkpoint.spec
    if found.hidden_size != hidden_size or found.vocab_size not in (None, vocab_size):
        raise CheckpointError(
            f"{checkpoint.path}: heads of hidden size {found.hidden_size} and "
            f"vocabulary {found.vocab_size} do not fit a model of {hidden_size} and "
            f"{vocab_size}"
        )
    token_map = checkpoint.tensors.get("token_map")
    if token_map is None:
        token_map = torch.arange(found.projected_vocab_size or vocab_size)
    spec = replace(found, vocab_size=vocab_size, draft_vocab_size=len(token_map))
    heads = TrainableHeads(
        spec, token_map, lm_head, compute_dtype=compute_dtype, dropout=dropout
    )
    heads.load_tensors(checkpoint.tensors)
    return heads
