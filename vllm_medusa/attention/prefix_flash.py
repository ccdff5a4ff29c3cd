# SPDX-License-Identifier: Apache-2.0
"""The prefix part by the FlashAttention that vLLM ships."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from vllm.utils.torch_utils import canonicalize_singleton_dim_strides

from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.tree_rows import TreeRows

# The version whose kernels read a schedule, made once per step.
_SCHEDULED_VERSION = 3


@dataclass(frozen=True, slots=True)
class FlashShape:
    """What FlashAttention's schedule depends on; layers of one shape share it."""

    version: int
    """2, 3 or 4: the one that vLLM chose for the layer."""
    num_heads: int
    num_kv_heads: int
    head_size: int
    block_size: int
    dtype: torch.dtype
    """Of queries and keys as the kernel reads them."""
    has_soft_cap: bool


@dataclass(frozen=True, slots=True)
class SplitBound:
    """In how many parts FlashAttention 3 may cut a context.

    Left to itself it decides on the host, which a CUDA graph would freeze; room for
    many parts is too much memory for a large batch that no graph serves.
    """

    max_num_splits: int = 0
    """Inside CUDA graphs; 0 where there are none."""
    max_graph_tokens: int = -1
    """Rows of the largest graph."""


class FlashPrefix:
    """`PrefixAttention` by `flash_attn_varlen_func` of vLLM, without causality.

    Lengths stay on the device (`seqused_k`), so a CUDA graph can be captured. Where
    a prefix is empty, FlashAttention 2 writes a log-sum-exp of +inf, 3 and 4 of -inf;
    the merge looks at neither. 8-bit queries are taken as they are: `kv.key_scale`
    holds the product of both scales then.

    FlashAttention 3 spreads long prefixes over the processors by a schedule that
    follows the lengths. It is made here once per step, as vLLM does for its own
    layers.
    """

    def __init__(
        self,
        shape: FlashShape,
        max_num_reqs: int,
        splits: SplitBound,
        device: torch.device,
    ) -> None:
        from vllm.v1.attention.backends import fa_utils

        self._shape = shape
        self._is_scheduled = shape.version == _SCHEDULED_VERSION
        self._splits = splits
        self._attend = fa_utils.flash_attn_varlen_func
        self._make_schedule = fa_utils.get_scheduler_metadata
        # A counter, and four numbers per request, requests rounded up to a multiple
        # of four. CUDA graphs read them where they lie.
        num_numbers = 1 + -(-max_num_reqs // 4) * 4 * 4 if self._is_scheduled else 0
        self._schedule = torch.zeros(num_numbers, dtype=torch.int32, device=device)
        self._num_scheduled = 0

    @property
    def num_bytes(self) -> int:
        """As `PrefixAttention.num_bytes`: the schedule."""
        return self._schedule.nbytes

    def prepare(
        self,
        trees: TreeRows,
        # [num_reqs] int32
        bases: torch.Tensor,
    ) -> None:
        """As `PrefixAttention.prepare`: make the schedule of FlashAttention 3."""
        if not self._is_scheduled:
            return
        shape = self._shape
        schedule = self._make_schedule(
            batch_size=trees.num_reqs,
            max_seqlen_q=trees.width,
            max_seqlen_k=trees.max_seq_len,
            num_heads_q=shape.num_heads,
            num_heads_kv=shape.num_kv_heads,
            headdim=shape.head_size,
            cache_seqlens=bases,
            qkv_dtype=shape.dtype,
            cu_seqlens_q=trees.query_start_loc,
            page_size=shape.block_size,
            causal=False,
            has_softcap=shape.has_soft_cap,
            num_splits=self._max_num_splits(trees),
        )
        self._num_scheduled = schedule.shape[0]
        self._schedule[: self._num_scheduled] = schedule
        # Blocks of threads must not find work of an earlier, larger step.
        self._schedule[self._num_scheduled :] = 0

    # ([num_tokens, num_heads, head_size], [num_heads, num_tokens] float32)
    def attend(
        self,
        # [num_tokens, num_heads, head_size]
        query: torch.Tensor,
        kv: PagedKV,
        trees: TreeRows,
        # [num_reqs] int32
        bases: torch.Tensor,
        # [num_tokens, num_heads, head_size], written
        output: torch.Tensor,
        scaling: AttentionScaling,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `PrefixAttention.attend`; the attended values lie in `output`."""
        # [num_reqs, num_kv_heads], stride 0
        shape = (trees.num_reqs, self._shape.num_kv_heads)
        return self._attend(
            q=query,
            # A lone KV head may have a stride that Hopper's loads don't take.
            k=canonicalize_singleton_dim_strides(kv.keys),
            v=canonicalize_singleton_dim_strides(kv.values),
            out=output,
            cu_seqlens_q=trees.query_start_loc,
            max_seqlen_q=trees.width,
            seqused_k=bases,
            max_seqlen_k=trees.max_seq_len,
            softmax_scale=scaling.scale,
            causal=False,
            block_table=kv.block_table,
            softcap=scaling.soft_cap,
            return_softmax_lse=True,
            scheduler_metadata=self._schedule[: self._num_scheduled]
            if self._is_scheduled
            else None,
            fa_version=self._shape.version,
            k_descale=None if kv.key_scale is None else kv.key_scale.expand(shape),
            v_descale=None if kv.value_scale is None else kv.value_scale.expand(shape),
            num_splits=self._max_num_splits(trees),
        )

    def _max_num_splits(self, trees: TreeRows) -> int:
        if self._is_scheduled and trees.num_tokens <= self._splits.max_graph_tokens:
            return self._splits.max_num_splits
        return 0
