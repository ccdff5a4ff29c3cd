# SPDX-License-Identifier: Apache-2.0
"""Prompts of many lengths."""

from __future__ import annotations

import torch


def random_prompts(
    count: int, vocab_size: int, *, shortest: int = 1, longest: int = 100, seed: int = 0
) -> list[list[int]]:
    """Prompts of random tokens (no special ones) and random lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator)
    return [
        torch.randint(3, vocab_size, (int(length),), generator=generator).tolist()
        for length in lengths
    ]
