# SPDX-License-Identifier: Apache-2.0
"""Tree attention on the CPU: a masked softmax over the blocks of all trees at once.

vLLM's CPU kernel has no mask and returns no log-sum-exp, so tree rows are attended
here, in PyTorch: one gather of the blocks, two batched products, one pass over the
context.
"""

from __future__ import annotations

import torch

from vllm_medusa.attention.tree_batch import TreeBatch


class CpuTreePlan:
    """What all layers of one KV cache group share during one step.

    Made at the step's first layer; the next ones find index, mask and buffers ready.
    """

    def __init__(
        self,
        batch: TreeBatch,
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
        longest = int((batch.bases_np + batch.num_rows_np).max())
        self.num_blocks = -(-longest // block_size)
        requests = torch.from_numpy(batch.request_indices)
        blocks = block_table[requests, : self.num_blocks].long()
        # The cache is read as [num_blocks * num_kv_heads * 2, block_size * head_size].
        # Keys of all trees come first, then values: both halves are ready for bmm.
        heads = torch.arange(num_kv_heads)
        index = (blocks[:, None, :] * num_kv_heads + heads[None, :, None]) * 2
        # [2, num_trees, num_kv_heads, num_blocks] int64, flattened
        self.index = torch.stack([index, index + 1]).flatten()
        self.gathered = torch.empty(
            self.index.numel(), block_size * head_size, dtype=dtype
        )
        self._biases: dict[int, torch.Tensor] = {}
        self._scores: dict[int, torch.Tensor] = {}

    def gather(
        self,
        # [num_blocks, num_kv_heads, block_size, 2 * head_size]
        kv_cache: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 keys [num_trees * num_kv_heads * num_blocks, head_size,
        block_size] and values [num_trees * num_kv_heads, context, head_size]."""
        rows = kv_cache.view(-1, self.block_size * self.head_size)
        torch.index_select(rows, 0, self.index, out=self.gathered)
        half = self.index.numel() // 2
        keys = self.gathered[:half].view(-1, self.head_size, self.block_size)
        values = self.gathered[half:].view(
            self.batch.num_trees * self.num_kv_heads, -1, self.head_size
        )
        return keys.float(), values.float()

    # [num_trees, 1, 1, width, num_blocks, block_size] float32
    def bias(self, sliding_window: int) -> torch.Tensor:
        """Return 0 where a row sees a key and -inf elsewhere; -1 is no window."""
        if sliding_window not in self._biases:
            self._biases[sliding_window] = self._make_bias(sliding_window)
        return self._biases[sliding_window]

    def _make_bias(self, sliding_window: int) -> torch.Tensor:
        batch, layout = self.batch, self.batch.layout
        num_trees, width = batch.num_trees, batch.width
        context = self.num_blocks * self.block_size
        bases = batch.bases[:, None, None]
        slots = torch.arange(context)
        # Row that wrote each slot: negative for the committed prefix.
        writer = (slots - bases).expand(num_trees, width, context)
        in_tree = (writer >= 0) & (writer < batch.num_rows[:, None, None])
        ancestors = layout.ancestors[batch.tree_rows]
        of_row = ancestors.gather(2, writer.clamp(0, width - 1))
        visible = (writer < 0) | (in_tree & of_row)
        if sliding_window >= 0:
            depths = layout.depths[writer.clamp(0, width - 1)]
            positions = torch.where(writer < 0, slots, bases + depths)
            oldest = batch.positions()[:, :, None] - sliding_window
            visible &= positions > oldest
        bias = torch.where(visible, 0.0, float("-inf"))
        return bias.view(num_trees, 1, 1, width, self.num_blocks, self.block_size)

    def scores_buffer(self, group: int) -> torch.Tensor:
        """Return an uninitialised float32 buffer [num_trees, num_kv_heads, group,
        width, num_blocks, block_size]."""
        if group not in self._scores:
            self._scores[group] = torch.empty(
                self.batch.num_trees,
                self.num_kv_heads,
                group,
                self.batch.width,
                self.num_blocks,
                self.block_size,
            )
        return self._scores[group]


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
    batch = plan.batch
    num_trees, width = batch.num_trees, batch.width
    num_kv_heads, head_size = plan.num_kv_heads, plan.head_size
    num_heads = query.shape[1]
    group = num_heads // num_kv_heads
    keys, values = plan.gather(kv_cache)

    rows = query[: batch.num_tokens] if batch.is_dense else query[batch.token_rows]
    rows = rows.view(num_trees, width, num_kv_heads, group, head_size)
    # [num_trees * num_kv_heads, 1, group * width, head_size]
    rows = (rows.permute(0, 2, 3, 1, 4).float() * scale).reshape(
        num_trees * num_kv_heads, 1, group * width, head_size
    )
    rows = rows.expand(-1, plan.num_blocks, -1, -1).reshape(
        -1, group * width, head_size
    )
    # [num_trees, num_kv_heads, group, width, num_blocks, block_size]
    scores = (
        torch.bmm(rows, keys)
        .view(num_trees, num_kv_heads, plan.num_blocks, group, width, plan.block_size)
        .permute(0, 1, 3, 4, 2, 5)
    )
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    # Adding the bias also brings a row's scores of all blocks side by side.
    biased = plan.scores_buffer(group)
    torch.add(scores, plan.bias(sliding_window), out=biased)
    weights = biased.view(num_trees * num_kv_heads, group * width, -1).softmax(dim=-1)
    attended = (
        torch.bmm(weights, values)
        .view(num_trees, num_kv_heads, group, width, head_size)
        .permute(0, 3, 1, 2, 4)
        .reshape(num_trees * width, num_heads, head_size)
        .to(output.dtype)
    )
    target = output.view(-1, num_heads, head_size)
    if batch.is_dense:
        target[: batch.num_tokens] = attended
    else:
        target[batch.token_rows.flatten()] = attended
