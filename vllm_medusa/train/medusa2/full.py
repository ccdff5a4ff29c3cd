# SPDX-License-Identifier: Apache-2.0
"""A backbone of which all weights are trained."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from vllm_medusa.train.backbone import hidden_states
from vllm_medusa.train.medusa2.tuned import TunedBackbone
from vllm_medusa.train.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FullBackbone(TunedBackbone):
    """All weights in float32, trained; a tied LM head stays tied.

    Args:
        model: in float32, changed in place.
        copy_dtype: of a frozen copy, which `original_hidden` needs; None: no copy.
    """

    def __init__(self, model: PreTrainedModel, copy_dtype: torch.dtype | None) -> None:
        super().__init__(model)
        self.original = None
        if copy_dtype is not None:
            self.original = copy.deepcopy(model).to(copy_dtype).eval()
        model.requires_grad_(True)

    @torch.no_grad()
    def original_hidden(self, batch: PackedBatch) -> torch.Tensor:
        """The frozen copy's states, [B, T, H]."""
        assert self.original is not None
        self.original.eval()  # `train()` of a module reaches all that it holds
        return hidden_states(self.original, batch)

    def original_lm_head(self) -> torch.Tensor:
        """Weight of the frozen copy's LM head, [V, H]."""
        assert self.original is not None
        return self.original.get_output_embeddings().weight

    @torch.no_grad()
    def merge_into(self, original: PreTrainedModel) -> None:
        """Overwrite every weight."""
        weights = dict(original.named_parameters())
        for name, weight in self.trainable().items():
            weights[name].copy_(weight)
