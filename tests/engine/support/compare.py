# SPDX-License-Identifier: Apache-2.0
"""What two engines answered, compared in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm import LLM, SamplingParams
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind


def answers(outputs: Sequence[RequestOutput]) -> list[list[dict[str, Any]]]:
    """Tokens, text and the reason for the end, of every completion of each request."""
    return [
        [
            {
                "tokens": list(completion.token_ids),
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "stop_reason": completion.stop_reason,
            }
            for completion in sorted(output.outputs, key=lambda c: c.index)
        ]
        for output in outputs
    ]


def step_ends(
    llm: LLM, prompts: Sequence[list[int]], params: SamplingParams
) -> list[list[int]]:
    """Number of tokens each request had after each engine step that gave it some."""
    engine = llm.llm_engine
    params = params.clone()
    params.output_kind = RequestOutputKind.CUMULATIVE
    for index, prompt in enumerate(prompts):
        engine.add_request(f"ends-{index}", {"prompt_token_ids": prompt}, params)
    ends: list[list[int]] = [[] for _ in prompts]
    while engine.has_unfinished_requests():
        for output in engine.step():
            index = int(output.request_id.removeprefix("ends-"))
            count = len(output.outputs[0].token_ids)
            if not ends[index] or ends[index][-1] != count:
                ends[index].append(count)
    return ends
