# SPDX-License-Identifier: Apache-2.0
"""What a plan needs to know of a base model: its sizes and its tensors' shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_medusa.errors import CheckpointError, UnsupportedError

Shapes = Mapping[str, tuple[int, ...]]
"""Checkpoint name of each tensor, without the prefix "model.", and its shape."""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Where an architecture differs from Llama's: biases of the attention's and the MLP's
# linear layers, norms of queries and keys, norms behind attention and MLP.
_QKV_BIAS, _OUTPUT_BIAS, _MLP_BIAS, _QK_NORM, _MORE_NORMS = range(5)
_ARCHITECTURES: dict[str, tuple[int, ...]] = {
    "llama": (),
    "mistral": (),
    "qwen2": (_QKV_BIAS,),
    "qwen3": (_QK_NORM,),
    "gemma": (),
    "gemma2": (_MORE_NORMS,),
}


@dataclass(frozen=True)
class BaseModel:
    """Sizes of a decoder-only model.

    Attributes:
        name: as the user gave it.
        source: where the shapes come from, for the report.
        vocab_size: tokens, without padding.
        max_model_len: longest text it was made for, in tokens.
        is_tied: whether the LM head is the token embedding.
        sliding_window: tokens, or None; of some layers at least.
        dtype: in which it is stored, or None.
        quantization: of its linear layers as they are stored, "fp8", "awq" or "gptq".
        quantization_group: weights per scale of "awq" and "gptq".
        shapes: of all its tensors, unquantised.
    """

    name: str
    source: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    max_model_len: int
    is_tied: bool
    sliding_window: int | None
    dtype: str | None
    quantization: str | None
    quantization_group: int
    shapes: Shapes


def base_model(name: str, config: Any, source: str, shapes: Shapes | None) -> BaseModel:
    """The base model of a transformers config, with the checkpoint's own shapes if they
    are known.

    Raises:
        CheckpointError: the config lacks a size, or has an impossible one.
        UnsupportedError: an architecture that a plan (or Medusa) doesn't cover.
    """
    _refuse(name, config)
    heads = _size(name, config, "num_attention_heads")
    hidden = _size(name, config, "hidden_size")
    quantization, group = _quantization(name, config)
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    model = BaseModel(
        name=name,
        source=source,
        hidden_size=hidden,
        num_layers=_size(name, config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_size(name, config, "num_key_value_heads", heads),
        head_size=_size(name, config, "head_dim", hidden // heads),
        intermediate_size=_size(name, config, "intermediate_size"),
        vocab_size=_size(name, config, "vocab_size"),
        max_model_len=_size(name, config, "max_position_embeddings"),
        is_tied=bool(getattr(config, "tie_word_embeddings", False)),
        sliding_window=window,
        dtype=_dtype(config),
        quantization=quantization,
        quantization_group=group,
        shapes=shapes or {},
    )
    if shapes is not None and quantization is None:
        return model
    return _with_shapes(model, config)


def _refuse(name: str, config: Any) -> None:
    # (feature present, its name)
    refused = (
        (
            any(
                (getattr(config, key, None) or 1) > 1
                for key in ("num_local_experts", "num_experts", "n_routed_experts")
            ),
            "mixtures of experts",
        ),
        (getattr(config, "kv_lora_rank", None), "multi-head latent attention (MLA)"),
        (getattr(config, "is_encoder_decoder", False), "encoder-decoder models"),
        (getattr(config, "text_config", None), "multimodal models"),
    )
    for present, feature in refused:
        if present:
            raise UnsupportedError(f"{name}: a plan does not cover {feature}")


def _size(name: str, config: Any, key: str, default: int | None = None) -> int:
    value = getattr(config, key, None)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 32:
        raise CheckpointError(
            f"{name}: config.json says {key} = {str(value)[:40]!r}; a positive whole "
            "number is expected"
        )
    return value


def _dtype(config: Any) -> str | None:
    stored = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    name = str(stored).removeprefix("torch.")
    return name if name in DTYPE_BYTES else None


def _quantization(name: str, config: Any) -> tuple[str | None, int]:
    stated = getattr(config, "quantization_config", None)
    if stated is None:
        return None, 128
    if not isinstance(stated, dict):
        stated = stated.to_dict()
    method = str(stated.get("quant_method", "")).lower()
    bits = stated.get("bits", 4)
    group = stated.get("group_size", 128)
    if method not in ("fp8", "awq", "gptq") or (method != "fp8" and bits != 4):
        raise UnsupportedError(
            f"{name} is quantised by {method!r} with {bits} bits: a plan covers fp8, "
            "and awq and gptq with 4 bits"
        )
    # -1: one scale per row.
    return method, group if isinstance(group, int) and group > 0 else 1 << 14


def _with_shapes(model: BaseModel, config: Any) -> BaseModel:
    """The shapes that the architecture has by its sizes."""
    kind = getattr(config, "model_type", "")
    if kind not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise UnsupportedError(
            f"{model.name}: a plan for model type {kind!r} needs the safetensors files "
            f"of the unquantised model; by config.json alone it covers {known}"
        )
    features = set(_ARCHITECTURES[kind])
    if kind in ("llama", "qwen3") and getattr(config, "attention_bias", False):
        features |= {_QKV_BIAS, _OUTPUT_BIAS}
    if kind == "llama" and getattr(config, "mlp_bias", False):
        features.add(_MLP_BIAS)
    hidden, inner = model.hidden_size, model.intermediate_size
    queries = model.num_heads * model.head_size
    keys = model.num_kv_heads * model.head_size
    # name, out, in, which feature gives it a bias
    linears = (
        ("self_attn.q_proj", queries, hidden, _QKV_BIAS),
        ("self_attn.k_proj", keys, hidden, _QKV_BIAS),
        ("self_attn.v_proj", keys, hidden, _QKV_BIAS),
        ("self_attn.o_proj", hidden, queries, _OUTPUT_BIAS),
        ("mlp.gate_proj", inner, hidden, _MLP_BIAS),
        ("mlp.up_proj", inner, hidden, _MLP_BIAS),
        ("mlp.down_proj", hidden, inner, _MLP_BIAS),
    )
    layer: dict[str, tuple[int, ...]] = {}
    for name, rows, columns, bias in linears:
        layer[f"{name}.weight"] = (rows, columns)
        if bias in features:
            layer[f"{name}.bias"] = (rows,)
    norms = ["input_layernorm", "post_attention_layernorm"]
    if _MORE_NORMS in features:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    layer |= {f"{norm}.weight": (hidden,) for norm in norms}
    if _QK_NORM in features:
        for norm in ("q_norm", "k_norm"):
            layer[f"self_attn.{norm}.weight"] = (model.head_size,)
    shapes = {
        f"layers.{index}.{name}": shape
        for index in range(model.num_layers)
        for name, shape in layer.items()
    }
    shapes["embed_tokens.weight"] = (model.vocab_size, hidden)
    shapes["norm.weight"] = (hidden,)
    if not model.is_tied:
        shapes["lm_head.weight"] = (model.vocab_size, hidden)
    return BaseModel(**{**vars(model), "shapes": shapes})
