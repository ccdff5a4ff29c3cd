# SPDX-License-Identifier: Apache-2.0
"""Soak test: random requests for minutes or hours, each checked against plain vLLM.

Plain vLLM first answers a number of random requests. Then the engine as a server runs
it, with Medusa, gets them again and again: at random times and in bursts, with random
priorities, some given up at a random token. The KV cache holds only a few of them,
prompts share prefixes and come in chunks. Exit code 1 if an answer differs, memory
grows, or the idle engine still holds anything.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import options
from benchmarks.common.results import write_result
from benchmarks.soaking.arrivals import Traffic, arrivals
from benchmarks.soaking.asks import Ask, Material, make_asks
from benchmarks.soaking.reference import plain_answers
from benchmarks.soaking.served import Limits, run_served
from benchmarks.soaking.tally import Tally
from benchmarks.soaking.verdict import report
from vllm_medusa.calibration.machine import Load

BLOCK_SIZE = 32
PROBE = "benchmarks.soaking.probe.SoakProbe"
SETTINGS = (
    *("tree", "acceptance", "asks", "rate", "max_alive", "max_num_seqs"),
    *("token_budget", "blocks", "max_model_len", "longest_answer", "dtype", "seed"),
)
STOPS = ("a", "e", ". ", "\n", "the", "s ")


def parse_arguments() -> argparse.Namespace:
    parser = options.benchmark_parser("soak", __doc__ or "")
    parser.set_defaults(max_model_len=512)
    add = parser.add_argument
    add("--minutes", type=float, help="default 5; hours are fine")
    add("--requests", type=int, help="stop after so many requests")
    add("--tree", help="default: what lies beside the heads")
    add("--acceptance", help="of the engine: exact, rejection or typical")
    add("--asks", type=int, help="different requests, default 240")
    add("--longest-answer", type=int, default=96, help="in tokens")
    add("--rate", type=float, default=8.0, help="requests per second, on average")
    add("--max-alive", type=int, default=32, help="requests in the engine at once")
    add("--max-num-seqs", type=int, default=12, help="requests in a batch")
    add("--token-budget", type=int, default=128, help="tokens in a batch")
    add("--blocks", type=int, help="of the KV cache; default: 2 whole requests")
    add("--seed", type=int, default=0, help="the same one asks the same")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.minutes = arguments.minutes or (0.5 if quick else 5.0)
    arguments.asks = arguments.asks or (60 if quick else 240)
    arguments.blocks = arguments.blocks or 2 * arguments.max_model_len // BLOCK_SIZE
    return arguments


def material(model: Path, max_model_len: int, longest_answer: int) -> Material:
    """MT-bench's questions as the user's turns; prompts that share a system's turn."""
    from transformers import AutoConfig, AutoTokenizer

    from vllm_medusa.evaluation.questions import load_questions
    from vllm_medusa.prompts import user_turn_ids

    tokenizer = AutoTokenizer.from_pretrained(model)
    turns = [turn for question in load_questions() for turn in question.turns]
    texts = [user_turn_ids(tokenizer, turn) for turn in turns]
    longest = max_model_len - longest_answer
    return Material(
        texts=texts,
        prefixes=[text[: longest // 3] for text in sorted(texts, key=len)[-3:]],
        vocab_size=AutoConfig.from_pretrained(model).vocab_size,
        longest_prompt=longest,
        longest_answer=longest_answer,
        stops=STOPS,
    )


def plain_engine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `LLM`: whole prompts, no cache to share, no lack of room."""
    return {
        **options.engine_arguments(arguments, 32),
        "enforce_eager": True,
        "block_size": BLOCK_SIZE,
        "enable_chunked_prefill": False,
        "generation_config": "vllm",
        "structured_outputs_config": {"backend": "xgrammar"},
    }


def soaked_engine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of AsyncEngineArgs: too little room for everything."""
    medusa: dict[str, Any] = {
        "method": "medusa",
        "model": options.heads_name(arguments),
    }
    if arguments.tree is not None:
        # A tree that is asked for runs at every load.
        medusa |= {
            "tree": arguments.tree,
            "num_speculative_tokens_per_batch_size": None,
        }
    if arguments.acceptance is not None:
        medusa["acceptance"] = arguments.acceptance
    return {
        **plain_engine(arguments),
        "speculative_config": medusa,
        "max_num_seqs": arguments.max_num_seqs,
        "max_num_batched_tokens": arguments.token_budget,
        "num_gpu_blocks_override": arguments.blocks,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "worker_extension_cls": PROBE,
    }


def soak(arguments: argparse.Namespace, asks: list[Ask]) -> dict[str, Any]:
    """Ask plain vLLM, then soak; the figures."""
    print(f"plain vLLM answers {len(asks)} requests", flush=True)
    environment = options.environment(arguments)
    plain = plain_answers(asks, plain_engine(arguments), environment)
    os.environ.update(environment)
    tally = Tally(plain)
    limits = Limits(60 * arguments.minutes, arguments.requests, arguments.max_alive)
    coming = arrivals(asks, Traffic(arguments.rate), arguments.seed)
    before = Load.now()
    run = asyncio.run(run_served(soaked_engine(arguments), coming, limits, tally))
    # vLLM's engine can't be collected once Python is shutting down.
    gc.collect()
    return {**report(tally, run), "load": Load.now().since(before)}


def main() -> None:
    arguments = parse_arguments()
    source = material(
        options.model_folder(arguments),
        arguments.max_model_len,
        arguments.longest_answer,
    )
    found = soak(arguments, make_asks(source, arguments.asks, arguments.seed))
    output = options.output_path(arguments, "soak")
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    write_result(output, "soak", {"settings": settings, **found})
    shown = {k: v for k, v in found.items() if k not in ("kinds", "faults", "load")}
    for name, value in shown.items():
        print(f"{name}: {value}")
    sys.exit(1 if found["off"] else 0)


if __name__ == "__main__":
    main()
