# SPDX-License-Identifier: Apache-2.0
"""Latency under load: `vllm bench serve` against plain vLLM and against Medusa.

Two `vllm serve` processes take turns at every request rate, from an idle server to
all requests at once ("inf"). Prompts are MT-bench questions through the chat endpoint,
answers greedy and of a fixed greatest length.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import options
from benchmarks.common.plots import plot_serving
from benchmarks.common.results import write_result
from benchmarks.common.server import Server
from benchmarks.common.tables import print_table
from benchmarks.common.variants import VANILLA, WITHOUT_PLUGINS
from vllm_medusa.calibration.machine import Load
from vllm_medusa.evaluation.questions import load_questions

MEDUSA = "medusa"
# What vLLM's client reports that is kept; "itl" is the time between chunks of the
# stream, "tpot" the time per token after the first.
FIGURES = (
    "completed",
    "duration",
    "total_output_tokens",
    "request_throughput",
    "output_throughput",
    *(
        f"{s}_{m}_ms"
        for m in ("ttft", "tpot", "itl")
        for s in ("mean", "median", "p99")
    ),
    "spec_decode_acceptance_length",
)


def parse_arguments() -> argparse.Namespace:
    parser = options.benchmark_parser("serving", __doc__ or "")
    parser.add_argument("--rates", help='requests/s, default "0.25,0.5,1,2,inf"')
    parser.add_argument(
        "--seconds", type=float, help="of arrivals at each rate (default 30)"
    )
    parser.add_argument("--max-prompts", type=int, help="at each rate (default 40)")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument(
        "--speculative-model", help="as for vllm serve (default: medusa:HEADS)"
    )
    arguments = parser.parse_args()
    quick = arguments.quick
    rates = arguments.rates or ("0.5,inf" if quick else "0.25,0.5,1,2,inf")
    arguments.rates = [float(rate) for rate in rates.split(",")]
    if min(arguments.rates) <= 0:
        parser.error(f"--rates must be positive: {rates}")
    arguments.seconds = arguments.seconds or (10.0 if quick else 30.0)
    arguments.max_prompts = arguments.max_prompts or (6 if quick else 40)
    return arguments


def num_prompts(rate: float, seconds: float, most: int) -> int:
    """Requests that arrive in `seconds`, at least 4, at most `most`."""
    return most if rate == float("inf") else max(4, min(most, round(rate * seconds)))


def write_prompts(path: Path) -> None:
    """MT-bench's first turns in the form of vLLM's "sharegpt" data set.

    Its reader wants an answer beside each prompt, for its length; ours is fixed.
    """
    rows = [
        {"conversations": [{"value": question.turns[0]}, {"value": "unused"}]}
        for question in load_questions()
    ]
    path.write_text(json.dumps(rows))


def server_options(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Options of `vllm serve` for plain vLLM and for Medusa."""
    shared = [
        *("--dtype", arguments.dtype, "--enforce-eager"),
        *("--max-model-len", str(arguments.max_model_len)),
        *("--max-num-seqs", str(arguments.max_num_seqs)),
        *("--no-enable-prefix-caching", "--seed", "0"),
    ]
    medusa = arguments.speculative_model or f"medusa:{options.heads_name(arguments)}"
    return {VANILLA: shared, MEDUSA: [*shared, "--speculative-model", medusa]}


def measure(
    server: Server, prompts: Path, rate: float, count: int, max_tokens: int
) -> dict[str, Any]:
    """One run of vLLM's client at one rate."""
    before = Load.now()
    figures = server.benchmark(
        [
            *("--dataset-name", "sharegpt", "--dataset-path", str(prompts)),
            *("--sharegpt-output-len", str(max_tokens), "--num-prompts", str(count)),
            *("--request-rate", str(rate), "--temperature", "0", "--seed", "0"),
            *("--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "99"),
        ]
    )
    machine = Load.now().since(before)
    # The server is not of this process group: its share cannot be told apart.
    del machine["own_cpu_seconds"]
    return {name: figures.get(name) for name in FIGURES} | {
        "server": server.name,
        "rate": "inf" if rate == float("inf") else rate,
        "machine": machine,
    }


def main() -> None:
    arguments = parse_arguments()
    output = options.output_path(arguments, "serving")
    environment = options.environment(arguments)
    model = str(options.model_folder(arguments))
    points: dict[str, list[dict[str, Any]]] = {VANILLA: [], MEDUSA: []}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        prompts = Path(folder) / "prompts.json"
        write_prompts(prompts)
        servers = {}
        for name, flags in server_options(arguments).items():
            extra = WITHOUT_PLUGINS if name == VANILLA else {}
            server = Server(name, model, flags, {**environment, **extra})
            servers[name] = stack.enter_context(server)
        for name, server in servers.items():
            server.wait_until_ready()
            print(f"{name} is ready", flush=True)
            measure(server, prompts, float("inf"), 2, 8)
        for index, rate in enumerate(arguments.rates):
            count = num_prompts(rate, arguments.seconds, arguments.max_prompts)
            names = list(servers)
            for name in names[index % 2 :] + names[: index % 2]:
                point = measure(
                    servers[name], prompts, rate, count, arguments.max_tokens
                )
                points[name].append(point)
            save(output, arguments, points)
    report(output, points)


def save(
    output: Path,
    arguments: argparse.Namespace,
    points: dict[str, list[dict[str, Any]]],
) -> None:
    """Write the points measured so far."""
    write_result(
        output,
        "serving",
        {
            "settings": {
                "dtype": arguments.dtype,
                "max_tokens": arguments.max_tokens,
                "max_num_seqs": arguments.max_num_seqs,
                "seconds": arguments.seconds,
                "bind": options.environment(arguments)["VLLM_CPU_OMP_THREADS_BIND"],
            },
            "points": points,
        },
    )


def report(output: Path, points: dict[str, list[dict[str, Any]]]) -> None:
    """A table on the terminal and a plot beside the result file."""
    rows: list[Sequence[str]] = []
    for vanilla, medusa in zip(points[VANILLA], points[MEDUSA], strict=True):
        for point in (vanilla, medusa):
            rows.append(
                [
                    f"{point['rate']} {point['server']}",
                    f"{point['median_ttft_ms']:.0f}",
                    f"{point['median_tpot_ms']:.1f}",
                    f"{point['median_itl_ms']:.1f}",
                    f"{point['output_throughput']:.1f}",
                    f"{vanilla['median_tpot_ms'] / point['median_tpot_ms']:.2f}",
                ]
            )
    print_table(
        "serving (requests/s; medians in ms; chunk = between chunks of the stream)",
        ["rate", "TTFT", "per token", "chunk", "tokens/s", "per-token speed-up"],
        rows,
    )
    plot = output.with_suffix(".png")
    plot_serving(plot, points)
    print(f"{output}\n{plot}")


if __name__ == "__main__":
    main()
