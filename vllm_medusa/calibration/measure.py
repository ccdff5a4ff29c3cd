# SPDX-License-Identifier: Apache-2.0
"""Measure what a step costs and what it brings, through the real engine.

The engine has been made with Medusa, a fixed tree, no batch table, and
`disable_log_stats=False`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from vllm_medusa.calibration.accuracy import PlainAnswer
from vllm_medusa.calibration.nodes import with_nodes
from vllm_medusa.calibration.steps import Request, run_requests
from vllm_medusa.calibration.table import speedups
from vllm_medusa.errors import ConfigError

if TYPE_CHECKING:
    from vllm import LLM

# Steps after the last prompt's that are not timed.
_SETTLING_STEPS = 3
# Where the speed-ups of two node counts in a row are below this share of the best
# one's, larger ones are not measured.
_HOPELESS = 0.75


def measure_tokens_per_step(
    llm: LLM,
    answers: Sequence[PlainAnswer],
    nodes: int,
    *,
    temperature: float,
    seed: int,
    concurrency: int = 4,
) -> float:
    """Tokens per step with trees of `nodes` nodes, on the answers' prompts and lengths.

    Greedy answers are those of plain decoding; drawn ones are, too, by their seeds,
    which are those of `answer_plainly` if no prompt's answer was left out.
    """
    requests = [
        Request(
            str(index),
            answer.prompt.token_ids,
            len(answer.token_ids),
            temperature=temperature,
            seed=seed + index,
            extra_args=with_nodes(nodes),
        )
        for index, answer in enumerate(answers)
    ]
    return run_requests(llm, requests, concurrency).tokens_per_step


class StepTimer:
    """Times steps of a fixed number of running requests with a number of nodes each.

    Every reading starts new requests, so that all see the same context lengths.

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

    def step_seconds(self, requests: int, nodes: int, steps: int) -> float:
        """Median seconds of a step with `requests` running and `nodes` nodes each.

        Raises:
            ConfigError: the requests ended before so many steps could be timed.
        """
        engine = self._llm.llm_engine
        names = self._start(requests, nodes)
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
        engine.abort_request(names)
        return median(times)

    def _start(self, requests: int, nodes: int) -> list[str]:
        """Start requests that won't end by themselves; return once all have begun."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self._llm.llm_engine
        names = [f"timed-{self._started + index}" for index in range(requests)]
        self._started += requests
        params = SamplingParams(
            temperature=0.0,
            max_tokens=self._max_tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args=with_nodes(nodes),
            output_kind=RequestOutputKind.DELTA,
        )
        for index, name in enumerate(names):
            prompt = list(self._prompts[index % len(self._prompts)])
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        waiting = set(names)
        while waiting:
            waiting -= {output.request_id for output in engine.step()}
        return names


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
    have more than `max_rows` rows, then again in random orders, so that what the
    machine does besides falls on all of them.
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
            for nodes in order:
                seconds = timer.step_seconds(requests, nodes, steps)
                samples.setdefault(nodes, []).append(seconds)
                if repeat == 0 and _is_hopeless(samples, tokens_per_step):
                    counts = list(samples)
                    break
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
