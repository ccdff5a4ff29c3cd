# SPDX-License-Identifier: Apache-2.0
"""A soak test step by step, in one process: the same seed does the same again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from benchmarks.soaking.answers import Answer
from benchmarks.soaking.arrivals import Arrival
from benchmarks.soaking.asks import sampling_params
from benchmarks.soaking.tally import Tally

if TYPE_CHECKING:
    from vllm import LLM


def run_stepped(
    llm: LLM, arrivals: Iterator[Arrival], count: int, tally: Tally, max_waiting: int
) -> None:
    """Run `count` arrivals through an engine that steps in this process.

    The unit of time is an engine step. At most `max_waiting` requests are in the
    engine at once; later ones come later.
    """
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    coming = islice(arrivals, count)
    alive: dict[str, tuple[Arrival, Answer]] = {}
    next_one = next(coming, None)
    due = next_one.gap if next_one else 0.0
    step = 0
    while next_one is not None or alive:
        while next_one is not None and due <= step and len(alive) < max_waiting:
            params = sampling_params(
                next_one.ask.params, output_kind=RequestOutputKind.DELTA
            )
            key = f"soak-{next_one.number}"
            engine.add_request(
                key,
                {"prompt_token_ids": next_one.ask.prompt},
                params,
                priority=next_one.priority,
            )
            alive[key] = next_one, Answer(params.n)
            next_one = next(coming, None)
            due += next_one.gap if next_one else 0.0
        for output in engine.step():
            if output.request_id not in alive:
                continue
            arrival, answer = alive[output.request_id]
            answer.add(output)
            if output.finished:
                tally.end(arrival, answer, False)
                del alive[output.request_id]
        for key, (arrival, answer) in list(alive.items()):
            if arrival.cancel_after is not None and (
                answer.num_tokens > arrival.cancel_after
                or (arrival.cancel_after == 0 and arrival.number % 2)
            ):
                engine.abort_request([key])
                tally.end(arrival, answer, True)
                del alive[key]
        step += 1
    # What has ended is told to the worker in the step after.
    while engine.engine_core.engine_core.scheduler.has_requests():
        engine.step()


def engine_leftovers(llm: LLM) -> dict[str, int]:
    """Count what an idle engine of this process still holds; all should be 0.

    Blocks are those of the KV cache; one, vLLM's null block, is never free.
    """
    scheduler: Any = llm.llm_engine.engine_core.engine_core.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    return {
        "blocks_in_use": pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),
        "blocks_referenced": sum(
            block.ref_cnt != 0 for block in pool.blocks if not block.is_null
        ),
        "blocks_of_requests": sum(len(m.req_to_blocks) for m in managers),
        "scheduler_requests": len(scheduler.requests),
        "scheduler_running": len(scheduler.running),
        "scheduler_waiting": len(scheduler.waiting),
        "scheduler_finished": len(scheduler.finished_req_ids),
    }
