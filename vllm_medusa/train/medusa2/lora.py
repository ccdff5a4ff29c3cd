# SPDX-License-Identifier: Apache-2.0
"""A backbone trained through low-rank adapters (peft's LoRA)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vllm_medusa.errors import ConfigError, UnsupportedError
from vllm_medusa.train.medusa2.options import AdapterOptions
from vllm_medusa.train.medusa2.tuned import TunedBackbone, is_tied
from vllm_medusa.train.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "default"


class LoraBackbone(TunedBackbone):
    """The backbone's weights stay; adapters in float32 are added to its products.

    At the start an adapter adds exactly nothing: its second factor is 0.

    Args:
        model: changed in place.
        options: of the adapters.

    Raises:
        ConfigError: peft is missing, or the LM head is tied and shall have an adapter.
        UnsupportedError: the model has no linear layer that peft could adapt.
    """

    def __init__(self, model: PreTrainedModel, options: AdapterOptions) -> None:
        super().__init__(model)
        targets = find_targets(model, options)
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=targets,
        )
        inject_adapter_in_model(config, model)
        self.layers: dict[str, Any] = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer)
        }
        for layer in self.layers.values():
            layer.lora_A.float()
            layer.lora_B.float()

    def lm_head(self) -> torch.Tensor:
        """Weight of the LM head with its adapter, if it has one, [V, H]."""
        head = self.model.get_output_embeddings()
        if head not in self.layers.values():
            return head.weight
        delta = head.get_delta_weight(_NAME)
        return head.get_base_layer().weight.to(delta.dtype) + delta

    @torch.no_grad()
    def original_hidden(self, batch: PackedBatch) -> torch.Tensor:
        """The states with adapters off, [B, T, H]."""
        with self._original():
            return super().original_hidden(batch)

    def original_lm_head(self) -> torch.Tensor:
        """Weight of the LM head without its adapter, [V, H]."""
        head = self.model.get_output_embeddings()
        return (
            head.get_base_layer().weight
            if head in self.layers.values()
            else head.weight
        )

    @torch.no_grad()
    def merge_into(self, original: PreTrainedModel) -> None:
        """Add each adapter's product to the weight it belongs to."""
        for name, layer in self.layers.items():
            weight = original.get_submodule(name).weight
            delta = layer.get_delta_weight(_NAME)
            weight.copy_(weight.float() + delta.to(weight.device))

    @contextmanager
    def _original(self) -> Iterator[None]:
        """Adapters off, and no dropout of the model's own."""
        training = self.model.training
        self.model.eval()
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)
            self.model.train(training)


def find_targets(model: PreTrainedModel, options: AdapterOptions) -> list[str]:
    """Names of the linear layers that get an adapter.

    Raises:
        ConfigError: peft is missing, or the LM head is tied and shall have an adapter.
        UnsupportedError: the model has no linear layer that peft could adapt.
    """
    check_peft()
    head = model.get_output_embeddings()
    if options.lm_head and is_tied(model):
        raise ConfigError(
            "the LM head is the token embedding: an adapter on it would be merged into "
            "both. Leave --lora-lm-head out, or give the model an LM head of its own "
            "with --untie"
        )
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not any(module is not head for module in linear.values()):
        raise UnsupportedError(
            f"{type(model).__name__} has no linear layers for adapters: train full "
            "weights (--adapters full)"
        )
    return [n for n, m in linear.items() if options.lm_head or m is not head]


def check_peft() -> None:
    """Raise ConfigError if peft is missing: better before a model is loaded."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise ConfigError(
            "adapters need peft: pip install 'vllm-medusa[train]', or train full "
            "weights (--adapters full)"
        ) from None
