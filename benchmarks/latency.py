# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of Medusa and its rivals on MT-bench, at low concurrency.

Each way to decode runs in its own worker process; all stay loaded and take turns on
the same few questions, so that a ratio compares minutes, not hours. Answers are greedy
and must be the same text for all. By default each answer stops before it starts to
loop (found beforehand with plain vLLM); `--answers full` keeps the loops.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import options
from benchmarks.common.engines import start_engines
from benchmarks.common.figures import Record, join_runs, make_record, summarise
from benchmarks.common.plots import plot_speedups
from benchmarks.common.results import write_result
from benchmarks.common.tables import print_categories, print_speedups, warn_if_busy
from benchmarks.common.variants import (
    VANILLA,
    Setting,
    engine_groups,
    make_variants,
)
from benchmarks.common.variants import __doc__ as variant_help
from vllm_medusa.calibration.looping import length_without_loop
from vllm_medusa.calibration.steps import Request, Run, run_from_dict
from vllm_medusa.engines.process import EngineProcess
from vllm_medusa.evaluation.questions import Question, load_questions

DEFAULT_VARIANTS = (
    "vanilla+compiled,medusa,medusa:chain,medusa:optimal:4,medusa:optimal:8,"
    "vllm-medusa,ngram,suffix"
)
QUICK_VARIANTS = "medusa,ngram"
LOOP_FREE, FULL = "loop-free", "full"
# An answer that loops sooner says nothing about speed.
MIN_TOKENS = 16


@dataclass
class Plan:
    """What to ask, and what plain vLLM answered: filled by `prepare`."""

    questions: list[Question]
    max_tokens: int
    answers: list[str]
    prompts: dict[str, list[int]] = field(default_factory=dict)
    expected: dict[str, list[int]] = field(default_factory=dict)

    def prepare(self, vanilla: EngineProcess, concurrency: int) -> None:
        """Tokenise the questions and answer each once with plain vLLM."""
        texts = [question.turns[0] for question in self.questions]
        names = [question.name for question in self.questions]
        rows = vanilla.call("tokenize", prompts=texts)
        self.prompts = dict(zip(names, rows, strict=True))
        requests = [Request(n, self.prompts[n], self.max_tokens) for n in names]
        run, _ = run_job(vanilla, requests, concurrency)
        self.expected = {answer.name: answer.token_ids for answer in run.answers}

    def requests(self, answers: str) -> list[Request]:
        """One request per question, cut before the first loop if so asked."""
        requests = []
        for name, prompt in self.prompts.items():
            length = len(self.expected[name])
            if answers == LOOP_FREE:
                length = length_without_loop(self.expected[name])
            if length >= MIN_TOKENS:
                requests.append(Request(name, prompt, length))
        return requests


def chunks(requests: Sequence[Request], concurrency: int) -> list[list[Request]]:
    """Parts small enough for the variants to take turns within a minute.

    Two rounds of the concurrency, at least four requests; the longest answers come
    first, so that a part does not end with one of them running alone.
    """
    size = max(4, 2 * concurrency)
    parts = [list(requests[i : i + size]) for i in range(0, len(requests), size)]
    for part in parts:
        part.sort(key=lambda request: -request.max_tokens)
    return parts


def run_job(
    engine: EngineProcess, requests: Sequence[Request], concurrency: int
) -> tuple[Run, dict[str, float]]:
    """One closed-loop run in the engine's process, and the machine's load over it."""
    result = engine.call(
        "run", requests=[vars(r) for r in requests], concurrency=concurrency
    )
    return run_from_dict(result), result["machine"]


