# SPDX-License-Identifier: Apache-2.0
"""Prove Medusa on this machine's GPU: tests, equal texts, no host synchronisation.

Runs the tests that need a GPU; compares greedy and seeded texts of the default model
with plain vLLM's for each implementation of attention, with CUDA graphs and without (in
float32 they must be equal, in bfloat16 differences are counted: two nearly equal
logits may change places); and answers prompts while vLLM refuses every host
synchronisation inside a step.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.common.results import results_folder, write_result
from benchmarks.gpu.bench import ATTENTION
from benchmarks.gpu.engines import ROOT, Setup
from benchmarks.gpu.exactness import (
    PLAIN,
    SAMPLING,
    check_synchronisation,
    check_texts,
)
from benchmarks.gpu.gpu import commit, find_gpu
from benchmarks.gpu.models import SMOLLM, find_model

EXACT = "float32"
OUTCOMES = ("tests", "failures", "errors", "skipped")


def run_tests(words: Sequence[str]) -> dict[str, Any]:
    """`pytest -m gpu` over all tests; counts, and the names of those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests"]
        done = subprocess.run(
            [*command, f"--junitxml={report}", *words],
            cwd=ROOT,
            env={**os.environ, "MEDUSA_TEST_RUNNER": "gpu"},
            check=False,
        )
        counts = read_counts(report) if report.exists() else {}
    return {"exit_code": done.returncode, **counts}


def read_counts(report: Path) -> dict[str, Any]:
    """Outcomes of a JUnit report by number, and the names of failed tests."""
    tree = ElementTree.parse(report)  # noqa: S314 (pytest wrote it just now)
    suites = list(tree.getroot().iter("testsuite"))
    counts: dict[str, Any] = {
        name: sum(int(suite.get(name, 0)) for suite in suites) for name in OUTCOMES
    }
    counts["failed"] = [
        f"{case.get('classname')}.{case.get('name')}"
        for suite in suites
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return counts


def problems(content: Mapping[str, Any]) -> list[str]:
    """What is not as it must be; empty if all is proven that was asked for.

    An implementation that refuses a dtype by name is no problem, one that nothing was
    compared with is.
    """
    found = []
    tests = content["tests"]
    if tests is not None and (tests["exit_code"] or not tests.get("tests")):
        found.append(f"tests: {tests}")
    for dtype, engines in content["texts"].items():
        compared = 0
        for name, result in engines.items():
            if "failed" in result:
                found.append(f"{dtype}, {name}: {result['failed']}")
            elif "refused" not in result:
                compared += 1
                different = [w for w, r in result.items() if r["different"]]
                if different and dtype == EXACT:
                    found.append(f"{name}: other texts with {', '.join(different)}")
        if not compared:
            found.append(f"{dtype}: no engine with Medusa ran")
    for name, result in content["synchronisation"].items():
        if "refused" in result:
            continue
        if not (result["armed"] and result["notices"]):
            found.append(f"{name}: host synchronisation would not be noticed")
        elif result["synchronises"] and name != PLAIN:
            found.append(f"{name}: a step synchronises:\n{result['synchronises']}")
    return found


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--attention",
        type=lambda text: text.split(","),
        default=list(ATTENTION[1:]),
        help=f"default {','.join(ATTENTION[1:])}",
    )
    parser.add_argument(
        "--dtypes",
        type=lambda text: text.split(","),
        default=[EXACT, "bfloat16"],
        help="default float32,bfloat16",
    )
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--no-texts", action="store_true")
    parser.add_argument("--no-synchronisation", action="store_true")
    parser.add_argument("--output", type=Path, help="default results/gpu/check.json")
    parser.add_argument(
        "--dry-run", action="store_true", help="a few greedy texts on the CPU"
    )
    parser.add_argument("pytest", nargs="*", help="options for pytest, after --")
    arguments = parser.parse_args(words)
    folder = results_folder("gpu")
    if arguments.dry_run:
        arguments.attention, arguments.dtypes = ["auto"], [EXACT]
        arguments.max_tokens = 12
        arguments.no_tests = arguments.no_synchronisation = True
        folder = Path(tempfile.gettempdir()) / "vllm-medusa-dry-run"
    arguments.output = arguments.output or folder / "check.json"
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Return 0 if everything is proven, else 1."""
    arguments = parse_arguments(words)
    gpu = find_gpu()
    if gpu is None and not arguments.dry_run:
        raise SystemExit("error: nvidia-smi finds no GPU; --dry-run needs none")
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    if arguments.dry_run:
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    memory = None if arguments.dry_run or gpu is None else gpu.memory_bytes
    setup = Setup(EXACT, not arguments.dry_run, memory, environment)
    model = find_model(SMOLLM, arguments.output.parent)
    content: dict[str, Any] = {
        "gpu": None if gpu is None else gpu.as_dict(),
        "commit": commit(),
        "tests": None if arguments.no_tests else run_tests(arguments.pytest),
        "texts": {},
        "synchronisation": {},
    }
    if not arguments.no_texts:
        graph_modes = [False] if arguments.dry_run else [True, False]
        for dtype in arguments.dtypes:
            content["texts"][dtype] = check_texts(
                model,
                dtype,
                arguments.attention,
                graph_modes,
                setup,
                arguments.max_tokens,
                # Enough to try it out.
                {"greedy": SAMPLING["greedy"]} if arguments.dry_run else SAMPLING,
            )
    if not arguments.no_synchronisation:
        content["synchronisation"] = check_synchronisation(
            model, arguments.attention, setup, arguments.max_tokens
        )
    content["problems"] = problems(content)
    write_result(arguments.output, "gpu.check", content)
    for problem in content["problems"]:
        print(f"PROBLEM  {problem}")
    print(f"{len(content['problems'])} problem(s); {arguments.output}")
    return 1 if content["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
