# SPDX-License-Identifier: Apache-2.0
"""A backbone in training, and the original model that it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from vllm_medusa.errors import UnsupportedError
from vllm_medusa.train.backbone import hidden_states
from vllm_medusa.train.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = 2e-2


class TunedBackbone(nn.Module):
    """A backbone of which some weights may be trained; here none.

    Subclasses train adapters (`lora`) or all weights (`full`).

    Attributes:
        model: a causal language model of transformers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> trained weight, in a fixed order."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """States after the final norm, [B, T, H], with gradients if any are trained."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(self.trainable())):
            return hidden_states(self.model, batch)

    def lm_head(self) -> torch.Tensor:
        """Weight of the LM head as it is now, [V, H]."""
        return self.model.get_output_embeddings().weight

    @torch.no_grad()
    def original_hidden(self, batch: PackedBatch) -> torch.Tensor:
        """The original model's states after the final norm, [B, T, H]."""
        return hidden_states(self.model, batch)

    def original_lm_head(self) -> torch.Tensor:
        """Weight of the original model's LM head, [V, H]."""
        return self.lm_head()

    @torch.no_grad()
    def merge_into(self, original: PreTrainedModel) -> None:
        """Give `original`, loaded anew, the weights of this backbone.

        Sums are formed in float32 and rounded once to the dtype of `original`.
        """


def untie(model: PreTrainedModel) -> None:
    """Give a model whose LM head is its token embedding a head of its own."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    # What transformers worked out when it made the model; saving reads it.
    model.all_tied_weights_keys = {}


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the LM head is the token embedding."""
    embedding = model.get_input_embeddings().weight
    return model.get_output_embeddings().weight is embedding


@torch.no_grad()
def check_plain_lm_head(model: PreTrainedModel) -> None:
    """See that logits are the last state times the LM head, which the losses assume.

    Raises:
        UnsupportedError: they are scaled, capped or have a bias.
    """
    device = model.get_output_embeddings().weight.device
    size = min(8, model.config.get_text_config().vocab_size)
    tokens = torch.arange(size, device=device)[None]
    hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    logits = model(input_ids=tokens, use_cache=False).logits.float()
    plain = model.get_output_embeddings().weight.float()
    expected = hidden.float() @ plain.T
    scale = logits.abs().max().clamp(min=1e-6)
    if (logits - expected).abs().max() > _TOLERANCE * scale:
        raise UnsupportedError(
            f"{type(model).__name__} scales or caps its logits, or its LM head has a "
            "bias: Medusa-2 would train it on other logits than it answers with. "
            "Train heads alone (--stage medusa1)"
        )
