# SPDX-License-Identifier: Apache-2.0
"""Forms of parallelism that Medusa can't run under, refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_medusa.errors import refuse_first

if TYPE_CHECKING:
    from vllm.config import ParallelConfig


def verify_parallel(parallel: ParallelConfig) -> None:
    """Refuse what would split a step between ranks in a way that the heads, or the
    verification that every rank does for itself, know nothing of.

    Tensor parallelism is supported, and data parallelism of dense models, which is
    engines side by side.

    Raises:
        UnsupportedError: naming the option and what to do.
    """
    is_moe = bool(parallel.is_moe_model)
    # (option in use, its name and what to do)
    refused = (
        (
            parallel.pipeline_parallel_size > 1,
            "pipeline parallelism (--pipeline-parallel-size "
            f"{parallel.pipeline_parallel_size}): use tensor parallelism",
        ),
        (
            parallel.decode_context_parallel_size > 1,
            "--decode-context-parallel-size "
            f"{parallel.decode_context_parallel_size}: use 1",
        ),
        (
            parallel.prefill_context_parallel_size > 1,
            "--prefill-context-parallel-size "
            f"{parallel.prefill_context_parallel_size}: use 1",
        ),
        (
            is_moe and parallel.enable_expert_parallel,
            "expert parallelism: drop --enable-expert-parallel",
        ),
        (
            is_moe and parallel.data_parallel_size > 1,
            "data parallelism of a mixture of experts, whose replicas step together "
            f"(--data-parallel-size {parallel.data_parallel_size}): start servers of "
            "their own",
        ),
        (
            parallel.distributed_executor_backend == "external_launcher",
            "--distributed-executor-backend external_launcher: use mp or ray",
        ),
    )
    refuse_first(refused)
