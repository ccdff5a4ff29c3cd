# SPDX-License-Identifier: Apache-2.0
"""The prefix part by xformers' partial attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from vllm.triton_utils import tl

from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.tree_rows import TreeRows
from vllm_medusa.errors import UnsupportedError

# Head sizes of xformers' split-K kernel.
HEAD_SIZES = (16, 32, 64, 128, 256, 512)
# Keys that it takes at a time; a page is a multiple of them.
_KEYS_AT_A_TIME = 64
_FEWEST_KEYS = 16


def refusal(
    # [num_blocks, block_size, num_kv_heads, head_size] each
    keys: torch.Tensor,
    values: torch.Tensor,
) -> str | None:
    """Say why xformers can't read a cache, and what to do; None if it can."""
    _, block_size, _, head_size = keys.shape
    if keys.dtype not in (torch.float16, torch.bfloat16):
        return f"xformers does not read a KV cache of {keys.dtype}"
    if head_size not in HEAD_SIZES:
        return f"xformers has no kernel for head size {head_size}"
    if block_size % _FEWEST_KEYS:
        return (
            f"xformers reads blocks of a multiple of {_FEWEST_KEYS} tokens, not "
            f"{block_size}: set --block-size"
        )
    if any(view.stride(0) != block_size * view.stride(1) for view in (keys, values)):
        return (
            "xformers reads a cache whose tokens lie evenly spaced, block after "
            "block: set VLLM_KV_CACHE_LAYOUT=LBNHC"
        )
    return None


class XformersPrefix:
    """`PrefixAttention` by `xformers.ops.fmha.memory_efficient_attention_partial`.

    Its bias for paged keys, `PagedBlockDiagonalPaddedKeysMask`, is usually built from
    lists of lengths. The kernel (split-K, in Triton; of xformers' kernels the only one
    for pages smaller than 256 tokens) reads the lengths from the bias' tensors, and
    the lists serve checks and bounds. So the bias is built here around tensors that
    stay on the device, with bounds for lists: a CUDA graph can be captured, and the
    grid, sized for the widest block table, finds short prefixes by itself. xformers
    merges by the same rule as ours (`merge_attentions`), so its natural-logarithm
    log-sum-exp goes straight into the merge with the tree part.

    Written against xformers 0.0.35. Raises UnsupportedError where it is not installed,
    does not import beside this torch, its bias has other fields, or Triton no longer
    has the block pointers (deprecated in 3.7) that its kernel loads with.
    """

    def __init__(self, max_num_reqs: int, device: torch.device) -> None:
        try:
            from xformers.ops import fmha
            from xformers.ops.fmha import attn_bias, triton_splitk
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            raise UnsupportedError(
                f"attention=xformers needs xformers 0.0.35 ({error}): install "
                "vllm-medusa[cuda], or use attention=triton"
            ) from error
        if not hasattr(tl, "make_block_ptr"):
            raise UnsupportedError(
                "the kernel of xformers needs Triton's block pointers, which this "
                "release of Triton does not have: use attention=triton"
            )
        self._attend = fmha.memory_efficient_attention_partial
        self._bias = attn_bias
        self._split_k = triton_splitk.FwOp
        # By block size: the kernel with as many keys at a time as fit a block.
        self._kernels: dict[int, Any] = {}
        # [max_num_reqs + 1] int32; a field that no kernel reads for paged keys
        self._starts = torch.zeros(max_num_reqs + 1, dtype=torch.int32, device=device)
        self._check_fields()

    @property
    def num_bytes(self) -> int:
        """As `PrefixAttention.num_bytes`."""
        return self._starts.nbytes

    def prepare(
        self,
        trees: TreeRows,
        # [num_reqs] int32
        bases: torch.Tensor,
    ) -> None:
        """As `PrefixAttention.prepare`; layers share nothing but the lengths."""

    # ([num_tokens, num_heads, head_size], [num_heads, num_tokens] float32)
    def attend(
        self,
        # [num_tokens, num_heads, head_size]
        query: torch.Tensor,
        kv: PagedKV,
        trees: TreeRows,
        # [num_reqs] int32
        bases: torch.Tensor,
        # [num_tokens, num_heads, head_size], not used
        output: torch.Tensor,
        scaling: AttentionScaling,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `PrefixAttention.attend`.

        Raises:
            UnsupportedError: for a soft cap.
        """
        if scaling.soft_cap:
            raise UnsupportedError(
                f"xformers has no soft cap of scores ({scaling.soft_cap}): use "
                "attention=triton"
            )
        num_tokens, num_heads, head_size = query.shape
        num_blocks, block_size, num_kv_heads, _ = kv.keys.shape
        group = num_heads // num_kv_heads
        # [1, tokens, num_kv_heads, group, head_size]; keys repeat with stride 0
        shape = (1, num_blocks * block_size, num_kv_heads, 1, head_size)
        repeated = (-1, -1, -1, group, -1)
        attended, lse = self._attend(
            query.unflatten(1, (num_kv_heads, group))[None],
            kv.keys.view(shape).expand(repeated),
            kv.values.view(shape).expand(repeated),
            self._make_bias(trees, bases, kv.block_table, block_size),
            scale=scaling.scale,
            op=self._kernel(block_size),
        )
        return attended.view(query.shape), lse.reshape(num_heads, num_tokens)

    def _make_bias(
        self,
        trees: TreeRows,
        # [num_reqs] int32
        bases: torch.Tensor,
        # [num_reqs, max_blocks] int32
        block_table: torch.Tensor,
        block_size: int,
    ) -> Any:
        # Fewer blocks, fewer programs: those behind the longest request stay out.
        block_table = block_table[:, : -(-trees.max_seq_len // block_size)]
        bound = block_table.shape[1] * block_size
        return self._bias.PagedBlockDiagonalPaddedKeysMask(
            q_seqinfo=self._bias._SeqLenInfo(
                seqstart=trees.query_start_loc,
                # Of one row, queries would be taken for one per request.
                max_seqlen=max(trees.width, 2),
                min_seqlen=0,
                seqstart_py=[0, trees.num_tokens],
            ),
            k_seqinfo=self._bias._PaddedSeqLenInfo(
                seqstart=self._starts[: trees.num_reqs + 1],
                max_seqlen=bound,
                min_seqlen=0,
                seqstart_py=[0, bound],
                seqlen=bases,
                seqlen_py=[bound],
                padding=bound,
            ),
            block_tables=block_table,
            page_size=block_size,
        )

    def _kernel(self, block_size: int) -> Any:
        if block_size not in self._kernels:
            at_a_time = math.gcd(block_size, _KEYS_AT_A_TIME)
            self._kernels[block_size] = type(
                f"{self._split_k.__name__}_{at_a_time}",
                (self._split_k,),
                {"BLOCK_N": at_a_time},
            )
        return self._kernels[block_size]

    def _check_fields(self) -> None:
        """Build a bias as `attend` will, so that another release is noticed here."""
        one = self._starts[:1]
        trees = TreeRows(
            num_reqs=1,
            num_tokens=1,
            width=1,
            max_seq_len=_FEWEST_KEYS,
            is_whole_step=True,
            query_start_loc=self._starts[:2],
            seq_lens=one,
            depths=one[None],
            ancestors=one[None, None].bool(),
        )
        try:
            self._make_bias(trees, one, one[None], _FEWEST_KEYS)
        except (AttributeError, TypeError) as error:
            raise UnsupportedError(
                f"attention=xformers knows the paged bias of xformers 0.0.35, not of "
                f"the installed release ({error}): use attention=triton"
            ) from error
