# SPDX-License-Identifier: Apache-2.0
"""Which sizes of tree a batch can have, by the batch-size table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def nodes_by_batch_size(vllm_config: VllmConfig) -> list[int]:
    """Return the tree's nodes for each number of running requests; entry 0 is unused.

    The lookup that the scheduler itself uses
    (`vllm.v1.spec_decode.dynamic.utils.build_dynamic_sd_schedule_lookup`).
    """
    speculative = vllm_config.speculative_config
    assert speculative is not None
    max_num_reqs = vllm_config.scheduler_config.max_num_seqs
    num_nodes = vllm_config.num_speculative_tokens
    if not speculative.uses_dynamic_speculative_decoding():
        return [num_nodes] * (max_num_reqs + 1)
    lookup: list[int] = build_dynamic_sd_schedule_lookup(
        speculative.num_speculative_tokens_per_batch_size,
        vllm_max_batch_size=max_num_reqs,
        vllm_num_speculative_tokens=num_nodes,
    )
    return lookup


def reachable_batch_sizes(
    captured: Iterable[int], num_nodes: int, schedule: list[int]
) -> set[int]:
    """Return which captured batch sizes some batch with `num_nodes` nodes is padded to.

    A batch is padded to the next captured size, so a size counts if the table gives
    `num_nodes` to a batch above the size below it.
    """
    reachable = set()
    smaller = 0
    for size in sorted(set(captured)):
        if num_nodes in schedule[smaller + 1 : size + 1]:
            reachable.add(size)
        smaller = size
    return reachable
