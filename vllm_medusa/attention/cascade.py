# SPDX-License-Identifier: Apache-2.0
"""Tree attention in two parts: the prefix by a fast kernel, then the tree."""

from __future__ import annotations

import torch

from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.prefix_attention import PrefixAttention
from vllm_medusa.attention.tree_part import attend_tree_part
from vllm_medusa.attention.tree_rows import TreeRows
from vllm_medusa.errors import UnsupportedError


class CascadeTreeAttention:
    """`TreeAttention` without a mask over the context.

    Every row sees the whole prefix, so a kernel without a mask attends it and returns
    the log-sum-exp of its scores; the rows × rows part is attended apart and merged.
    The cost grows with the context as that of plain decoding does. A sliding window
    would cut the prefix at another place for each depth: refused.

    Layers of one shape share an instance, which keeps the roots' positions of a step:
    `prepare` must run before the forward pass, outside of CUDA graphs.
    """

    name = "cascade"

    def __init__(
        self, prefix: PrefixAttention, max_num_reqs: int, device: torch.device
    ) -> None:
        self.prefix = prefix
        # [max_num_reqs] int32; CUDA graphs read it where it lies
        self._bases = torch.zeros(max_num_reqs, dtype=torch.int32, device=device)

    @property
    def num_bytes(self) -> int:
        """As `TreeAttention.num_bytes`."""
        return self._bases.nbytes + self.prefix.num_bytes

    def prepare(self, trees: TreeRows) -> None:
        """Compute what all layers of a step share; no number reaches the host."""
        bases = self._bases[: trees.num_reqs]
        starts = trees.query_start_loc
        torch.sub(trees.seq_lens, starts[1:], out=bases)
        # Dummy batches of a capture have sequences shorter than their rows.
        bases.add_(starts[:-1]).clamp_(min=0)
        self.prefix.prepare(trees, bases)

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
        """As `TreeAttention.attend`, after `prepare` for the same step.

        Raises:
            UnsupportedError: for a sliding window.
        """
        if scaling.sliding_window is not None:
            raise UnsupportedError(
                f"{self.name} tree attention can't serve a sliding window "
                f"({scaling.sliding_window} tokens): use attention=triton"
            )
        bases = self._bases[: trees.num_reqs]
        attended, lse = self.prefix.attend(query, kv, trees, bases, output, scaling)
        attend_tree_part(query, kv, trees, bases, attended, lse, output, scaling)
