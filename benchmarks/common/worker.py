# SPDX-License-Identifier: Apache-2.0
"""What a benchmark's engine does in its own process, one for every variant."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm_medusa.calibration.machine import Load
from vllm_medusa.calibration.steps import Request, run_requests, speculation_counters
from vllm_medusa.engines.jobs import Job, serve
from vllm_medusa.prompts import user_turn_ids

if TYPE_CHECKING:
    from vllm import LLM


def tokenize(llm: LLM, prompts: list[str]) -> list[list[int]]:
    """Token ids of each prompt as a user's turn in the model's chat template."""
    tokenizer = llm.get_tokenizer()
    return [user_turn_ids(tokenizer, prompt) for prompt in prompts]


def run(
    llm: LLM,
    requests: list[dict[str, Any]],
    concurrency: int,
    timing: bool = False,
) -> dict[str, Any]:
    """A closed-loop run as a dict, with the load and CPU seconds of the machine.

    With `timing`, also what the worker's `medusa_timing` counted once the first
    prompts were done.
    """

    def read_timing() -> Any:
        return llm.collective_rpc("medusa_timing")[0]

    before = Load.now()
    result = run_requests(
        llm,
        [Request(**r) for r in requests],
        concurrency,
        on_prompts_done=read_timing if timing else None,
    )
    answer = result.as_dict() | {"machine": Load.now().since(before)}
    return answer | ({"timing": read_timing()} if timing else {})


def generate(llm: LLM, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """`LLM.generate` over the whole batch, greedily, as fast as the engine takes it."""
    from vllm import SamplingParams, TokensPrompt

    prompts = [TokensPrompt(prompt_token_ids=r["prompt_token_ids"]) for r in requests]
    parameters = [
        SamplingParams(temperature=0.0, max_tokens=r["max_tokens"]) for r in requests
    ]
    counters = speculation_counters(llm)
    before = Load.now()
    start = time.perf_counter()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    seconds = time.perf_counter() - start
    machine = Load.now().since(before)
    after = speculation_counters(llm)
    token_ids = [list(output.outputs[0].token_ids) for output in outputs]
    return {
        "seconds": seconds,
        "tokens": sum(len(ids) for ids in token_ids),
        "token_ids": token_ids,
        "counters": {name: after[name] - counters[name] for name in after},
        "machine": machine,
    }


JOBS: dict[str, Job] = {
    "tokenize": tokenize,
    "run": run,
    "generate": generate,
}


if __name__ == "__main__":
    serve(JOBS)
