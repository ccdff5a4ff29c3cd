# SPDX-License-Identifier: Apache-2.0
"""Where the time of a step goes: what Medusa adds, and what more rows cost.

One request at a given context length. Inside the worker (VLLM_MEDUSA_TIMING=1) the
parts are timed: tree attention, verification with its draws, the K/V move, the heads.
Beside it the whole step is timed from outside for plain vLLM, for a chain of as many
rows (whose attention is vLLM's own kernel) and for the tree, taking turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from benchmarks.common import options
from benchmarks.common.engines import start_engines
from benchmarks.common.results import write_result
from benchmarks.common.tables import print_parts, print_table, warn_if_busy
from benchmarks.common.variants import VANILLA, WITHOUT_PLUGINS, Variant
from vllm_medusa.calibration.steps import Request, run_from_dict
from vllm_medusa.engines.process import EngineProcess

# What Medusa adds to a step, or does in vLLM's place.
ADDED = ("attention", "prepare", "propose", "draw", "verify", "move")
STEP = "step"
TIMED = "timed"
FILLER = "The quick brown fox jumps over the lazy dog near the river. "


def step_shares(
    timing: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, float]]:
    """Seconds per step and share of the step, by part, and of all that Medusa adds.

    `timing` is what the worker's `medusa_timing` gave: seconds and calls by part.
    ValueError if there is no step in it.
    """
    if STEP not in timing:
        raise ValueError(f"no steps were timed: {dict(timing)}")
    num_steps = timing[STEP]["calls"]
    seconds = {name: part["seconds"] / num_steps for name, part in timing.items()}
    seconds["added"] = sum(seconds.get(name, 0.0) for name in ADDED)
    return {
        name: {"seconds": value, "share": value / seconds[STEP]}
        for name, value in seconds.items()
    }


def parse_arguments() -> argparse.Namespace:
    parser = options.benchmark_parser("step_parts", __doc__ or "")
    parser.add_argument(
        "--nodes", type=int, default=4, help="rows less one (default 4)"
    )
    parser.add_argument("--context", type=int, default=500, help="tokens (default 500)")
    parser.add_argument("--steps", type=int, help="timed at a time (default 40)")
    parser.add_argument("--repeats", type=int, help="default 3")
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or (10 if arguments.quick else 40)
    arguments.repeats = arguments.repeats or (1 if arguments.quick else 3)
    return arguments


def make_variants(heads: str, nodes: int) -> list[Variant]:
    """Plain vLLM, a chain and a tree of `nodes` nodes, and the tree with clocks.

    A chain longer than there are heads does not exist: it is cut to their number.
    """
    from vllm_medusa.checkpoint import load_heads

    length = min(nodes, load_heads(heads).spec.num_heads)

    def medusa(name: str, tree: str, timing: str) -> Variant:
        config = {
            "method": "medusa",
            "model": heads,
            "tree": tree,
            "num_speculative_tokens_per_batch_size": None,
        }
        arguments = {"enforce_eager": True, "speculative_config": config}
        return Variant(name, arguments, {"VLLM_MEDUSA_TIMING": timing})

    return [
        Variant(VANILLA, {"enforce_eager": True}, WITHOUT_PLUGINS),
        medusa(f"chain:{length}", f"chain:{length}", "0"),
        medusa(f"optimal:{nodes}", f"optimal:{nodes}", "0"),
        medusa(TIMED, f"optimal:{nodes}", "1"),
    ]


def make_request(engine: EngineProcess, context: int, steps: int) -> Request:
    """A request whose context is about `context` tokens halfway through its answer."""
    length = context - steps // 2
    row = engine.call("tokenize", prompts=[FILLER * (length // 10 + 1)])[0]
    if not 0 < length <= len(row):
        raise ValueError(f"a context of {context} needs fewer than {steps} steps")
    # Cut from the left: the template's last tokens ask for an answer.
    return Request("context", row[-length:], steps, ignore_eos=True)


def measure(
    engines: Mapping[str, EngineProcess], request: Request, repeats: int
) -> tuple[dict[str, list[float]], list[dict[str, Any]], list[dict[str, float]]]:
    """Step seconds by variant, timed shares by repeat, the machine's load."""
    steps: dict[str, list[float]] = {name: [] for name in engines}
    shares: list[dict[str, Any]] = []
    machines: list[dict[str, float]] = []
    for _ in range(repeats):
        for name, engine in engines.items():
            result = engine.call(
                "run", requests=[vars(request)], concurrency=1, timing=name == TIMED
            )
            machines.append(result["machine"])
            seconds = run_from_dict(result).step_seconds()
            assert seconds is not None
            steps[name].append(seconds)
            if name == TIMED:
                shares.append(step_shares(result["timing"]))
    return steps, shares, machines


def join_shares(
    shares: Sequence[Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, float]]:
    """Medians over the repeats."""
    return {
        name: {key: median(row[name][key] for row in shares) for key in part}
        for name, part in shares[0].items()
    }


def main() -> None:
    arguments = parse_arguments()
    output = options.output_path(arguments, "step_parts")
    shared = options.engine_arguments(arguments, 1)
    variants = make_variants(options.heads_name(arguments), arguments.nodes)
    with ExitStack() as stack:
        engines = start_engines(stack, variants, shared, options.environment(arguments))
        request = make_request(engines[VANILLA], arguments.context, arguments.steps)
        measure(engines, request, 1)
        steps, shares, machines = measure(engines, request, arguments.repeats)
    parts = join_shares(shares)
    plain = median(steps[VANILLA])
    write_result(
        output,
        "step_parts",
        {
            "settings": {
                "nodes": arguments.nodes,
                "context": arguments.context,
                "steps": arguments.steps,
                "repeats": arguments.repeats,
                "dtype": arguments.dtype,
                "bind": options.environment(arguments)["VLLM_CPU_OMP_THREADS_BIND"],
            },
            "parts": parts,
            "step_seconds": steps,
            "overhead": {name: median(v) / plain for name, v in steps.items()},
            "machine_load": machines,
        },
    )
    print_table(
        f"step with one request, context {arguments.context}",
        ["variant", "step ms", "over a plain step"],
        [
            [name, f"{1000 * median(v):.1f}", f"{median(v) / plain:.2f}"]
            for name, v in steps.items()
        ],
    )
    print_parts(f"inside a step of {arguments.nodes + 1} rows", parts)
    warn_if_busy(machines)
    print(output)


if __name__ == "__main__":
    main()
