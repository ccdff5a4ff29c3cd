# SPDX-License-Identifier: Apache-2.0
"""Drive an engine at a fixed concurrency and keep the time of every step.

`LLM.generate` tells how long a batch took; what decides whether a tree pays is how
long one *step* takes and how many tokens it brings. The loop here is the one inside
`LLM.generate` (add requests, call `LLMEngine.step` until nothing is left) with a
clock around each step and a closed loop that keeps `concurrency` requests running.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import LLM

COUNTERS = {
    "drafts": "vllm:spec_decode_num_drafts",
    "draft_tokens": "vllm:spec_decode_num_draft_tokens",
    "accepted": "vllm:spec_decode_num_accepted_tokens",
}


@dataclass(frozen=True)
class Request:
    """One prompt to answer, greedily unless `temperature` says otherwise.

    `max_tokens` bounds the answer; with `ignore_eos` it has exactly that length.
    `extra_args` are those of vLLM's SamplingParams.
    """

    name: str
    prompt_token_ids: list[int]
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    seed: int | None = None
    extra_args: dict[str, Any] | None = None


@dataclass(frozen=True)
class Step:
    """What one engine step brought, as seen by the client.

    `seconds` since the step before (or since the start), `requests` that received
    tokens, `first_tokens` of them their first one (so a prompt was computed in this
    step), `tokens` in all, `running` requests when the step was awaited.
    """

    seconds: float
    requests: int
    first_tokens: int
    tokens: int
    running: int


@dataclass
class Answer:
    """The tokens of one request and its own clock, in seconds since its start.

    `steps` counts the engine steps that gave it tokens, the prompt's step included.
    """

    name: str
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    steps: int = 0
    first_token_seconds: float = 0.0
    seconds: float = 0.0


@dataclass
class Run:
    """One closed-loop run: its answers, its steps, and vLLM's counters over it."""

    concurrency: int
    seconds: float
    answers: list[Answer]
    steps: list[Step]
    counters: dict[str, int]

    @property
    def tokens(self) -> int:
        """Tokens generated over all answers."""
        return sum(len(answer.token_ids) for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens by wall time, prompts included."""
        return self.tokens / self.seconds

    @property
    def tokens_per_step(self) -> float:
        """Tokens a running request gains per decode step (1.0 without drafts).

        The first token of an answer belongs to its prompt's step and is left out.
        """
        steps = sum(answer.steps - 1 for answer in self.answers)
        return (self.tokens - len(self.answers)) / steps if steps > 0 else 1.0

    @property
    def mean_acceptance_length(self) -> float | None:
        """vLLM's own figure, 1 + accepted ÷ drafts; None if nothing was drafted."""
        drafts = self.counters.get("drafts", 0)
        return 1 + self.counters["accepted"] / drafts if drafts else None

    def step_seconds(self) -> float | None:
        """Median time of a decode step with all `concurrency` requests running.

        Steps that also computed a prompt are left out. None if there was no such step.
        """
        times = [
            step.seconds
            for step in self.steps
            if step.first_tokens == 0 and step.requests == self.concurrency
        ]
        return median(times) if times else None

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON; `run_from_dict` reads it back."""
        return asdict(self)


def run_from_dict(data: Mapping[str, Any]) -> Run:
    """The Run that `Run.as_dict` was called on."""
    return Run(
        concurrency=data["concurrency"],
        seconds=data["seconds"],
        answers=[Answer(**answer) for answer in data["answers"]],
        steps=[Step(**step) for step in data["steps"]],
        counters=dict(data["counters"]),
    )


def speculation_counters(llm: LLM) -> dict[str, int]:
    """vLLM's cumulative counters of drafts, draft tokens and accepted tokens.

    All 0 without speculation. The engine must have been made with
    `disable_log_stats=False`.
    """
    values = dict.fromkeys(COUNTERS, 0)
    for metric in llm.get_metrics():
        for short, name in COUNTERS.items():
            if metric.name == name:
                values[short] += int(getattr(metric, "value", 0))
    return values


def run_requests(
    llm: LLM,
    requests: Sequence[Request],
    concurrency: int,
    on_prompts_done: Callable[[], None] | None = None,
) -> Run:
    """Answer `requests`, `concurrency` at a time, and time every step.

    A finished request is replaced at once. `on_prompts_done` is called once, as soon
    as all requests started first have a token. ValueError if `concurrency` < 1.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, got {concurrency}")
    engine = llm.llm_engine
    waiting = deque(requests)
    running: dict[str, tuple[Answer, float]] = {}
    answers: list[Answer] = []
    steps: list[Step] = []
    before = speculation_counters(llm)

    def fill() -> None:
        while waiting and len(running) < concurrency:
            request = waiting.popleft()
            answer = Answer(request.name)
            # The same question may be asked twice in one run: number the ids.
            key = f"{request.name}#{len(answers)}"
            params = SamplingParams(
                temperature=request.temperature,
                seed=request.seed,
                max_tokens=request.max_tokens,
                ignore_eos=request.ignore_eos,
                extra_args=request.extra_args,
                output_kind=RequestOutputKind.DELTA,
            )
            answers.append(answer)
            running[key] = (answer, time.perf_counter())
            engine.add_request(
                key, {"prompt_token_ids": request.prompt_token_ids}, params
            )

    start = last = time.perf_counter()
    fill()
    while running:
        awaited = len(running)
        outputs = engine.step()
        now = time.perf_counter()
        tokens = first_tokens = 0
        for output in outputs:
            answer, begun = running[output.request_id]
            completion = output.outputs[0]
            tokens += len(completion.token_ids)
            if not answer.token_ids:
                first_tokens += 1
                answer.first_token_seconds = now - begun
            answer.token_ids.extend(completion.token_ids)
            answer.text += completion.text
            answer.steps += 1
            if output.finished:
                answer.seconds = now - begun
                del running[output.request_id]
        if outputs:
            steps.append(Step(now - last, len(outputs), first_tokens, tokens, awaited))
            last = now
        if on_prompts_done is not None and all(a.token_ids for a in answers):
            on_prompts_done()
            on_prompts_done = None
        fill()
    after = speculation_counters(llm)
    return Run(
        concurrency=concurrency,
        seconds=last - start,
        answers=answers,
        steps=steps,
        counters={name: after[name] - before[name] for name in after},
    )
