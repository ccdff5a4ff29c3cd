# SPDX-License-Identifier: Apache-2.0
"""vLLM's speculative metrics and Medusa's own count what happened."""

from __future__ import annotations

import logging
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from vllm import SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.compare import step_ends
from tests.engine.support.engines import (
    BLOCK_SIZE,
    engine,
    generate,
    greedy,
    metrics,
    stats,
    token_ids,
)
from tests.engine.support.medusa_metrics import MedusaMetrics, medusa_metrics
from tests.runner import sample
from vllm_medusa import timing
from vllm_medusa.metrics.stats import REASONS

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((40, 40), (6, 16))
PREFIX = "vllm:spec_decode_num_"
HEADS = 4
DASHBOARD = Path(__file__).parents[2] / "docs/grafana/medusa.json"
OFF = {"extra_args": {"medusa_num_speculative_tokens": 0}}


def check_sums(own: MedusaMetrics, values: dict[str, object]) -> None:
    """What must hold between the metrics of any engine."""
    trees = sum(own.tokens.values())
    assert trees == sum(own.nodes.values()) == values[PREFIX + "drafts"]
    assert own.sums["tree_nodes"] == values[PREFIX + "draft_tokens"]
    assert sum(own.accepted) == values[PREFIX + "accepted_tokens"]
    # vLLM has a position for every node, but no path is longer than the tree is deep.
    per_position = values[PREFIX + "accepted_tokens_per_pos"]
    assert isinstance(per_position, list)
    depth = len(own.accepted)
    assert per_position == own.accepted + [0] * (len(per_position) - depth)
    # Every token came from a tree or from a step without one.
    without = sum(own.without_tree.values())
    assert own.sums["tokens_per_step"] + without == values["vllm:generation_tokens"]


