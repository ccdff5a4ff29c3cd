# SPDX-License-Identifier: Apache-2.0
"""Tree attention on the CPU: a masked softmax over the blocks of all trees at once.

vLLM's CPU kernel has no mask and returns no log-sum-exp, so tree rows are attended
here, in PyTorch: one gather of the blocks, two batched products, one pass over the
context. A step of a small model has little time per layer, so `attend` is six
operations, with everything that the layers share prepared in `CpuTreePlan`.
"""

from __future__ import annotations

import torch

from vllm_medusa.attention.cpu_tree_rows import CpuTreeRows
from vllm_medusa.attention.tree_batch import TreeBatch


class CpuTreePlan:
    """What all layers of one KV cache group share during one step.

    Made at the step's first layer; the next ones find index, mask and buffers ready.
    """

    def __init__(
        self,
        batch: TreeBatch | CpuTreeRows,
        # [num_reqs, max_blocks] int32, the whole step's block table
        block_table: torch.Tensor,
        num_kv_heads: int,
        head_size: int,
        block_size: int,
        dtype: torch.dtype,
    ) -> None:
        self.batch = batch
        self.num_kv_heads = num_kv_heads
        self.head_size = head_size
        self.block_size = block_size
        self.num_blocks = -(-batch.longest // block_size)
        # [num_trees, num_blocks] int64
        blocks = block_table[batch.requests, : self.num_blocks].long()
        self._index = self._lines(blocks)
        self._gathered = torch.empty(self._index.numel(), block_size, dtype=dtype)
        keys, values = self._gathered.view(
            2, batch.num_trees * num_kv_heads, -1
        ).unbind(0)
        self._keys = keys.view(-1, head_size, self.context)
        self._values = values.view(-1, self.context, head_size)
        self._biases: dict[tuple[int, int], torch.Tensor] = {}

    @property
    def context(self) -> int:
        """Keys per tree, padding to whole blocks included."""
        return self.num_blocks * self.block_size

    # [2 * num_trees * num_kv_heads * head_size * num_blocks] int64
    def _lines(self, blocks: torch.Tensor) -> torch.Tensor:
        """Return which lines of the cache to gather, and in what order.

        A line is `block_size` elements: in the keys' half of a block, one dimension
        of all its keys; in the values' half, just a piece of memory. Keys are
        ordered [tree, head, dimension, block], so that a tree's keys become one
        [head_size, context] matrix; values [tree, head, block, line], which is
        [context, head_size].
        """
        heads = torch.arange(self.num_kv_heads)
        lines = torch.arange(self.head_size)
        # [num_trees, num_kv_heads, num_blocks]: first line of a block's keys
        first = (blocks[:, None, :] * self.num_kv_heads + heads[:, None]) * 2
        first = first * self.head_size
        keys = first[:, :, None, :] + lines[:, None]
        values = first[:, :, :, None] + self.head_size + lines
        return torch.cat([keys.flatten(), values.flatten()])

    def gather(
        self,
        # [num_blocks, num_kv_heads, block_size, 2 * head_size]
        kv_cache: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 keys [num_trees * num_kv_heads, head_size, context] and
        values [num_trees * num_kv_heads, context, head_size]."""
        lines = kv_cache.view(-1, self.block_size)
        torch.index_select(lines, 0, self._index, out=self._gathered)
        return self._keys.float(), self._values.float()

    # [num_trees * num_kv_heads, group * width, context] float32
    def bias(self, sliding_window: int, group: int) -> torch.Tensor:
        """Return 0 where a row sees a key and -inf elsewhere; -1 is no window.

        `group` is the number of query heads per KV head.
        """
        key = sliding_window, group
        if key not in self._biases:
            bias = self._make_bias(sliding_window)[:, None, None]
            self._biases[key] = bias.expand(
                -1, self.num_kv_heads, group, -1, -1
            ).reshape(-1, group * self.batch.width, self.context)
        return self._biases[key]

    # [num_trees, width, context] float32
    def _make_bias(self, sliding_window: int) -> torch.Tensor:
        batch = self.batch
        num_trees, width = batch.num_trees, batch.width
        bases = batch.bases[:, None, None]
        slots = torch.arange(self.context)
        # Row that wrote each slot: negative for the committed prefix.
        writer = (slots - bases).expand(num_trees, width, self.context)
        in_tree = (writer >= 0) & (writer < batch.num_rows[:, None, None])
        row = writer.clamp(0, width - 1)
        of_row = batch.row_ancestors().gather(2, row)
        visible = (writer < 0) | (in_tree & of_row)
        if sliding_window >= 0:
            # [num_trees, width]
            own = batch.bases[:, None] + batch.row_depths()
            written = own[:, None].expand(-1, width, -1).gather(2, row)
            positions = torch.where(writer < 0, slots, written)
            oldest = own[:, :, None] - sliding_window
            visible &= positions > oldest
        return torch.where(visible, 0.0, float("-inf"))


def attend(
    plan: CpuTreePlan,
    # [num_tokens, num_heads, head_size]
    query: torch.Tensor,
    # [num_blocks, num_kv_heads, block_size, 2 * head_size]
    kv_cache: torch.Tensor,
    # [num_tokens, num_heads, head_size] (or flattened), tree rows are written
    output: torch.Tensor,
    scale: float,
    sliding_window: int = -1,
    soft_cap: float = 0.0,
) -> None:
    """Attend the tree rows of a step; computed in float32.

    Equal to `vllm_medusa.attention.reference.tree_attention` for each tree.
    """
    batch, num_kv_heads = plan.batch, plan.num_kv_heads
    num_heads, head_size = query.shape[1:]
    group = num_heads // num_kv_heads
    shape = (batch.num_trees, batch.width, num_kv_heads, group, head_size)
    keys, values = plan.gather(kv_cache)
    rows = query[: batch.num_tokens] if batch.is_dense else query[batch.token_rows]
    # [num_trees * num_kv_heads, group * width, head_size]
    rows = (
        rows.view(shape)
        .permute(0, 2, 3, 1, 4)
        .reshape(-1, group * batch.width, head_size)
        .float()
    )
    bias = plan.bias(sliding_window, group)
    if soft_cap:
        scores = torch.bmm(rows, keys).mul_(scale / soft_cap).tanh_()
        scores = scores.mul_(soft_cap).add_(bias)
    else:
        scores = torch.baddbmm(bias, rows, keys, alpha=scale)
    attended = torch.bmm(scores.softmax(dim=-1), values)
    # [num_trees, width, num_kv_heads, group, head_size]
    attended = attended.view(
        batch.num_trees, num_kv_heads, group, batch.width, head_size
    ).permute(0, 3, 1, 2, 4)
    if batch.is_dense:
        output[: batch.num_tokens].view(shape).copy_(attended)
    else:
        flat = attended.reshape(-1, num_heads, head_size).to(output.dtype)
        output.view(-1, num_heads, head_size)[batch.token_rows.flatten()] = flat
