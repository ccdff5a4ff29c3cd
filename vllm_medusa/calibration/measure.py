# SPDX-License-Identifier: Apache-2.0
"""Measure what a step costs and what it brings, through the real engine.

The engine has been made with Medusa, a fixed tree, the worker extension of
`vllm_medusa.calibration.worker`, and `disable_log_stats=False`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from vllm_medusa.calibration.looping import length_without_loop
from vllm_medusa.calibration.steps import Request, run_requests
from vllm_medusa.calibration.table import speedups
from vllm_medusa.errors import ConfigError

if TYPE_CHECKING:
    from vllm import LLM

# Steps that may still run with the node count of before, and be read late.
_SETTLING_STEPS = 3
# Where the speed-ups of two node counts in a row are below this share of the best
# one's, larger ones are not measured.
_HOPELESS = 0.75


def force_nodes(llm: LLM, nodes: int | None) -> None:
    """Make every step draft `nodes` nodes (None: as the engine was configured)."""
    llm.collective_rpc("force_nodes", args=(nodes,))


def measure_tokens_per_step(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    node_counts: Sequence[int],
    max_tokens: int,
    concurrency: int = 4,
) -> dict[int, float]:
    """Tokens per step by number of nodes, on greedy answers cut before they loop.

    `prompts` are token ids. Includes 0 nodes, whose figure is 1 by definition.
    """
    force_nodes(llm, 0)
    requests = [
        Request(str(index), list(prompt), max_tokens)
        for index, prompt in enumerate(prompts)
    ]
    plain = run_requests(llm, requests, concurrency)
    lengths = {a.name: length_without_loop(a.token_ids) for a in plain.answers}
    cut = [
        Request(request.name, request.prompt_token_ids, max(2, lengths[request.name]))
        for request in requests
    ]
    figures = {0: 1.0}
    for nodes in node_counts:
        if nodes:
            force_nodes(llm, nodes)
            figures[nodes] = run_requests(llm, cut, concurrency).tokens_per_step
    force_nodes(llm, None)
    return figures


class StepTimer:
    """Times steps of a fixed number of running requests at changing node counts.

    Args:
        llm: the engine, see the module's docstring.
        prompts: token ids, dealt to the requests in turn.
        max_tokens: of every answer, as many as the context leaves room for.
    """

    def __init__(
        self, llm: LLM, prompts: Sequence[Sequence[int]], max_tokens: int
    ) -> None:
        self._llm = llm
        self._prompts = prompts
        self._max_tokens = max_tokens
        self._started = 0

    def start(self, requests: int) -> list[str]:
        """Start requests that won't end by themselves; return once all have begun."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self._llm.llm_engine
        force_nodes(self._llm, 0)
        names = [f"timed-{self._started + index}" for index in range(requests)]
        self._started += requests
        for index, name in enumerate(names):
            prompt = list(self._prompts[index % len(self._prompts)])
            engine.add_request(
                name,
                {"prompt_token_ids": prompt},
                SamplingParams(
                    temperature=0.0,
                    max_tokens=self._max_tokens,
                    ignore_eos=True,
                    output_kind=RequestOutputKind.DELTA,
                ),
            )
        waiting = set(names)
        while waiting:
            waiting -= {output.request_id for output in engine.step()}
        return names

    def stop(self, names: Sequence[str]) -> None:
        """Abort the requests of `start`."""
        self._llm.llm_engine.abort_request(list(names))
        force_nodes(self._llm, None)

    def step_seconds(self, requests: int, nodes: int, steps: int) -> float:
        """Median seconds of a step with `requests` running and `nodes` nodes each.

        Raises:
            ConfigError: the requests ended before so many steps could be timed.
        """
        engine = self._llm.llm_engine
        force_nodes(self._llm, nodes)
        times: list[float] = []
        settling = _SETTLING_STEPS
        last = time.perf_counter()
        while len(times) < steps:
            if not engine.has_unfinished_requests():
                raise ConfigError(
                    f"the requests filled their context of {self._max_tokens} tokens "
                    "before all steps were timed: give fewer --steps or a larger "
                    "--max-model-len"
                )
            outputs = engine.step()
            now = time.perf_counter()
            if len(outputs) == requests:
                if settling:
                    settling -= 1
                else:
                    times.append(now - last)
            last = now
        return median(times)


def measure_step_costs(
    timer: StepTimer,
    batch_sizes: Sequence[int],
    node_counts: Sequence[int],
    tokens_per_step: Mapping[int, float],
    *,
    max_rows: int,
    steps: int,
    repeats: int,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[int, dict[int, float]]:
    """Median step seconds by number of requests, then by number of nodes.

    Node counts are timed in growing order until they are hopeless or a step would
    have more than `max_rows` rows, then again in random orders; each repeat starts new
    requests, so that every count sees the same context lengths on average.
    """
    shuffle = random.Random(seed).shuffle
    costs: dict[int, dict[int, float]] = {}
    for requests in batch_sizes:
        counts = [n for n in sorted(node_counts) if requests * (n + 1) <= max_rows]
        counts = [0, *(n for n in counts if n)]
        samples: dict[int, list[float]] = {}
        for repeat in range(repeats):
            order = list(counts)
            if repeat:
                shuffle(order)
            names = timer.start(requests)
            for nodes in order:
                seconds = timer.step_seconds(requests, nodes, steps)
                samples.setdefault(nodes, []).append(seconds)
                if repeat == 0 and _is_hopeless(samples, tokens_per_step):
                    counts = list(samples)
                    break
            timer.stop(names)
        costs[requests] = {n: median(samples[n]) for n in sorted(samples)}
        timed = ", ".join(f"{n}: {1000 * s:.1f}" for n, s in costs[requests].items())
        progress(f"{requests} request(s), step ms by nodes: {timed}")
    return costs


def _is_hopeless(
    samples: Mapping[int, Sequence[float]], tokens_per_step: Mapping[int, float]
) -> bool:
    """Whether the two largest node counts timed so far are far behind the best one.

    Two, since a single slow reading may be another process's fault.
    """
    gains = {0: 1.0} | speedups(
        {nodes: median(times) for nodes, times in samples.items()}, tokens_per_step
    )
    bound = _HOPELESS * max(gains.values())
    return len(samples) > 2 and all(gains[n] < bound for n in sorted(samples)[-2:])
