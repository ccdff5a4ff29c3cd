# SPDX-License-Identifier: Apache-2.0
"""A soak test of AsyncLLM, the engine as a server runs it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.soaking import memory
from benchmarks.soaking.answers import Answer
from benchmarks.soaking.arrivals import Arrival
from benchmarks.soaking.asks import sampling_params
from benchmarks.soaking.tally import Tally

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

SAMPLE_SECONDS = 1.0
# A request that is given up before its first token waits no longer than this.
PATIENCE_SECONDS = 0.5
# After which an engine that answers nothing counts as stuck.
STUCK_SECONDS = 300.0


@dataclass(frozen=True)
class Limits:
    """When to stop: after so many seconds or arrivals; and how many requests may be in
    the engine at once, those that wait there included."""

    seconds: float
    requests: int | None
    max_alive: int


class Pulse:
    """When the engine last answered anything. A single request may wait for long
    where others come first by priority."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def beat(self) -> None:
        """Take notice of an answer."""
        self.last = time.monotonic()

    async def watch(self) -> None:
        """Raise RuntimeError once there has been none for `STUCK_SECONDS`."""
        while time.monotonic() - self.last < STUCK_SECONDS:
            await asyncio.sleep(1.0)
        raise RuntimeError(f"the engine has answered nothing for {STUCK_SECONDS:.0f} s")


async def _ask(engine: AsyncLLM, arrival: Arrival, tally: Tally, pulse: Pulse) -> None:
    """Send one request, read its stream, and hang up if its client does."""
    from vllm.sampling_params import RequestOutputKind

    params = sampling_params(arrival.ask.params, output_kind=RequestOutputKind.DELTA)
    answer, is_cancelled = Answer(params.n), False
    stream: AsyncGenerator[RequestOutput, None] = engine.generate(
        {"prompt_token_ids": arrival.ask.prompt},
        params,
        f"soak-{arrival.number}",
        priority=arrival.priority,
    )

    async def read() -> bool:
        """Whether the client hung up."""
        async with aclosing(stream):
            async for output in stream:
                answer.add(output)
                pulse.beat()
                if output.finished:
                    return False
                if (
                    arrival.cancel_after is not None
                    and answer.num_tokens > arrival.cancel_after
                ):
                    return True
        return False

    # Without a token there is nothing to hang up at: a server cancels the task.
    patience = None
    if arrival.cancel_after == 0:
        patience = PATIENCE_SECONDS * (arrival.number % 7 + 1) / 7
    try:
        is_cancelled = await asyncio.wait_for(read(), patience)
    except TimeoutError:
        is_cancelled = True
    tally.end(arrival, answer, is_cancelled)


async def _sample_memory(samples: list[memory.Sample], start: float) -> None:
    while True:
        samples.append(memory.sample(time.monotonic() - start))
        await asyncio.sleep(SAMPLE_SECONDS)


async def _send_all(
    engine: AsyncLLM,
    arrivals: Iterator[Arrival],
    limits: Limits,
    tally: Tally,
    say: Callable[[str], None],
) -> None:
    alive = asyncio.Semaphore(limits.max_alive)
    start = said = due = time.monotonic()
    pulse = Pulse()

    async def one(arrival: Arrival) -> None:
        try:
            await _ask(engine, arrival, tally, pulse)
        finally:
            alive.release()

    async def all_of_them(group: asyncio.TaskGroup) -> None:
        nonlocal said, due
        for arrival in arrivals:
            due = max(due + arrival.gap, time.monotonic() - 1.0)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await alive.acquire()
            now = time.monotonic()
            if now - start > limits.seconds or arrival.number == limits.requests:
                return
            group.create_task(one(arrival))
            if now - said > 30:
                said = now
                say(
                    f"{now - start:.0f} s: {tally.requests} requests, "
                    f"{tally.cancelled} cancelled, {tally.tokens} tokens, "
                    f"{tally.mismatches} mismatches"
                )

    async with asyncio.TaskGroup() as watched:
        watching = watched.create_task(pulse.watch())
        async with asyncio.TaskGroup() as group:
            await all_of_them(group)
        watching.cancel()


async def run_served(
    arguments: dict[str, Any],
    arrivals: Iterator[Arrival],
    limits: Limits,
    tally: Tally,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run AsyncLLM with `arguments` of its AsyncEngineArgs until `limits` are reached.

    Returns: what is left in the idle engine, its counters, and samples of the memory.
    Whatever the engine raises comes through.
    """
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.reader import get_metrics_snapshot

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    samples: list[memory.Sample] = []
    try:
        start = time.monotonic()
        sampling = asyncio.create_task(_sample_memory(samples, start))
        await _send_all(engine, arrivals, limits, tally, say)
        seconds = time.monotonic() - start
        sampling.cancel()
        left = await _leftovers(engine)
        (stats,) = await engine.collective_rpc("medusa_stats")
        # vLLM's own: True only if every block of the KV cache is free.
        left["cache_reset"] = await engine.reset_prefix_cache()
        metrics = {
            metric.name: getattr(metric, "value", None)
            for metric in get_metrics_snapshot()
        }
    finally:
        engine.shutdown()
    return {
        "seconds": seconds,
        "left": left,
        "medusa_stats": stats,
        "metrics": metrics,
        "samples": samples,
    }


async def _leftovers(engine: AsyncLLM) -> dict[str, Any]:
    """What the worker and the client side still remember of requests.

    A request that was given up leaves the engine a moment after its client: wait.
    """
    left: dict[str, Any] = {}
    for _ in range(100):
        (left,) = await engine.collective_rpc("soak_leftovers")
        left["client"] = engine.get_num_unfinished_requests()
        if not any(left.values()):
            break
        await asyncio.sleep(0.1)
    return left
