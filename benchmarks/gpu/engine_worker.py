# SPDX-License-Identifier: Apache-2.0
"""What an engine of the GPU benchmarks does in its own process."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from vllm_medusa.calibration.steps import Request, run_requests
from vllm_medusa.engines.jobs import Job, serve
from vllm_medusa.prompts import user_turn_ids

if TYPE_CHECKING:
    from vllm import LLM

# Below these ids lie special tokens, such as the end of the text.
_FIRST_TOKEN = 3


def random_prompts(
    vocab_size: int, batch: int, length: int, seed: int = 0
) -> list[list[int]]:
    """`batch` different prompts of `length` random tokens, always the same ones."""
    prompts = []
    for index in range(batch):
        draw = random.Random(f"{seed}-{index}")
        tokens = range(_FIRST_TOKEN, vocab_size)
        prompts.append(draw.choices(tokens, k=length))
    return prompts


def steps(
    llm: LLM, batch: int, context: int, steps: int, warm_up: int, timing: bool = False
) -> dict[str, Any]:
    """Time `steps` decode steps with `batch` requests at about `context` tokens.

    Prompts are computed (or found in the prefix cache) and `warm_up` steps pass before
    the clock starts. "seconds" is the time of all timed steps by their number, "median"
    that of their single times; "tokens" what a request gained per step. With `timing`,
    "parts" is what the worker's `medusa_timing` counted over the timed steps.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    vocab_size = llm.model_config.get_vocab_size()
    length = max(1, context - (warm_up + steps) // 2)
    params = SamplingParams(
        temperature=0.0,
        max_tokens=llm.model_config.max_model_len - length,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    for index, prompt in enumerate(random_prompts(vocab_size, batch, length)):
        engine.add_request(f"timed-{index}", {"prompt_token_ids": prompt}, params)
    waiting = {f"timed-{index}" for index in range(batch)}
    while waiting:
        waiting -= {output.request_id for output in engine.step()}

    def next_step() -> int:
        """Tokens of the next step that brings some."""
        while True:
            if outputs := engine.step():
                if len(outputs) != batch:
                    raise ValueError(
                        f"a step served {len(outputs)} of {batch} requests: the KV "
                        "cache or the token budget is too small"
                    )
                return sum(len(output.outputs[0].token_ids) for output in outputs)

    for _ in range(warm_up):
        next_step()
    if timing:
        llm.collective_rpc("medusa_timing")
    times, tokens = [], 0
    start = last = time.perf_counter()
    for _ in range(steps):
        tokens += next_step()
        now = time.perf_counter()
        times.append(now - last)
        last = now
    parts = llm.collective_rpc("medusa_timing")[0] if timing else None
    engine.abort_request([f"timed-{index}" for index in range(batch)])
    while engine.has_unfinished_requests():
        engine.step()
    times.sort()
    return {
        "seconds": (last - start) / steps,
        "median": times[steps // 2],
        "tokens": tokens / steps / batch,
        "parts": parts,
    }


def speed(
    llm: LLM, prompts: list[str], max_tokens: int, concurrency: int
) -> dict[str, Any]:
    """Answer `prompts` greedily, `concurrency` at a time: tokens/s, tokens per step.

    After one short answer, whose first steps are slower. Prompts count in the time.
    """
    tokenizer = llm.get_tokenizer()
    requests = [
        Request(str(index), user_turn_ids(tokenizer, prompt), max_tokens)
        for index, prompt in enumerate(prompts)
    ]
    run_requests(llm, [Request("first", requests[0].prompt_token_ids, 8)], 1)
    run = run_requests(llm, requests, concurrency)
    return {
        "tokens_per_second": run.tokens_per_second,
        "tokens_per_step": run.tokens_per_step,
        "token_ids": [answer.token_ids for answer in run.answers],
    }


def about(llm: LLM) -> dict[str, Any]:
    """CUDA graphs and device memory, as `WorkerProbe` tells them."""
    return {
        "graphs": llm.collective_rpc("probe_graphs")[0],
        "memory": llm.collective_rpc("probe_memory")[0],
    }


def sync_check(llm: LLM) -> dict[str, bool]:
    """See `WorkerProbe.probe_sync_check`."""
    answer: dict[str, bool] = llm.collective_rpc("probe_sync_check")[0]
    return answer


def answer(
    llm: LLM, prompts: list[str], max_tokens: int, sampling: dict[str, Any]
) -> list[list[int]]:
    """Token ids of the answers; `sampling` are options of SamplingParams.

    With a "seed" each prompt gets its own: the seed plus its place in the list.
    """
    from vllm import SamplingParams, TokensPrompt

    tokenizer = llm.get_tokenizer()
    inputs, params = [], []
    for index, prompt in enumerate(prompts):
        token_ids = user_turn_ids(tokenizer, prompt)
        inputs.append(TokensPrompt(prompt_token_ids=token_ids))
        options = {"max_tokens": max_tokens, **sampling}
        if "seed" in sampling:
            options["seed"] += index
        params.append(SamplingParams(**options))
    outputs = llm.generate(inputs, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


JOBS: dict[str, Job] = {
    "steps": steps,
    "speed": speed,
    "about": about,
    "sync_check": sync_check,
    "answer": answer,
}


if __name__ == "__main__":
    serve(JOBS)
