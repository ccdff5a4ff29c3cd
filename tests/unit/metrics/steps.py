# SPDX-License-Identifier: Apache-2.0
"""Steps of a scheduler as a `StepObserver` sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput

from vllm_medusa import timing
from vllm_medusa.metrics.step_observer import StepObserver


@dataclass
class Request:
    """What the observer reads of vLLM's."""

    request_id: str
    is_prefill_chunk: bool = False
    num_output_tokens: int = 1
    num_computed_tokens: int = 20
    use_structured_output: bool = False
    sampling_params: Any = field(default_factory=lambda: SimpleNamespace(extra_args={}))


def scheduled(
    tokens: dict[str, int],
    drafts: dict[str, int] | None = None,
    planned: int = 4,
    new: tuple[str, ...] = (),
    resumed: tuple[str, ...] = (),
    preempted: tuple[str, ...] = (),
    finished: tuple[str, ...] = (),
    invalid: dict[str, int] | None = None,
) -> Any:
    return SimpleNamespace(
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        scheduled_spec_decode_tokens={r: [1] * n for r, n in (drafts or {}).items()},
        num_spec_tokens_to_schedule=planned,
        scheduled_new_reqs=[SimpleNamespace(req_id=r) for r in new],
        scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set(resumed)),
        preempted_req_ids=set(preempted),
        finished_req_ids=set(finished),
        num_invalid_spec_tokens=invalid,
    )


def results(
    gains: dict[str, int], cut: dict[str, int] | None = None
) -> tuple[Any, list[EngineCoreOutputs]]:
    """What the runner and the scheduler return; of some requests the scheduler cuts so
    many tokens off."""
    runner = ModelRunnerOutput(
        req_ids=list(gains),
        req_id_to_index={req_id: index for index, req_id in enumerate(gains)},
        sampled_token_ids=[[1] * num_tokens for num_tokens in gains.values()],
    )
    outputs = [
        EngineCoreOutput(req_id, [1] * (num_tokens - (cut or {}).get(req_id, 0)))
        for req_id, num_tokens in gains.items()
    ]
    return runner, [EngineCoreOutputs(outputs=outputs)]


def finish(
    observer: StepObserver,
    output: Any,
    gains: dict[str, int],
    cut: dict[str, int] | None = None,
    parts: dict[str, float] | None = None,
) -> None:
    """The result of one step; requests with drafts accept one node less than they gain
    tokens."""
    runner, outputs = results(gains, cut)
    if parts is not None:
        timing.attach(parts, runner)
    observer.result_begins(output, runner)
    # As the scheduler does in between.
    for tokens in runner.sampled_token_ids:
        del tokens[1:]
    observer.result_ends(output, runner, outputs)


def run(
    observer: StepObserver,
    output: Any,
    requests: dict[str, Request],
    gains: dict[str, int],
    cut: dict[str, int] | None = None,
) -> None:
    """One step."""
    observer.scheduled(0.0, output, requests)
    finish(observer, output, gains, cut)
