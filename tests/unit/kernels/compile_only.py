# SPDX-License-Identifier: Apache-2.0
"""Compile the launches of what happens between two forward passes; prints JSON.

Usage: python -m tests.unit.kernels.compile_only CAPABILITY
"""

from __future__ import annotations

import torch

from tests.triton_compile import main


def _launch_everything(capability: int) -> None:
    from vllm_medusa.kernels import backend
    from vllm_medusa.kernels.merge_top_k import merge_top_k
    from vllm_medusa.kernels.move_rows import RowMover
    from vllm_medusa.kernels.walk import walk_trees

    # CPU tensors stand for those of a GPU.
    backend._IS_INTERPRETED = True

    def int32(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32)

    for width, dtype in ((1, torch.int64), (64, torch.int32), (257, torch.int32)):
        tokens = torch.zeros(4 * width, dtype=dtype)
        one_tree, own_trees = int32(1, width).expand(4, width), int32(4, width)
        for parents in (one_tree, own_trees):
            walk_trees(tokens, tokens.long(), parents, int32(5), 5)
    for heads, size, dtype in (
        (32, 128, torch.bfloat16),
        (3, 64, torch.float8_e4m3fn),
        (3, 5, torch.uint8),
    ):
        cache = torch.zeros(2, 2, 16, heads, size, dtype=dtype)
        transposed = torch.zeros(2, heads, size, 16, dtype=dtype).permute(0, 3, 1, 2)
        mover = RowMover([(cache[0], cache[1]), (transposed, cache[0])])
        mover.move(int32(4, 9), int32(4), int32(4, 6), int32(4))
        mover.move(int32(4, 9), int32(4).long(), int32(4, 6), int32(4))
    for size, k, width in ((2, 10, 20), (8, 10, 21), (8, 64, 129)):
        merge_top_k(torch.zeros(size, 4, 5, width), k)


if __name__ == "__main__":
    main(_launch_everything)
