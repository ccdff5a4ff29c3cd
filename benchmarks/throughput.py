# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of an offline batch: plain vLLM against Medusa.

`LLM.generate` gets several hundred prompts at once and answers them as fast as it can.
The variants take turns, each in its own worker process; all have the same answers.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.common import options
from benchmarks.common.engines import start_engines
from benchmarks.common.plots import plot_throughput
from benchmarks.common.results import write_result
from benchmarks.common.tables import print_table, warn_if_busy
from benchmarks.common.variants import VANILLA, Setting, make_variants
from vllm_medusa.calibration.spread import Spread
from vllm_medusa.engines.process import EngineProcess
from vllm_medusa.evaluation.questions import load_questions


def make_prompts(count: int) -> list[str]:
    """`count` prompts: every turn of every MT-bench question, again and again."""
    questions = load_questions()
    turns = [
        turn for index in (0, 1) for q in questions for turn in q.turns[index:][:1]
    ]
    return list(islice(cycle(turns), count))


def count_other_texts(answers: Sequence[list[int]], plain: Sequence[list[int]]) -> int:
    """Answers that differ from plain vLLM's."""
    return sum(a != b for a, b in zip(answers, plain, strict=True))


def run_once(engine: EngineProcess, requests: Sequence[Mapping[str, Any]]) -> Any:
    """One batch through `LLM.generate`; see `benchmarks.common.worker.generate`."""
    return engine.call("generate", requests=list(requests))


def parse_arguments() -> argparse.Namespace:
    parser = options.benchmark_parser("throughput", __doc__ or "")
    parser.add_argument("--variants", default="medusa", help="see benchmarks.latency")
    parser.add_argument("--prompts", type=int, help="default 256")
    parser.add_argument("--max-tokens", type=int, help="default 64")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--repeats", type=int, help="default 2")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.prompts = arguments.prompts or (24 if quick else 256)
    arguments.max_tokens = arguments.max_tokens or (16 if quick else 64)
    arguments.repeats = arguments.repeats or (1 if quick else 2)
    return arguments


def measure(
    engines: Mapping[str, EngineProcess],
    requests: Sequence[Mapping[str, Any]],
    repeats: int,
) -> list[dict[str, Any]]:
    """Every variant `repeats` times, taking turns, with its ratio to plain vLLM."""
    records: list[dict[str, Any]] = []
    order = list(engines)
    for repeat in range(repeats):
        shift = repeat % len(order)
        results = {
            name: run_once(engines[name], requests)
            for name in order[shift:] + order[:shift]
        }
        plain = results[VANILLA]
        speed = plain["tokens"] / plain["seconds"]
        for name, result in results.items():
            drafts = result["counters"]["drafts"]
            accepted = result["counters"]["accepted"]
            tokens_per_second = result["tokens"] / result["seconds"]
            records.append(
                {
                    "variant": name,
                    "repeat": repeat,
                    "tokens": result["tokens"],
                    "seconds": result["seconds"],
                    "tokens_per_second": tokens_per_second,
                    "speedup": tokens_per_second / speed,
                    "mean_acceptance_length": 1 + accepted / drafts if drafts else None,
                    "counters": result["counters"],
                    "other_texts": count_other_texts(
                        result["token_ids"], plain["token_ids"]
                    ),
                    "machine": result["machine"],
                }
            )
    return records


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Spread of tokens/s and of the speed-up, and texts that differ, by variant."""
    names = dict.fromkeys(record["variant"] for record in records)
    groups = {n: [r for r in records if r["variant"] == n] for n in names}
    return {
        name: {
            "tokens_per_second": Spread.of(r["tokens_per_second"] for r in group),
            "speedup": Spread.of(r["speedup"] for r in group),
            "other_texts": sum(r["other_texts"] for r in group),
        }
        for name, group in groups.items()
    }


def main() -> None:
    arguments = parse_arguments()
    output = options.output_path(arguments, "throughput")
    shared = options.engine_arguments(arguments, arguments.max_num_seqs)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        setting = Setting(
            options.heads_name(arguments), options.model_folder(arguments), Path(folder)
        )
        variants, skipped = make_variants(arguments.variants.split(","), setting)
        engines = start_engines(stack, variants, shared, options.environment(arguments))
        prompts = make_prompts(arguments.prompts)
        rows = engines[VANILLA].call("tokenize", prompts=prompts)
        requests = [
            {"prompt_token_ids": row, "max_tokens": arguments.max_tokens}
            for row in rows
        ]
        for engine in engines.values():
            run_once(engine, requests[:8])
        records = measure(engines, requests, arguments.repeats)
    summary = summarise(records)
    write_result(
        output,
        "throughput",
        {
            "settings": {
                "dtype": arguments.dtype,
                "prompts": arguments.prompts,
                "max_tokens": arguments.max_tokens,
                "max_num_seqs": arguments.max_num_seqs,
                "bind": options.environment(arguments)["VLLM_CPU_OMP_THREADS_BIND"],
            },
            "left_out": skipped,
            "summary": {
                name: row
                | {
                    "tokens_per_second": asdict(row["tokens_per_second"]),
                    "speedup": asdict(row["speedup"]),
                }
                for name, row in summary.items()
            },
            "records": records,
        },
    )
    print_table(
        f"{arguments.prompts} prompts at once (median, min-max of repeats)",
        ["variant", "tokens/s", "speed-up", "other texts"],
        [
            [
                name,
                str(row["tokens_per_second"]),
                str(row["speedup"]),
                str(row["other_texts"]),
            ]
            for name, row in summary.items()
        ],
    )
    warn_if_busy(record["machine"] for record in records)
    plot = output.with_suffix(".png")
    plot_throughput(plot, {n: row["tokens_per_second"] for n, row in summary.items()})
    print(f"{output}\n{plot}")


if __name__ == "__main__":
    main()
