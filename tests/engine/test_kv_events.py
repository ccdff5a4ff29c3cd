# SPDX-License-Identifier: Apache-2.0
"""What vLLM tells of its prefix cache, in events and in statistics: as without Medusa.

Blocks are announced by the tokens of the text, never by those of rejected nodes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import zmq
from vllm import LLM
from vllm.config import KVEventsConfig
from vllm.distributed.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
)

from tests.engine.conftest import PLAIN_TOKENS, TinyModel
from tests.engine.support.engines import (
    BLOCK_SIZE,
    engine,
    generate,
    greedy,
    metrics,
    stats,
    token_ids,
)
from tests.runner import sample, slow_on_v2

pytestmark = pytest.mark.engine

COUNT = sample(24, 5)
# Tokens that become part of a prompt.
HALF = sample(48, 26)
TREE = "optimal:12"
WAIT_SECONDS = 60


@dataclass
class Told:
    """What one engine told.

    `stored` are the tokens up to the end of each announced block.
    """

    stored: set[tuple[int, ...]] = field(default_factory=set)
    num_removed: int = 0
    counted: dict[str, int] = field(default_factory=dict)
    texts: list[list[int]] = field(default_factory=list)


class Subscriber:
    """Receives one engine's events on loopback."""

    def __init__(self) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._next: int | None = None
        port: int = self._socket.bind_to_random_port("tcp://127.0.0.1")
        # Without a "*" the engine connects.
        self.config = KVEventsConfig(
            enable_kv_cache_events=True, endpoint=f"tcp://127.0.0.1:{port}"
        )

    def wait(self, llm: LLM) -> None:
        """Let blocks be stored until the engine knows of its subscriber."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._socket.poll(100):
            assert time.monotonic() < deadline, "no events come"
            generate(llm, [[5] * (BLOCK_SIZE + 1)], greedy(1))
            assert llm.reset_prefix_cache()
        generate(llm, [[5]], greedy(1))
        self.read()

    def read(self) -> list[Any]:
        """All events up to the one that the whole cache is cleared."""
        events: list[Any] = []
        numbers: list[int] = []
        decoder = msgspec.msgpack.Decoder(KVEventBatch)
        while not any(isinstance(event, AllBlocksCleared) for event in events):
            assert self._socket.poll(WAIT_SECONDS * 1000), "no events come"
            _, number, payload = self._socket.recv_multipart()
            numbers.append(int.from_bytes(number, "big"))
            events += decoder.decode(payload).events
        first = numbers[0] if self._next is None else self._next
        self._next = first + len(numbers)
        assert numbers == list(range(first, self._next)), "events got lost"
        return events

    def close(self) -> None:
        self._socket.close(linger=0)


def counted(llm: LLM) -> dict[str, int]:
    """vLLM's statistics of the prefix cache."""
    found = metrics(llm)
    return {name: found[f"vllm:prefix_cache_{name}"] for name in ("queries", "hits")}


def run(
    model: TinyModel, medusa: dict[str, Any] | None, all_prompts: list[list[int]]
) -> Told:
    """Answer the prompts, ask on from the middle of each answer, and then so much else
    that blocks must go."""
    prompts, others = all_prompts[:COUNT], all_prompts[COUNT : 3 * COUNT]
    told = Told()
    subscriber = Subscriber()
    with engine(
        model.path,
        medusa,
        enable_prefix_caching=True,
        num_gpu_blocks_override=sample(140, 24),
        kv_events_config=subscriber.config,
    ) as llm:
        subscriber.wait(llm)
        before = counted(llm)
        told.texts = token_ids(generate(llm, prompts, greedy(PLAIN_TOKENS)))
        longer = [p + t[:HALF] for p, t in zip(prompts, told.texts, strict=True)]
        told.texts += token_ids(generate(llm, longer, greedy(PLAIN_TOKENS - HALF)))
        if medusa is not None:
            assert stats(llm)["moved"] > COUNT
        told.counted = {key: n - before[key] for key, n in counted(llm).items()}
        generate(llm, others, greedy(1))
        assert llm.reset_prefix_cache()
        # Events are sent with a step's output.
        generate(llm, [[5]], greedy(1))
        events = subscriber.read()
    subscriber.close()
    end_of: dict[Any, tuple[int, ...]] = {None: ()}
    for event in events:
        if isinstance(event, BlockRemoved):
            assert set(event.block_hashes) <= set(end_of)
            told.num_removed += len(event.block_hashes)
        if not isinstance(event, BlockStored):
            continue
        assert event.block_size == BLOCK_SIZE
        assert len(event.token_ids) == BLOCK_SIZE * len(event.block_hashes)
        end = end_of[event.parent_block_hash]
        for index, block_hash in enumerate(event.block_hashes):
            first = index * BLOCK_SIZE
            end += tuple(event.token_ids[first : first + BLOCK_SIZE])
            assert end_of.setdefault(block_hash, end) == end
            told.stored.add(end)
    return told


def test_events_and_statistics(llama: TinyModel, prompts: list[list[int]]) -> None:
    plain = run(llama, None, prompts)
    medusa = run(llama, {"model": llama.heads, "tree": TREE}, prompts)
    assert medusa.texts == plain.texts
    assert plain.counted["hits"] > COUNT * BLOCK_SIZE
    assert medusa.counted == plain.counted
    # Blocks of plain decoding, and of nothing else.
    assert medusa.stored <= plain.stored
    # What is missing is at the very end: a request's last step schedules no further
    # one, which would announce what it filled. A path has at most 4 tokens and a root.
    texts = [tuple(p + t) for p, t in zip(prompts, plain.texts, strict=False)]
    for end in plain.stored - medusa.stored:
        assert any(t[: len(end)] == end and len(t) - len(end) <= 5 for t in texts)
    generated = [
        end
        for end in medusa.stored
        if not any(tuple(prompt[: len(end)]) == end for prompt in prompts)
    ]
    assert len(generated) >= sample(COUNT, 3), (
        "blocks with tokens of trees must be announced"
    )
    assert plain.num_removed > 0
    assert medusa.num_removed > 0


@slow_on_v2
def test_statistics_with_preemption(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """A request that starts again is not counted again."""
    count = sample(40, 14)
    with engine(
        llama.path,
        {"model": llama.heads, "tree": TREE},
        num_gpu_blocks_override=sample(24, 15),
        max_num_seqs=8,
        enable_prefix_caching=True,
    ) as llm:
        texts = token_ids(generate(llm, prompts[:count], greedy(PLAIN_TOKENS)))
        found = metrics(llm)
    assert texts == plain[:count]
    assert found["vllm:num_preemptions"] > 0
    assert found["vllm:prefix_cache_queries"] == sum(map(len, prompts[:count]))
    assert found["vllm:prefix_cache_hits"] == 0
