# SPDX-License-Identifier: Apache-2.0
"""The base model's LM head: finding it, and its rows for a shared projection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from vllm_medusa.errors import UnsupportedError
from vllm_medusa.heads.linear import Product
from vllm_medusa.heads.parallel import TensorParallel


@dataclass(frozen=True)
class VocabularyShard:
    """This rank's rows of a vocabulary projection.

    Attributes:
        weight: [rows, hidden_size].
        bias: [rows] or None.
        token_ids: int64 [rows], base token id of each row; None if they are
            consecutive from `start`.
        start: base token id of row 0 where token_ids is None.
        product: the product with the weight, if the base model has one at hand.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    token_ids: torch.Tensor | None
    start: int = 0
    product: Product | None = None


def find_lm_head(base_model: nn.Module) -> VocabParallelEmbedding:
    """The LM head of a vLLM model, which may be its tied token embedding.

    Raises:
        UnsupportedError: the model has none, or several.
    """
    heads = [m for m in base_model.modules() if isinstance(m, ParallelLMHead)]
    if not heads:
        heads = [
            m for m in base_model.modules() if isinstance(m, VocabParallelEmbedding)
        ]
    if len(heads) > 1:
        named = [
            getattr(owner, "lm_head", None)
            for owner in (base_model, getattr(base_model, "language_model", None))
        ]
        heads = [head for head in named if isinstance(head, VocabParallelEmbedding)]
    if len(heads) != 1:
        raise UnsupportedError(
            f"{type(base_model).__name__} has {len(heads)} LM heads that Medusa could "
            "share; exactly one is needed"
        )
    return heads[0]


def _base_product(
    lm_head: VocabParallelEmbedding, dtype: torch.dtype, rows: int
) -> Product:
    """The base model's own product, which has its weight packed where that helps.

    Everything is looked up in the model when it is used: reloaded weights count.
    """

    def product(x: torch.Tensor) -> torch.Tensor:
        weight = lm_head.weight
        if weight.device.type == "cpu" and not hasattr(lm_head, "cpu_linear"):
            logits = F.linear(x, weight)
        else:
            logits = lm_head.quant_method.apply(lm_head, x)
        logits = logits[..., :rows]
        bias = getattr(lm_head, "bias", None)
        return logits if bias is None else logits + bias[:rows].to(dtype)

    return product


# token_map: int64 [draft_vocab] or None
def lm_head_shard(
    lm_head: VocabParallelEmbedding,
    token_map: torch.Tensor | None,
    parallel: TensorParallel,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> VocabularyShard:
    """This rank's part of the base LM head, without vocabulary padding.

    Without a token_map that is a view of the base model's own weight (where dtype
    and device agree): it takes no memory. With one, its rows are collected from
    all ranks and dealt out evenly, since frequent tokens crowd on the first rank.

    Raises:
        UnsupportedError: the LM head is quantised.
    """
    method = lm_head.quant_method
    plain = isinstance(method, UnquantizedEmbeddingMethod | UnquantizedLinearMethod)
    if not plain or not lm_head.weight.is_floating_point():
        raise UnsupportedError(
            f"the base model's LM head is quantised ({type(method).__name__}), and "
            "these heads share it: use heads with projections of their own, or a "
            "base model whose LM head is left unquantised"
        )
    # Rows of LoRA's added tokens and of padding come after these.
    shard = lm_head.shard_indices
    start, end = shard.org_vocab_start_index, shard.org_vocab_end_index
    weight = lm_head.weight.detach()[: end - start]
    bias = getattr(lm_head, "bias", None)
    bias = None if bias is None else bias.detach()[: end - start]
    if token_map is None:
        if lm_head.tp_size == 1 and parallel.size > 1:
            # A replicated LM head: each rank takes its part of it.
            first, last = parallel.bounds(end)
            weight, start = weight[first:last], first
            bias = None if bias is None else bias[first:last]
        bias = None if bias is None else bias.to(device, dtype)
        product = None
        if len(weight) == end - start and weight.dtype == dtype:
            product = _base_product(lm_head, dtype, len(weight))
        return VocabularyShard(weight.to(device, dtype), bias, None, start, product)
    token_map = token_map.to(weight.device)
    spread = parallel if lm_head.tp_size > 1 else TensorParallel()
    here = (token_map >= start) & (token_map < end)

    def collect(rows: torch.Tensor) -> torch.Tensor:
        chosen = rows.new_zeros(len(token_map), *rows.shape[1:])
        chosen[here] = rows[token_map[here] - start]
        return spread.sum(chosen)

    first, last = parallel.bounds(len(token_map))
    return VocabularyShard(
        weight=collect(weight)[first:last].to(device, dtype).clone(),
        bias=None
        if bias is None
        else collect(bias)[first:last].to(device, dtype).clone(),
        # Copied: the checkpoint's tensors may be views of the file itself.
        token_ids=token_map[first:last].to(device, copy=True),
    )
