# SPDX-License-Identifier: Apache-2.0
"""One fixed tree through vLLM's own Triton kernel."""

from __future__ import annotations

import torch
from vllm.v1.attention.ops.triton_unified_attention import unified_attention
from vllm.v1.kv_cache_interface import KVQuantMode

from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.tree_rows import TreeRows
from vllm_medusa.errors import TreeError, UnsupportedError

_MAX_ROWS_PER_PROGRAM = 32
"""Of query rows that a program of vLLM's kernel may take (BLOCK_Q)."""


class UnifiedTreeAttention:
    """`TreeAttention` for requests that all verify one tree, or its first rows.

    vLLM's `unified_attention` adds `qq_bias[r, k]` to the score of a request's row r
    for the key that its row k wrote, on top of the causal mask over slots: 0 where k
    is r or an ancestor of it and -inf elsewhere is the tree. The kernel takes the
    row stride of the bias for its width, and reads the bias of the rows that pad a
    request to whole programs.

    A sliding window would count slots instead of positions, and is refused.
    """

    name = "triton"

    def __init__(
        self,
        # [max_width, max_width] bool, row r sees itself and its ancestors
        ancestors: torch.Tensor,
    ) -> None:
        """Lay the tree out on the device of `ancestors`."""
        self.width = ancestors.shape[0]
        # [max_width + padding, max_width] float32
        self._bias = torch.zeros(
            self.width + _MAX_ROWS_PER_PROGRAM,
            self.width,
            dtype=torch.float32,
            device=ancestors.device,
        )
        self._bias[: self.width].masked_fill_(~ancestors, float("-inf"))

    @property
    def num_bytes(self) -> int:
        """As `TreeAttention.num_bytes`: the bias."""
        return self._bias.nbytes

    def attend(
        self,
        # [num_tokens, num_heads, head_size], of the tree rows alone
        query: torch.Tensor,
        kv: PagedKV,
        trees: TreeRows,
        # [num_tokens, num_heads, head_size], written
        output: torch.Tensor,
        scaling: AttentionScaling,
    ) -> None:
        """As `TreeAttention.attend`; `trees.ancestors` is not looked at.

        Raises:
            UnsupportedError: for a sliding window.
            TreeError: for requests wider than the tree.
        """
        if scaling.sliding_window is not None:
            raise UnsupportedError(
                "vLLM's unified attention counts a sliding window in slots, which is "
                "wrong for a tree: attend this layer with TritonTreeAttention"
            )
        if trees.width > self.width:
            raise TreeError(
                f"requests of {trees.width} rows can't verify a tree of {self.width}"
            )
        has_scales = kv.key_scale is not None
        unified_attention(
            q=query,
            k=kv.keys,
            v=kv.values,
            out=output,
            cu_seqlens_q=trees.query_start_loc,
            max_seqlen_q=trees.width,
            seqused_k=trees.seq_lens,
            max_seqlen_k=trees.max_seq_len,
            softmax_scale=scaling.scale,
            causal=True,
            window_size=(-1, -1),
            block_table=kv.block_table,
            softcap=scaling.soft_cap,
            q_descale=None,
            k_descale=kv.key_scale,
            v_descale=kv.value_scale,
            qq_bias=self._bias,
            kv_quant_mode=(
                KVQuantMode.FP8_PER_TENSOR if has_scales else KVQuantMode.NONE
            ),
        )