@pytest.mark.parametrize("asynchronous", sample([False], [False, True]))
def test_counts(
    llama: TinyModel,
    prompts: list[list[int]],
    asynchronous: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against the tokens that each step brought, and the runner's own counters."""
    monkeypatch.setattr(timing, "INTERVAL", 3)
    with engine(
        llama.path,
        {"model": llama.heads, "tree": "optimal:12"},
        max_num_seqs=8,
        async_scheduling=asynchronous,
    ) as llm:
        ends = step_ends(llm, prompts[:COUNT], greedy(LENGTH))
        values, own = metrics(llm), medusa_metrics(llm)
        counters = stats(llm)
        before = own.without_tree["prompt"]
        off = step_ends(llm, prompts[:2], greedy(4, **OFF))
        switched_off = medusa_metrics(llm)
    # Scheduled asynchronously, a request that ends has one more step under way, whose
    # tree the runner verifies and vLLM forgets.
    late = counters["trees"] - values[PREFIX + "drafts"]
    assert 0 <= late <= (len(ends) if asynchronous else 0)
    assert 0 <= counters["nodes"] - values[PREFIX + "draft_tokens"] <= 12 * late
    assert 0 <= counters["accepted"] - values[PREFIX + "accepted_tokens"] <= 4 * late

    # A request's first token comes from its prompt, each later step is one tree.
    gains = Counter(b - a for e in ends for a, b in pairwise(e))
    assert own.tokens == dict(gains)
    assert own.without_tree == dict.fromkeys(REASONS, 0) | {"prompt": COUNT}
    assert own.nodes == {12: gains.total()}
    # The last step alone may accept more than the request still wanted.
    assert 1 < len(own.accepted) <= HEADS
    for depth, accepted in enumerate(own.accepted, start=1):
        gained = sum(count for tokens, count in gains.items() if tokens > depth)
        assert 0 <= accepted - gained <= len(ends)
    assert 0 < own.accepted[0] < gains.total()
    check_sums(own, values)

    # Parts of a step are disjoint, and only steps without prompts are timed.
    assert own.counts["timed_step_seconds"] >= 2
    parts = [own.sums[f"step_part_seconds {part}"] for part in timing.PARTS]
    assert all(seconds > 0 for seconds in parts)
    assert sum(parts) < own.sums["timed_step_seconds"]
    assert own.counts["decode_step_seconds yes"] >= LENGTH // (HEADS + 1)
    assert own.counts["decode_step_seconds no"] == 0

    assert [len(e) for e in off] == [4, 4]
    assert switched_off.tokens == own.tokens
    assert switched_off.without_tree["prompt"] == before + 2
    assert switched_off.without_tree["request"] == 2 * 3
    assert 3 <= switched_off.counts["decode_step_seconds no"] <= 2 * 3


def test_reasons(llama: TinyModel, prompts: list[list[int]]) -> None:
    """Load, the model's length, and placeholders, which are no drafts."""
    short, long = prompts[0][:5], [7] * (2 * BLOCK_SIZE + 1)
    with engine(
        llama.path,
        {
            "model": llama.heads,
            "tree": "optimal:12",
            "num_speculative_tokens_per_batch_size": [[1, 1, 12], [2, 16, 0]],
        },
        max_model_len=len(long) + 8,
    ) as llm:
        ends = step_ends(llm, [short, long, short[:4]], greedy(6))
        own = medusa_metrics(llm)
        assert own.without_tree["prompt"] == 3
        # While all three run no tree is made; the last ones of a kind run together.
        assert own.without_tree["load"] == sum(len(e) - 1 for e in ends)
        assert not own.tokens
        assert own.counts["decode_step_seconds no"] == 5

        step_ends(llm, [long], greedy(8))
        values, own = metrics(llm), medusa_metrics(llm)
        # Trees are cut where the model's length ends.
        assert min(own.nodes) < 12
        check_sums(own, values)

        # Behind its first token there is room for another one, not for a node.
        before = own.without_tree["max_model_len"]
        step_ends(llm, [[7] * (len(long) + 6)], greedy(2))
        values, own = metrics(llm), medusa_metrics(llm)
        assert own.without_tree["max_model_len"] == before + 1
        check_sums(own, values)


def test_placeholders_are_no_drafts(llama: TinyModel, prompts: list[list[int]]) -> None:
    """vLLM pads a request whose prompt is cached but for one token to a tree's size."""
    prompt = prompts[0][:1] * (BLOCK_SIZE + 1)
    with engine(llama.path, {"model": llama.heads, "tree": "optimal:12"}) as llm:
        generate(llm, [prompt], greedy(1))
        before, counted = medusa_metrics(llm), stats(llm)["trees"]
        ends = step_ends(llm, [prompt], greedy(4))
        values, own = metrics(llm), medusa_metrics(llm)
        assert values["vllm:prefix_cache_hits"] == BLOCK_SIZE
        assert own.without_tree["prompt"] == 2
        trees = sum(own.tokens.values()) - sum(before.tokens.values())
        assert trees == len(ends[0]) - 1
        # The runner has verified the placeholders, too.
        assert stats(llm)["trees"] - counted == trees + 1
        check_sums(own, values)


def test_preemption(llama: TinyModel, prompts: list[list[int]]) -> None:
    """Requests that must compute their text anew have no guess at first."""
    long = [prompt for prompt in prompts if len(prompt) > 40][: sample(4, 3)]
    with engine(
        llama.path,
        {"model": llama.heads, "tree": "optimal:12"},
        num_gpu_blocks_override=sample(12, 9),
        max_model_len=256,
        enable_prefix_caching=False,
    ) as llm:
        step_ends(llm, long, greedy(sample(60, 28)))
        values, own = metrics(llm), medusa_metrics(llm)
    assert values["vllm:num_preemptions"] > 0
    assert own.without_tree["preempted"] == values["vllm:num_preemptions"]
    assert own.without_tree["prompt"] == len(long)
    check_sums(own, values)


@pytest.mark.runner("v1", reason="what shows the metrics knows no runner")
def test_log_line_and_dashboard(llama: TinyModel, prompts: list[list[int]]) -> None:
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    # What vLLM asks whether it is to log, and logs with.
    vllm_logger, handler = logging.getLogger("vllm.v1.metrics.loggers"), Handler()
    vllm_logger.addHandler(handler)
    vllm_logger.setLevel(logging.INFO)
    try:
        with engine(llama.path, {"model": llama.heads, "tree": "optimal:12"}) as llm:
            texts = token_ids(generate(llm, prompts[:3], greedy(8)))
            own = medusa_metrics(llm)
            llm.llm_engine.do_log_stats()
            llm.llm_engine.do_log_stats()
            exported = {s.name for m in REGISTRY.collect() for s in m.samples}
    finally:
        vllm_logger.setLevel(logging.NOTSET)
        vllm_logger.removeHandler(handler)
    assert sum(map(len, texts)) == 3 * 8
    (line,) = [line for line in lines if "Medusa" in line]
    trees = sum(own.tokens.values())
    tokens = own.sums["tokens_per_step"] / trees
    assert line.startswith(
        f"Engine 000: Medusa: {tokens:.2f} tokens per tree, 12.0 nodes per tree, "
        f"accepted by depth: {100 * own.accepted[0] / trees:.1f}% "
    )
    assert line.endswith("3 without a tree (prompt 3)")
    assert not any("SpecDecoding" in line for line in lines)

    names = set(re.findall(r"vllm:\w+", DASHBOARD.read_text()))
    assert len(names) > 20
    assert names <= exported


@pytest.mark.runner("v1", reason="what shows the metrics knows no runner")
def test_plain_engine_has_none(llama: TinyModel, prompts: list[list[int]]) -> None:
    with engine(llama.path) as llm:
        generate(llm, prompts[:4], SamplingParams(max_tokens=8, temperature=0.0))
        names = metrics(llm)
        assert "vllm:generation_tokens" in names
        assert not any(name.startswith(PREFIX) for name in names)
        assert medusa_metrics(llm) == MedusaMetrics()
