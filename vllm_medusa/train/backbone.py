# SPDX-License-Identifier: Apache-2.0
"""The base model through transformers: loading it, and its states of packed rows."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any, Literal

import torch

from vllm_medusa.errors import CheckpointError, ConfigError, UnsupportedError
from vllm_medusa.train.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Quantization = Literal["4bit", "8bit"]


def load_backbone(
    model: str,
    dtype: torch.dtype,
    quantization: Quantization | None,
    device: torch.device | str,
) -> PreTrainedModel:
    """Load a causal language model, in evaluation mode.

    Args:
        model: folder or Hugging Face id.
        dtype: of the weights, or of what is computed with quantised ones.
        quantization: bitsandbytes' NF4 ("4bit") or LLM.int8 ("8bit") for all linear
            layers but the LM head, None for none.
        device: where it lies.

    Raises:
        CheckpointError: it can't be loaded, or has no LM head.
        ConfigError: bitsandbytes is missing.
        UnsupportedError: this processor's 4-bit kernels can't have its layers' widths.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {}
    if quantization is not None:
        options["quantization_config"] = _bitsandbytes(quantization, dtype)
        options["device_map"] = {"": device}
    try:
        backbone = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"base model {model!r} cannot be loaded: {error}"
        ) from error
    if backbone.get_output_embeddings() is None:
        raise CheckpointError(f"base model {model!r} has no LM head")
    if quantization is None:
        backbone.to(device)
    elif torch.device(device).type == "cpu":
        _check_widths(backbone)
    return backbone.eval()


def _bitsandbytes(quantization: Quantization, dtype: torch.dtype) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "a quantised base needs bitsandbytes: pip install 'vllm-medusa[train]'"
        )
    from transformers import BitsAndBytesConfig

    # Each layer would say in each step that it casts what it is given.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _check_widths(backbone: PreTrainedModel) -> None:
    """As `bitsandbytes.functional._convert_weight_packed_for_cpu` needs them."""
    for name, layer in backbone.named_modules():
        # Without AVX512-BF16 weights are not packed.
        if not getattr(layer, "support_avx512bf16_for_cpu", False):
            continue
        inner, outer = layer.in_features, layer.out_features
        if inner % 64 or outer % 32:
            raise UnsupportedError(
                "bitsandbytes on this CPU has 4-bit kernels for inputs in multiples of "
                f"64 and outputs of 32, but {name} is {inner} x {outer}: quantise to "
                "8bit, not at all, or on a GPU"
            )


def hidden_states(backbone: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    """The states after the final norm, [B, T, H] in the backbone's dtype.

    Sequences don't see one another: transformers finds where positions don't go up
    by one and masks accordingly, in models with sliding windows too
    (`masking_utils.find_packed_sequence_indices`). Each padding token sees itself.

    Args:
        backbone: from `load_backbone`, with adapters (peft) or without.
        batch: on the backbone's device.
    """
    output = backbone.get_decoder()(
        input_ids=batch.tokens, position_ids=batch.positions, use_cache=False
    )
    return output.last_hidden_state