def join_machine(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Wall and CPU seconds summed, the load before the first and after the last."""
    sums = ("wall_seconds", "machine_cpu_seconds", "own_cpu_seconds")
    return {name: round(sum(p[name] for p in parts), 3) for name in sums} | {
        "load_before": parts[0]["load_before"],
        "load_after": parts[-1]["load_after"],
    }


def measure(
    engines: Mapping[str, EngineProcess],
    plan: Plan,
    concurrency: int,
    answers: str,
    repeat: int,
) -> Iterator[Record]:
    """All variants over all questions once, taking turns on each part.

    The order turns round with every part and repeat, so that none always runs first.
    """
    runs: dict[str, list[Run]] = {name: [] for name in engines}
    machines: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    order = list(engines)
    for index, part in enumerate(chunks(plan.requests(answers), concurrency)):
        shift = (index + repeat) % len(order)
        for name in order[shift:] + order[:shift]:
            run, machine = run_job(engines[name], part, concurrency)
            runs[name].append(run)
            machines[name].append(machine)
    for name in engines:
        yield make_record(
            name,
            answers,
            repeat,
            join_runs(runs[name]),
            plan.expected,
            join_machine(machines[name]),
        )


def parse_arguments() -> argparse.Namespace:
    parser = options.benchmark_parser("latency", __doc__ or "", epilog=variant_help)
    parser.add_argument("--variants", help=f"default {DEFAULT_VARIANTS}")
    parser.add_argument("--concurrency", type=options.parse_numbers)
    parser.add_argument("--repeats", type=int)
    parser.add_argument(
        "--per-category", type=int, help="questions of each category (default 2)"
    )
    parser.add_argument("--categories", help="only these, separated by commas")
    parser.add_argument("--max-tokens", type=int, help="longest answer (default 256)")
    parser.add_argument(
        "--answers", default=LOOP_FREE, help=f"{LOOP_FREE} (default), {FULL}, or both"
    )
    parser.add_argument(
        "--engines", type=int, default=6, help="loaded at once, 3.5 GB each (default 6)"
    )
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.variants = arguments.variants or (
        QUICK_VARIANTS if quick else DEFAULT_VARIANTS
    )
    arguments.concurrency = arguments.concurrency or ([1, 4] if quick else [1, 2, 4, 8])
    arguments.repeats = arguments.repeats or (1 if quick else 3)
    arguments.per_category = arguments.per_category or (1 if quick else 2)
    arguments.max_tokens = arguments.max_tokens or (48 if quick else 256)
    arguments.answers = arguments.answers.split(",")
    unknown = set(arguments.answers) - {LOOP_FREE, FULL}
    if unknown:
        parser.error(f"--answers takes {LOOP_FREE} and {FULL}, not {sorted(unknown)}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    output = options.output_path(arguments, "latency")
    categories = arguments.categories.split(",") if arguments.categories else None
    plan = Plan(
        load_questions(arguments.per_category, categories),
        arguments.max_tokens,
        arguments.answers,
    )
    shared = options.engine_arguments(arguments, max(arguments.concurrency))
    environment = options.environment(arguments)
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            options.heads_name(arguments), options.model_folder(arguments), Path(folder)
        )
        variants, skipped = make_variants(arguments.variants.split(","), setting)
        for name, reason in skipped.items():
            print(f"{name} left out: {reason}")
        for number, group in enumerate(engine_groups(variants, arguments.engines)):
            with ExitStack() as stack:
                engines = start_engines(stack, group, shared, environment)
                if not plan.expected:
                    plan.prepare(engines[VANILLA], max(arguments.concurrency))
                warm_up(engines, plan)
                for turn in range(arguments.repeats):
                    repeat = number * arguments.repeats + turn
                    for kind in arguments.answers:
                        for concurrency in arguments.concurrency:
                            records += measure(engines, plan, concurrency, kind, repeat)
                    # Kept after every repeat: a long run cut short is not lost.
                    save(output, arguments, plan, skipped, records)
    report(output, records)


def warm_up(engines: Mapping[str, EngineProcess], plan: Plan) -> None:
    """One short answer each: the first run of an engine is slower."""
    name, prompt = next(iter(plan.prompts.items()))
    for engine in engines.values():
        run_job(engine, [Request(name, prompt, 16)], 1)


def save(
    output: Path,
    arguments: argparse.Namespace,
    plan: Plan,
    skipped: Mapping[str, str],
    records: Sequence[Record],
) -> None:
    """Write everything measured so far."""
    lengths = {
        kind: {r.name: r.max_tokens for r in plan.requests(kind)}
        for kind in plan.answers
    }
    write_result(
        output,
        "latency",
        {
            "settings": {
                "dtype": arguments.dtype,
                "concurrency": arguments.concurrency,
                "repeats": arguments.repeats,
                "max_tokens": arguments.max_tokens,
                "bind": options.environment(arguments)["VLLM_CPU_OMP_THREADS_BIND"],
            },
            "answer_lengths": lengths,
            "left_out": dict(skipped),
            "summary": [s.as_dict() for s in summarise(records, VANILLA)],
            "records": [record.as_dict() for record in records],
        },
    )


def report(output: Path, records: Sequence[Record]) -> None:
    """Tables on the terminal and a plot beside the result file."""
    summaries = summarise(records, VANILLA)
    print_speedups(summaries)
    warn_if_busy(record.machine for record in records)
    print_categories(summaries)
    plot = output.with_suffix(".png")
    plot_speedups(plot, summaries)
    print(f"{output}\n{plot}")


if __name__ == "__main__":
    main()
